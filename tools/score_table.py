"""Score trained networks on test images, a row of a table for each: python -m tools.score_table cnn-2400 runs/001"""

import argparse
import csv
import json
import subprocess
from pathlib import Path

from classifier import console
from classifier.console import DONE, PROJECT, UserError
from classifier.files import csv_text, write_text
from classifier.runs import find_run, read_metadata
from tools.scripts import run_script

COLUMNS = ["training", "seed", "commit", "validation accuracy", "temperature", "test images", "accuracy", "log loss",
           "calibration error", "by chance", "called unknown", "OOD AUROC", "accuracy --tta", "log loss --tta",
           "calibration error --tta"]  # fmt: skip


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(description="Score trained networks on test images, a row of a table for each.")
    add = parser.add_argument
    add("training", help="what the trainings are called in the table, such as cnn-2400")
    add("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="one for each seed")
    add("--test-dir", type=Path, default=PROJECT / "testing_data", metavar="FOLDER", help="default: testing_data")
    add("--ood-dir", type=Path, nargs="+", default=[], metavar="FOLDER", help="images of other things, for the AUROC")
    add("--commit", help="of this project, that trained them (default: the one checked out)")
    add("--table", type=Path, default=PROJECT / "results" / "tests.csv", metavar="FILE", help="default: results/tests.csv")
    return parser.parse_args(argv)


def main(argv=None):
    """Score each run, with its mirror images, too; returns the exit code."""
    arguments = parse_arguments(argv)
    commit = arguments.commit or described()
    rows = read_rows(arguments.table)
    for run in map(find_run, arguments.runs):
        row = [arguments.training, read_metadata(run)["settings"]["seed"], commit, *score(run, arguments)]
        row = dict(zip(COLUMNS, map(str, row), strict=True))
        rows = [other for other in rows if any(other[name] != row[name] for name in COLUMNS[:3])] + [row]
        write_text(arguments.table, csv_text(COLUMNS, [row.values() for row in rows]))
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    return DONE


def described():
    """The commit that is checked out, marked if there are changes."""
    command = ["git", "-C", PROJECT, "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def read_rows(table):
    """The rows of the table so far, as dictionaries; [] if there is none."""
    if not table.exists():
        return []
    with open(table, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise UserError(f"{table} is another table: choose another --table")
        return list(reader)


def score(run, arguments):
    """The figures of one run, in the order of COLUMNS from the validation accuracy on."""
    metadata = read_metadata(run)
    if not metadata.get("best"):
        raise UserError(f"{run} has no epoch yet")
    flags = (arguments.test_dir, "--model", run, "--format", "json")
    ood = ["--ood-dir", *arguments.ood_dir] if arguments.ood_dir else []
    plain, tta = (json.loads(run_script("evaluate.py", *flags, *more)) for more in (ood, ["--tta"]))
    # Of all folders' images together, as if they were in one.
    others = plain["out_of_distribution"].values()
    counted = sum(folder["scored"] for folder in others)
    auroc = sum(folder["scored"] * folder["area_under_roc"] for folder in others) / counted if counted else None
    figures = ("accuracy", "log_loss", "calibration_error")
    return [
        f"{metadata['best']['val_accuracy']:.4f}", f"{metadata.get('temperature', 1.0):.3f}", plain["scored"],
        *(f"{plain[name]:.4f}" for name in (*figures, "chance_error")), plain["unknown"],
        "" if auroc is None else f"{auroc:.4f}", *(f"{tta[name]:.4f}" for name in figures),
    ]  # fmt: skip


if __name__ == "__main__":
    console.run(main)
