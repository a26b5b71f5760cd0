"""Plant changed copies among images and count how many dataset.py finds: python -m tools.planted_copies"""

import argparse
import collections
import json
import tempfile
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, PROJECT, aligned, number
from tools.scripts import run_script


def main(argv=None):
    """Plant, look, and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description="Plant changed copies among images and count how many dataset.py finds.")
    add = parser.add_argument
    add("--data-dir", type=Path, default=PROJECT / "training_data", metavar="FOLDER", help="default: training_data")
    add("--limit-per-class", type=number(int, 1), metavar="N", help="take the first N images of each class (default: all)")
    add("--copies", type=number(int, 1), default=200, metavar="N", help="copies of each kind (default: 200)")
    add("--seed", type=number(int, 0), default=0, help="default: 0")
    arguments = parser.parse_args(argv)
    import numpy as np  # not before it is needed: --help answers at once

    from classifier.data.finding import find_images
    from tools.changed_copies import plant

    found = find_images(arguments.data_dir, limit_per_class=arguments.limit_per_class)
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(found, Path(folder), arguments.copies, np.random.default_rng(arguments.seed))
        findings = json.loads(run_script("dataset.py", folder, "--format", "json"))
    groups = [[Path(path).name for path in group["paths"]] for group in findings["near_copies"]]
    print(table_of(planted, groups, found))
    return DONE


def table_of(planted, groups, found):
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


if __name__ == "__main__":
    console.run(main)
