"""Score trained networks on test images, one row of a table for each: python -m tools.score_table cnn-2400 runs/001"""

import argparse
import json
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, PROJECT, UserError
from classifier.base.files import csv_text, write_text
from classifier.runs.folder import find_run, read_metadata
from tools.scripts import checked_out_commit, read_table, run_script

COLUMNS = [
    "training",
    "seed",
    "commit",
    "validation accuracy",
    "temperature",
    "test images",
    "accuracy",
    "log loss",
    "calibration error",
    "by chance",
    "called unknown",
    "OOD AUROC",
    "accuracy --tta",
    "log loss --tta",
    "calibration error --tta",
]
KEY = 3  # the first columns, which identify a training


def main(argv=None):
    """Score each run, without and with test-time augmentation; returns the exit code."""
    parser = argparse.ArgumentParser(description="Score trained networks on test images, one row of a table for each.")
    add = parser.add_argument
    add("training", help="name of the trainings in the table, such as cnn-2400")
    add("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="one for each seed")
    add("--test-dir", type=Path, default=PROJECT / "testing_data", metavar="FOLDER", help="default: testing_data")
    add("--ood-dir", type=Path, nargs="+", default=[], metavar="FOLDER", help="images of other things, for the AUROC")
    add("--commit", help="the commit of this project that trained them (default: the one that is checked out)")
    add("--table", type=Path, default=PROJECT / "results" / "tests.csv", metavar="FILE", help="default: results/tests.csv")
    arguments = parser.parse_args(argv)
    commit = arguments.commit or checked_out_commit()
    rows = read_table(arguments.table, dict.fromkeys(COLUMNS, str), "--table")
    for run in map(find_run, arguments.runs):
        seed = read_metadata(run)["settings"]["seed"]
        row = [arguments.training, str(seed), commit, *score(run, arguments)]
        rows = [other for other in rows if other[:KEY] != row[:KEY]] + [row]
        write_text(arguments.table, csv_text(COLUMNS, rows))
        print(", ".join(f"{name} {value}" for name, value in zip(COLUMNS, row, strict=True)))
    return DONE


def score(run, arguments):
    """The figures of one run as text, in the order of COLUMNS from the validation accuracy on."""
    metadata = read_metadata(run)
    if not metadata.get("selected"):
        raise UserError(f"{run} has no epoch yet")
    flags = (arguments.test_dir, "--model", run, "--format", "json")
    ood = ["--ood-dir", *arguments.ood_dir] if arguments.ood_dir else []
    plain, tta = (json.loads(run_script("evaluate.py", *flags, *more)) for more in (ood, ["--tta"]))
    # The mean over all folders, weighted by their numbers of images.
    others = plain["out_of_distribution"].values()
    scored = sum(folder["scored"] for folder in others)
    weighted = sum(folder["scored"] * folder["area_under_roc"] for folder in others)
    figures = ("accuracy", "log_loss", "calibration_error")
    return [
        f"{metadata['best']['val_accuracy']:.4f}",
        f"{metadata.get('temperature', 1.0):.3f}",
        str(plain["scored"]),
        *(f"{plain[name]:.4f}" for name in (*figures, "chance_error")),
        str(plain["unknown"]),
        f"{weighted / scored:.4f}" if scored else "",
        *(f"{tta[name]:.4f}" for name in figures),
    ]


if __name__ == "__main__":
    console.run(main)
