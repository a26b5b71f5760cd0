"""Draw very many small images of very many classes, to try a training at that size: python -m tools.many_images FOLDER

An image shows spots, whose colours, size and form depend on its class, at random places and with noise.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from classifier.base import console
from classifier.base.console import DONE, USAGE, UserError, number, progress, say


def main(argv=None):
    """Parse the command line, draw, and return the exit code."""
    parser = argparse.ArgumentParser("python -m tools.many_images", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where class folders are made; it must not exist")
    parser.add_argument("--images", type=number(int, 4), default=200_000, metavar="N", help="default: 200,000")
    parser.add_argument("--classes", type=number(int, 2), default=1000, metavar="N", help="default: 1,000")
    parser.add_argument("--side", type=number(int, 16), default=32, metavar="PX", help="of an image (default: 32)")
    arguments = parser.parse_args(argv)
    if arguments.folder.exists():
        raise UserError(f"{arguments.folder} exists: name a folder that does not", USAGE)
    with progress("drawing", arguments.images) as advance:
        for label in range(arguments.classes):
            folder = arguments.folder / f"class_{label:04}"
            folder.mkdir(parents=True)
            for k in range(label, arguments.images, arguments.classes):
                (folder / f"{k}.jpg").write_bytes(cv2.imencode(".jpg", draw(label, k, arguments.side))[1])
                advance()
    say(f"{arguments.images:,} images of {arguments.classes:,} classes in {arguments.folder}")
    return DONE


def draw(label, number, side):
    """Image `number`, of class `label`: (side, side, 3) uint8."""
    of_class, own = np.random.default_rng([0, label]), np.random.default_rng([1, number])
    colours = of_class.uniform(20, 235, (2, 3))
    heights = own.normal(size=of_class.integers(4, side // 2, 2)).astype(np.float32)  # fewer, and spots are larger
    spots = cv2.resize(heights, (side, side), interpolation=cv2.INTER_CUBIC) > 0
    image = np.where(spots[..., None], *colours) + own.normal(0, 12, (side, side, 3))
    return image.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    console.run(main)
