"""Draw small cartoon cats and dogs, so that a fresh clone has images to train on: python -m tools.draw_samples

Only shape distinguishes a cat (pointed ears, almond eyes, small nose, whiskers) from a dog (hanging ears, round eyes,
muzzle): colours, coat, background, position, tilt, size and noise have the same distributions for both.
Drawing k of a class depends on (seed, split, class, k) alone: if you ask for more, the earlier ones stay the same.
"""

import argparse
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, PROJECT, UserError, number

# NumPy and OpenCV are imported inside the functions that use them: --help and a wrong flag answer at once.

KINDS = ("cat", "dog")
SPLITS = ("training_data", "testing_data")
OVERSAMPLING = 3  # drawn this many times larger, then shrunk, for smooth edges


def main(argv=None):
    """Write the drawings; returns the exit code."""
    what = "Draw small cartoon cats and dogs, so that a fresh clone has images to train on."
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=PROJECT, metavar="FOLDER", help="where training_data/ and testing_data/ go")
    add("--per-class", type=number(int, 0), default=440, metavar="N", help="training images of each class")
    add("--testing-per-class", type=number(int, 0), default=80, metavar="N", help="test images of each class")
    add("--seed", type=number(int, 0), default=0, metavar="N", help="another seed draws other animals")
    add("--overwrite", action="store_true", help="replace images that exist already")
    arguments = parser.parse_args(argv)
    import cv2
    import numpy as np

    counts = (arguments.per_class, arguments.testing_per_class)
    wanted = [(s, k, n) for s, count in enumerate(counts) for k in range(len(KINDS)) for n in range(1, count + 1)]
    paths = [arguments.output / SPLITS[s] / f"{KINDS[k]}s" / f"{KINDS[k]}_{n:03d}.jpg" for s, k, n in wanted]
    existing = [path for path in paths if path.exists()]
    if existing and not arguments.overwrite:
        found = f"{len(existing)} of these images exist already, such as {existing[0]}"
        raise UserError(f"{found}: choose another --output, or replace them with --overwrite")
    size = 0
    for path, key in zip(paths, wanted, strict=True):
        rng = np.random.default_rng([arguments.seed, *key])
        bgr = draw(KINDS[key[1]], rng)[:, :, ::-1]  # OpenCV writes BGR
        _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 81))])
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if arguments.overwrite else "xb") as file:
            size += file.write(jpeg.tobytes())
    print(f"{len(paths)} images, {size / 1e6:.2f} MB, in {arguments.output}")
    return DONE


def draw(kind, rng):
    """Draw one "cat" or "dog" with a numpy Generator; (height, width, 3) uint8 RGB, sides of about 65 to 120."""
    import cv2
    import numpy as np

    from tools.cartoons import BOTH, HEADS, Pen, choose_look, draw_background, draw_body

    look = choose_look(rng)
    area, aspect = rng.uniform((70, 0.85), (112, 1.18))
    width, height = round(area * aspect), round(area / aspect)
    canvas = np.zeros((height * OVERSAMPLING, width * OVERSAMPLING, 3), np.uint8)
    draw_background(rng, canvas, look.fur)
    shares = (0.5, 0.65) if look.body else (0.6, 0.9)
    scale = min(canvas.shape[:2]) * rng.uniform(*shares) / 2.4  # a head with its ears is about 2.4 radii high
    room = np.array([canvas.shape[1], canvas.shape[0]]) / 2
    centre = room + rng.uniform(-1, 1, 2) * np.maximum(room - 1.4 * scale, 0)  # keeps the ears in the picture
    if look.body:
        centre[1] = min(centre[1], 0.9 * room[1])
        draw_body(Pen(canvas, scale, centre, look.tilt / 3, look.outline, look.line), rng, look)
    HEADS[kind](Pen(canvas, scale, centre, look.tilt, look.outline, look.line), rng, look)
    # Like a photograph: mirrored or not, and with other light, contrast, sharpness and noise.
    image = cv2.resize(canvas[:, :: rng.choice(BOTH)], (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    image = (image - 128) * rng.uniform(0.75, 1.15) + 128 + rng.uniform(-25, 25)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    image += rng.normal(0, rng.uniform(0, 6), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    console.run(main)
