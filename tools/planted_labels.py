"""How many wrong labels does evaluate.py --suspects find? Plants some: python -m tools.planted_labels --data-dir FOLDER"""

import argparse
import collections
import csv
import importlib.util
import os
import random
import tempfile
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, NO_DATA, PROJECT, UserError, number, say
from classifier.runs.folder import find_run
from tools.scripts import run_script

PARTS = (0.01, 0.02, 0.05)  # of the list: how many of the planted labels are in them?


def main(argv=None):
    """Plant, rank, count and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Give some images of a data set another label, in a temporary folder of links, and count how many of "
        "them evaluate.py --suspects ranks first; cleanlab, if it is installed, ranks by the same probabilities."
    )
    add = parser.add_argument
    add("--data-dir", type=Path, default=PROJECT / "training_data", metavar="FOLDER", help="default: training_data")
    add("--model", type=Path, default=PROJECT / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    add(
        "--rates",
        type=number(float, above=0, below=1),
        nargs="+",
        default=[0.01, 0.03],
        metavar="P",
        help="fractions of the labels that are made wrong (default: 0.01 0.03)",
    )
    add("--seeds", type=number(int, 1), default=3, metavar="N", help="plantings of each (default: 3)")
    arguments = parser.parse_args(argv)
    from classifier.data.finding import find_images

    found = find_images(arguments.data_dir)
    if len(found.classes) < 2:
        raise UserError(f"{arguments.data_dir} has only one class", NO_DATA)
    run = find_run(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        linked = Path(folder, "runs", run.name)  # the cache beside it serves all plantings, and is gone afterwards
        linked.parent.mkdir()
        linked.symlink_to(run)
        for rate in arguments.rates:
            totals, planted = collections.defaultdict(collections.Counter), 0
            for seed in range(arguments.seeds):
                say(f"{rate:.0%} wrong labels, seed {seed}")
                wrong = plant(found, Path(folder, f"{rate} {seed}"), rate, seed)
                planted += len(wrong)
                for method, ranked in rankings(Path(folder, f"{rate} {seed}"), linked).items():
                    for part in PARTS:
                        totals[method][part] += len(wrong & set(ranked[: round(part * len(found.paths))]))
                for pixels in linked.parent.glob(".cache/*.pixels"):  # of this planting alone
                    pixels.unlink()
            show(rate, len(found.paths), planted, totals, arguments.seeds)
    return DONE


def plant(found, folder, rate, seed):
    """Make class folders of links to the images found, see finding.Found, some in another class. Returns their paths."""
    rng = random.Random(seed)
    chosen = set(rng.sample(range(len(found.paths)), round(rate * len(found.paths))))
    wrong = set()
    for i, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
        if i in chosen:
            label = rng.choice([other for other in range(len(found.classes)) if other != label])
        link = folder / found.classes[label] / f"{i}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.abspath(path))
        if i in chosen:
            wrong.add(str(link))
    return wrong


def rankings(folder, run):
    """{method: paths, the most suspicious first}: of evaluate.py, and of cleanlab if it is installed."""
    table = folder.with_name("suspects.csv")
    run_script("evaluate.py", folder, "--model", run, "--suspects", table)
    with open(table, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    methods = {"evaluate.py": [row["path"] for row in rows]}
    if importlib.util.find_spec("cleanlab"):
        import numpy as np
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        from classifier.data.finding import find_images
        from classifier.predicting.suspects import find_suspects

        suspects = find_suspects(find_images(folder), run)  # once more, for the probabilities of all classes
        paths, labels = [str(path) for path in suspects.paths], suspects.labels
        probabilities = np.exp(suspects.log_probabilities)
        for score in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
            order = get_label_quality_scores(labels, probabilities, method=score).argsort(kind="stable")
            methods[f"cleanlab, {score}"] = [paths[i] for i in order]
        options = {"return_indices_ranked_by": "self_confidence", "n_jobs": 1}  # its processes can hang beside TensorFlow
        issues = find_label_issues(labels, probabilities, **options)
        methods["cleanlab, find_label_issues"] = [paths[i] for i in issues]
    return methods


def show(rate, images, planted, totals, seeds):
    """Print how many of the planted labels are in the first parts of each list, the mean of all plantings."""
    print(f"{rate:.0%} of {images} labels planted, {seeds} times: found in the first …")
    rows = [["", *(f"{part:.0%}" for part in PARTS)]]
    for method, counts in totals.items():
        rows.append([method, *(f"{counts[part] / planted:.1%}" for part in PARTS)])
    most = [min(1, round(part * images) * seeds / planted) for part in PARTS]
    rows.append(["the most that is possible", *(f"{fraction:.1%}" for fraction in most)])
    print(console.aligned(rows), flush=True)


if __name__ == "__main__":
    console.run(main)
