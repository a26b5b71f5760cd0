"""Show what images in series do to the validation accuracy: python -m tools.series --data-dir my_images

Makes series out of single photographs, several views of each under other names, and trains on them twice, with near-copies
kept on one side of the split and without. The truth is the accuracy on other photographs.
"""

import argparse
import tempfile
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, PROJECT, aligned, number
from classifier.runs.folder import read_metadata
from tools.scripts import run_script, test_accuracy_of


def main(argv=None):
    """Make the series, train, and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description="Show what images in series do to the validation accuracy.")
    add = parser.add_argument
    add("--data-dir", type=Path, default=PROJECT / "training_data", metavar="FOLDER", help="default: training_data")
    add("--photos", type=number(int, 3), default=60, metavar="N", help="of each class, to make series of (default: 60)")
    add("--others", type=number(int, 1), default=200, metavar="N", help="of each class, at most, to test on (default: 200)")
    add("--network", default="mobilenet_v2", metavar="NAME", help="see train.py (default: mobilenet_v2)")
    add("--seed", type=number(int, 0), default=0, help="of the views (default: 0)")
    arguments = parser.parse_args(argv)
    rows = [["near-copies", "validation accuracy", "accuracy on other photographs"]]
    with tempfile.TemporaryDirectory() as folder:
        images, test, runs = (Path(folder, name) for name in ("series", "others", "runs"))
        make_series(arguments, images, test)
        flags = ("--data-dir", images, "--network", arguments.network, "--output", runs)
        for number_of_run, (name, *more) in enumerate((("on any side", "--no-group-near-copies"), ("kept together",)), 1):
            run_script("train.py", *flags, *more)
            run = runs / f"{number_of_run:03d}"
            validation = read_metadata(run)["selected"]["val_accuracy"]
            rows.append([name, f"{validation:.1%}", f"{test_accuracy_of(run, test):.1%}"])
    print(aligned(rows))
    return DONE


def make_series(arguments, folder, test):
    """Write 5 to 20 views of the first photographs of each class into a folder, and link to others in the folder `test`."""
    import cv2
    import numpy as np

    from classifier.data.finding import find_images
    from tools.changed_copies import view

    rng = np.random.default_rng(arguments.seed)
    found = find_images(arguments.data_dir, limit_per_class=arguments.photos + arguments.others)
    for label, name in enumerate(found.classes):
        paths = [path for path, other in zip(found.paths, found.labels, strict=True) if other == label]
        for side in (folder, test):
            (side / name).mkdir(parents=True)
        for path in paths[: arguments.photos]:
            image = cv2.imread(str(path))
            for _ in range(rng.integers(5, 21) if image is not None else 0):
                cv2.imwrite(str(folder / name / f"{rng.integers(2**62)}.jpg"), view(image, rng))
        for i, path in enumerate(paths[arguments.photos :]):
            (test / name / f"{i}{path.suffix}").symlink_to(path.absolute())


if __name__ == "__main__":
    console.run(main)
