"""Compare grounds for what is transparent in icons and cut-outs: python -m experiments.transparency ../photographs

White is what training and prediction take; for the others, opaque copies are made. Photographs are cut out with a soft edge,
and what lies under the transparency is black or the old background, as programs leave it.
"""

import statistics
import tempfile
from pathlib import Path

import cv2
import numpy as np

from classifier.base import console
from classifier.base.console import DONE
from classifier.data.finding import find_images
from classifier.data.images import load_in_shape
from experiments.scripts import Parser, print_table, run_script, test_accuracy_of

GROUNDS = {"white": None, "black": 0, "grey": 128, "alpha dropped": -1}
SHAPES = ("disc", "ring", "square", "triangle")


def main(argv: list[str] | None = None) -> int:
    """Print a table: the test accuracy with each ground. Returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("photographs", type=Path, metavar="FOLDER", help="labelled photographs")
    parser.add_argument(
        "--per-class", type=int, default=60, metavar="N", help="images of each class to train on, and to test"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each kind")
    arguments = parser.parse_args(argv)
    rng, count = np.random.default_rng(0), 2 * arguments.per_class
    found = find_images(arguments.photographs, limit_per_class=count)
    icons = [(icon(shape, rng), shape) for shape in SHAPES for _ in range(count)]
    photographs = [
        (load_in_shape(path, 224), found.classes[label]) for path, label in zip(found.paths, found.labels, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        opaque = write_sets(Path(folder, "opaque"), photographs)
        cut_out = [(cut_out_of(image, rng), name) for image, name in photographs]
        runs = [train(opaque, seed) for seed in range(arguments.seeds)]

        def row(ground, level):
            cells = []
            for kind, images in (("icons", icons), ("cut-outs", cut_out)):
                place = write_sets(Path(folder, ground, kind), images, level)
                cells.append(accuracies([train(place, seed) for seed in range(arguments.seeds)], place / "test"))
            return ground, *cells, accuracies(runs, place / "test")

        header = "ground", "icons", "cut-outs", "cut-outs, trained on whole photographs"
        print_table(header, (row(*each) for each in GROUNDS.items()))
    return DONE


def icon(shape: str, rng: np.random.Generator) -> np.ndarray:
    """(64, 64, 4) uint8 RGBA: a shape of one colour, often black, with a soft edge; that colour is everywhere."""
    mask, (x, y), size = np.zeros((64, 64), np.uint8), map(int, rng.integers(22, 42, 2)), int(rng.integers(8, 18))
    if shape in ("disc", "ring"):
        cv2.circle(mask, (x, y), size, 255, -1 if shape == "disc" else 4)
    else:
        corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)] if shape == "square" else [(0, -1), (1, 1), (-1, 1)]
        cv2.fillPoly(mask, [np.array(corners) * size + (x, y)], 255)
    colour = rng.integers(0, 256, 3) * rng.integers(0, 2)
    return np.dstack([np.broadcast_to(colour.astype(np.uint8), (64, 64, 3)), cv2.GaussianBlur(mask, (3, 3), 0)])


def cut_out_of(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """RGBA of the middle of a photograph, (height, width, 3) uint8, in an oval with a soft edge."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (width * 2 // 5, height * 2 // 5), 0, 0, 360, 255, -1)
    under = image if rng.integers(2) else np.where(mask[..., None], image, 0).astype(np.uint8)
    return np.dstack([under, cv2.GaussianBlur(mask, (0, 0), 3)])


def write_sets(folder: Path, images: list[tuple[np.ndarray, str]], ground: int | None = None) -> Path:
    """Write images in class folders, every other one for the test; those with alpha on a ground, or as they are."""
    for number, (image, name) in enumerate(images):
        path = folder / ("test" if number % 2 else "train") / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if ground is not None:
            share = image[..., 3:] / 255 if ground >= 0 else 1
            image = np.round(image[..., :3] * share + ground * (1 - share)).astype(np.uint8)
        cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA))
    return folder


def train(place: Path, seed: int) -> Path:
    """The run of a training on write_sets()."""
    flags = ("--network", "mobilenet_v2", "--seed", seed)
    run_script("train.py", "--data-dir", place / "train", "--output", place / f"runs{seed}", *flags)
    return place / f"runs{seed}" / "001"


def accuracies(runs: list[Path], folder: Path) -> str:
    """The median and the range of the accuracies of runs on a folder."""
    found = [test_accuracy_of(run, folder) for run in runs]
    return f"{statistics.median(found):.1%} ({min(found):.1%} to {max(found):.1%})"


if __name__ == "__main__":
    console.run(main)
