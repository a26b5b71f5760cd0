"""Measure how well `unknown` works, one row of a table for each training and each folder of images of other things:

python -m tools.ood_table cnn-2400 runs/001 --test-dir my_test_images --ood-dir other_images
"""

import argparse
import json
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, FAILED, PROJECT, UserError
from classifier.base.files import csv_text, write_text
from classifier.runs.folder import find_run, read_metadata
from tools.scripts import checked_out_commit, read_table, run_script

COLUMNS = [
    "training",
    "seed",
    "commit",
    "test folder",
    "other folder",
    "test images",
    "other images",
    "AUROC",
    "unknown at 2 % lost",
    "lost",
    "unknown",
]
KEY = 5  # the first columns, which identify a row
LOST = 0.02  # of the test images


def main(argv=None):
    """Score each run on each folder of images of other things; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Measure how well images of other things are recognized as unknown: the area under the ROC curve; "
        "the fraction of them that are unknown with the threshold with which 2 % of the test images are, too (lost); "
        "and both fractions with the threshold of the run."
    )
    add = parser.add_argument
    add("training", help="name of the trainings in the table, such as cnn-2400")
    add("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="one for each seed")
    add("--test-dir", type=Path, default=PROJECT / "testing_data", metavar="FOLDER", help="default: testing_data")
    add("--ood-dir", type=Path, nargs="+", required=True, metavar="FOLDER", help="images of other things")
    add("--commit", help="the commit of this project that trained them (default: the one that is checked out)")
    add(
        "--table",
        type=Path,
        default=PROJECT / "results" / "unknown.csv",
        metavar="FILE",
        help="default: results/unknown.csv",
    )
    arguments = parser.parse_args(argv)
    commit = arguments.commit or checked_out_commit()
    rows = read_table(arguments.table, dict.fromkeys(COLUMNS, str), "--table")
    for run in map(find_run, arguments.runs):
        seed = str(read_metadata(run)["settings"]["seed"])
        test_scores = ood_scores(run, arguments.test_dir)
        for folder in arguments.ood_dir:
            key = [arguments.training, seed, commit, str(arguments.test_dir), str(folder)]
            row = [*key, *figures(test_scores, ood_scores(run, folder))]
            rows = [other for other in rows if other[:KEY] != key] + [row]
            write_text(arguments.table, csv_text(COLUMNS, rows))
            print(", ".join(f"{name} {value}" for name, value in zip(COLUMNS, row, strict=True)))
    return DONE


def ood_scores(run, folder):
    """The OOD scores of the images in a folder, a list of them relative to the threshold of the run."""
    output = run_script("predict.py", "--model", run, "--format", "json", folder, codes=(DONE, FAILED))
    scores = [image["ood_score"] for image in json.loads(output) if "ood_score" in image]
    if not any(scores):
        raise UserError(f"{run} has no out-of-distribution scores for {folder}")
    return scores


def figures(test_scores, other_scores):
    """The figures of a row as text, in the order of COLUMNS from the number of test images on."""
    import numpy as np  # not before it is needed: --help answers at once

    from sklearn.metrics import roc_auc_score

    threshold = np.quantile(test_scores, 1 - LOST)
    pairs = (other_scores, threshold), (test_scores, 1), (other_scores, 1)
    shares = [np.mean(np.array(scores) > limit) for scores, limit in pairs]
    counts = [str(len(scores)) for scores in (test_scores, other_scores)]
    return [
        *counts,
        f"{roc_auc_score([0] * len(test_scores) + [1] * len(other_scores), [*test_scores, *other_scores]):.4f}",
        *(f"{share:.4f}" for share in shares),
    ]


if __name__ == "__main__":
    console.run(main)
