"""Plant changed copies among images, and count how many dataset.py finds: python -m experiments.near_copies

With --series: what do images in series do to the validation accuracy? Several views of each of some photographs are trained
on twice, with near-copies kept on one side of the split and without. The truth is the accuracy on other photographs.
"""

import collections
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from classifier.base import console
from classifier.base.console import DONE, aligned, number
from classifier.data.finding import find_images
from experiments.scripts import Parser, link_images, record_of, run_script, test_accuracy_of

VIEWS = 5, 20  # of a photograph in a series, at least and at most


def main(argv: list[str] | None = None) -> int:
    """Plant, look, and print the table; returns the exit code."""
    parser = Parser(__doc__)
    add = parser.add_argument
    parser.add_folder("--data-dir", "training_data", "images to change")
    add("--limit-per-class", type=number(int, 1), metavar="N", help="take the first N images of each class; None: all")
    add("--copies", type=number(int, 1), default=200, metavar="N", help="copies of each kind")
    add("--seed", type=number(int, 0), default=0, help="of the changes")
    add("--series", type=number(int, 3), metavar="N", help="instead: train on series made of N photographs of each class")
    add("--network", default="mobilenet_v2", metavar="NAME", help="for --series")
    arguments = parser.parse_args(argv)
    found = find_images(arguments.data_dir, limit_per_class=arguments.limit_per_class)
    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.series:
            print(compare_splits(found, Path(folder), arguments.series, arguments.network, rng))
            return DONE
        planted = plant(found, Path(folder), arguments.copies, rng)
        findings = json.loads(run_script("dataset.py", folder, "--format", "json"))
    groups = [[Path(path).name for path in group["paths"]] for group in findings["near_copies"]]
    print(table_of(planted, groups, found))
    return DONE


def plant(found, folder: Path, copies: int, rng: np.random.Generator) -> dict[str, list[str]]:
    """Link to all images from a new folder and add changed copies; returns {kind: names of its copies}.

    An image is named `number.suffix`, its copy `number-kind.jpg`.
    """
    planted = collections.defaultdict(list)
    links = link_images(found, folder)
    for kind, change in CHANGES.items():
        for i in rng.permutation(len(found.paths))[:copies]:
            image = cv2.imread(str(found.paths[i]))
            if image is not None:
                quality = [cv2.IMWRITE_JPEG_QUALITY, 40 if kind in ("encoded", "combined") else 90]
                planted[kind].append(f"{i}-{kind}.jpg")
                cv2.imwrite(str(links[i].with_name(planted[kind][-1])), change(image, rng), quality)
    return planted


def table_of(planted: dict[str, list[str]], groups: list[list[str]], found) -> str:
    """How many copies of each kind are in a group with their original, and how many groups join different images."""
    of_groups = [collections.defaultdict(set) for _ in groups]  # for each group {number of an original: kinds}
    for numbers, group in zip(of_groups, groups, strict=True):
        for name in group:
            i, _, kind = name.split(".")[0].partition("-")
            numbers[int(i)].add(kind)
    hits = collections.Counter(kind for numbers in of_groups for kinds in numbers.values() if "" in kinds for kind in kinds)
    rows = [[kind, len(names), hits[kind], f"{hits[kind] / len(names):.1%}"] for kind, names in planted.items()]
    others = [sorted(numbers) for numbers in of_groups if len(numbers) > 1]
    lines = [
        aligned([["copies", "planted", "found", "recall"], *rows]),
        f"{len(groups)} groups, {len(others)} of them with several of the {len(found.paths)} originals:",
    ]
    return "\n".join(lines + ["  " + " = ".join(str(found.paths[i]) for i in group) for group in others])


def compare_splits(found, folder: Path, photos: int, network: str, rng: np.random.Generator) -> str:
    """Train on series twice: a table."""
    rows = [["near-copies", "validation accuracy", "accuracy on other photographs"]]
    images, test = folder / "series", folder / "others"
    make_series(found, images, test, photos, rng)
    for name, *more in (("on any side", "--no-group-near-copies"), ("kept together",)):
        output = folder / name
        run_script("train.py", "--data-dir", images, "--network", network, "--output", output, *more)
        validation = record_of(output / "001")["selected"]["val_accuracy"]
        rows.append([name, f"{validation:.1%}", f"{test_accuracy_of(output / '001', test):.1%}"])
    return aligned(rows)


def make_series(found, folder: Path, test: Path, photos: int, rng: np.random.Generator) -> None:
    """Write views of the first photographs of each class into a folder, and link to all others in the folder `test`."""
    for label, name in enumerate(found.classes):
        paths = [path for path, other in zip(found.paths, found.labels, strict=True) if other == label]
        for side in (folder, test):
            (side / name).mkdir(parents=True)
        for path in paths[:photos]:
            image = cv2.imread(str(path))
            for _ in range(rng.integers(VIEWS[0], VIEWS[1] + 1) if image is not None else 0):
                cv2.imwrite(str(folder / name / f"{rng.integers(2**62)}.jpg"), view(image, rng))
        for i, path in enumerate(paths[photos:]):
            (test / name / f"{i}{path.suffix}").symlink_to(path.absolute())


def cropped(image: np.ndarray, rng: np.random.Generator, fraction: float = 0.9) -> np.ndarray:
    """A part anywhere in the image, `fraction` of its width and height."""
    height, width = (round(side * fraction) for side in image.shape[:2])
    y, x = (rng.integers(side - part + 1) for side, part in zip(image.shape, (height, width), strict=False))
    return image[y : y + height, x : x + width]


def view(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another view of the same: a part, 60 to 90 % as wide and high, turned a little, mirrored or not, in another light."""
    part = cropped(image, rng, rng.uniform(0.6, 0.9))
    height, width = part.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-8, 8), 1)
    part = cv2.warpAffine(part, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    part = cv2.convertScaleAbs(part, alpha=rng.uniform(0.75, 1.25))
    return part[:, ::-1] if rng.random() < 0.5 else part


CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "encoded": lambda image, rng: image,  # as JPEG with quality 40
    "scaled": lambda image, rng: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "cropped": cropped,
    "mirrored": lambda image, rng: cv2.flip(image, 1),
    "brightened": lambda image, rng: cv2.convertScaleAbs(image, alpha=1.3),
}
PARTS_OF_ALL = [CHANGES[kind] for kind in ("scaled", "cropped", "mirrored", "brightened")]
CHANGES["combined"] = lambda image, rng: functools.reduce(lambda one, change: change(one, rng), PARTS_OF_ALL, image)


if __name__ == "__main__":
    console.run(main)
