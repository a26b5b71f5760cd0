"""Score trained networks on test images, a row of a table for each: python -m experiments.accuracy cnn-2400 runs/001

With --ood-dir, folders of images of other things, also how well these are recognized as unknown, in a second table: the area
under the ROC curve; how many of them are unknown where the threshold loses 2 % of the test images; and how many of both are
with the threshold of the run.
"""

import json
from pathlib import Path

import numpy as np

from classifier.base import console
from classifier.base.console import DONE, FAILED, UserError
from classifier.runs.folder import find_run
from experiments.scripts import RESULTS, Parser, add_to_table, checked_out_commit, record_of, run_script

TESTS = "training,seed,commit,validation accuracy,temperature,test images,accuracy,log loss,calibration error,by chance,"
TESTS += "called unknown,OOD AUROC,accuracy --tta,log loss --tta,calibration error --tta"
UNKNOWN = "training,seed,commit,test folder,other folder,test images,other images,AUROC,unknown at 2 % lost,lost,unknown"
LOST = 0.02  # of the test images


def main(argv: list[str] | None = None) -> int:
    """Score each run; returns the exit code."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("training", help="name of the trainings in the table, such as cnn-2400")
    add("runs", type=Path, nargs="+", metavar="RUN", help="run folders, one for each seed")
    parser.add_folder("--test-dir", "testing_data", "labelled images")
    add("--ood-dir", type=Path, nargs="+", default=[], metavar="FOLDER", help="images of other things")
    add("--commit", help="the commit of this project that trained them; None: the one that is checked out")
    parser.add_folder("--tables", RESULTS, "folder for tests.csv and unknown.csv")
    arguments = parser.parse_args(argv)
    commit = arguments.commit or checked_out_commit()
    for run in (find_run(path).path for path in arguments.runs):
        record = record_of(run)
        key = [arguments.training, record["settings"]["seed"], commit]
        areas, weights = [], []
        test_scores = ood_scores(run, arguments.test_dir) if arguments.ood_dir else []
        for folder in arguments.ood_dir:
            others = ood_scores(run, folder)
            figures = ood_figures(test_scores, others)
            areas, weights = [*areas, figures[0]], [*weights, len(others)]
            cells = [len(test_scores), len(others), *(f"{figure:.4f}" for figure in figures)]
            report(arguments.tables / "unknown.csv", UNKNOWN, 5, [*key, arguments.test_dir, folder, *cells])
        area = f"{np.average(areas, weights=weights):.4f}" if areas else ""  # of all folders, by their numbers of images
        report(arguments.tables / "tests.csv", TESTS, 3, [*key, *scores_of(run, record, arguments.test_dir, area)])
    return DONE


def report(table: Path, columns: str, key: int, cells: list) -> None:
    """Print a row, and put it into a table."""
    names = columns.split(",")
    add_to_table(table, names, key, cells)
    print(", ".join(f"{name} {cell}" for name, cell in zip(names, cells, strict=True)), flush=True)


def scores_of(run: Path, record: dict, test_dir: Path, area: str) -> list[object]:
    """The figures of one run, in the order of TESTS from the validation accuracy on, without and with augmentation."""
    flags = (test_dir, "--model", run, "--format", "json")
    plain, tta = (json.loads(run_script("evaluate.py", *flags, *more)) for more in ([], ["--tta"]))
    figures = ("accuracy", "log_loss", "calibration_error")
    return [
        f"{record['selected']['val_accuracy']:.4f}",
        f"{record['temperature']:.3f}",
        plain["scored"],
        *(f"{plain[name]:.4f}" for name in (*figures, "chance_error")),
        plain["unknown"],
        area,
        *(f"{tta[name]:.4f}" for name in figures),
    ]


def ood_scores(run: Path, folder: Path) -> list[float]:
    """The OOD scores of the images in a folder, relative to the threshold of the run. Raises UserError without any."""
    output = run_script("predict.py", "--model", run, "--format", "json", folder, codes=(DONE, FAILED))
    scores = [image["ood_score"] for image in json.loads(output) if "ood_score" in image]
    if not any(scores):
        raise UserError(f"{run} has no out-of-distribution scores for {folder}")
    return scores


def ood_figures(test_scores: list[float], other_scores: list[float]) -> list[float]:
    """The area under the ROC curve, and what is unknown: of others at 2 % lost; of the test images and others as it is."""
    from sklearn.metrics import roc_auc_score

    is_other = [0] * len(test_scores) + [1] * len(other_scores)
    threshold = np.quantile(test_scores, 1 - LOST)
    pairs = (other_scores, threshold), (test_scores, 1), (other_scores, 1)
    shares = [float(np.mean(np.array(scores) > limit)) for scores, limit in pairs]
    return [float(roc_auc_score(is_other, test_scores + other_scores)), *shares]


if __name__ == "__main__":
    console.run(main)
