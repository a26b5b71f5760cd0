"""Plant wrong labels, and count how many evaluate.py --suspects ranks first: python -m experiments.suspects

They are planted in a temporary folder of links. cleanlab, if it is installed, ranks by the same probabilities.
"""

import collections
import csv
import importlib.util
import random
import tempfile
from pathlib import Path

import numpy as np

from classifier.base import console
from classifier.base.console import DONE, NO_DATA, UserError, number, say
from classifier.data.finding import find_images
from classifier.runs.folder import find_run
from experiments.scripts import Parser, link_images, run_script

PARTS = (0.01, 0.02, 0.05)  # of the list: how many of the planted labels are in them?


def main(argv: list[str] | None = None) -> int:
    """Plant, rank, count and print; returns the exit code."""
    parser = Parser(__doc__)
    add = parser.add_argument
    parser.add_folder("--data-dir", "training_data", "labelled images")
    parser.add_folder("--model", "runs", "a run folder, or a folder of them: the newest finished one")
    rate = number(float, above=0, below=1)
    add("--rates", type=rate, nargs="+", default=[0.01, 0.03], metavar="P", help="fractions of labels that are made wrong")
    add("--seeds", type=number(int, 1), default=3, metavar="N", help="plantings of each")
    arguments = parser.parse_args(argv)
    found = find_images(arguments.data_dir)
    if len(found.classes) < 2:
        raise UserError(f"{arguments.data_dir} has only one class", NO_DATA)
    run = find_run(arguments.model).path
    with tempfile.TemporaryDirectory() as folder:
        linked = Path(folder, "runs", run.name)  # the cache beside it serves all plantings, and is gone afterwards
        linked.parent.mkdir()
        linked.symlink_to(run)
        for rate in arguments.rates:
            counts, planted = plant_and_count(found, linked, rate, arguments.seeds, Path(folder))
            show(rate, len(found.paths), counts, planted, arguments.seeds)
    return DONE


def plant_and_count(found, run: Path, rate: float, seeds: int, folder: Path) -> tuple[dict, int]:
    """({method: how many planted labels are in each of PARTS of its list}, how many were planted)."""
    counts: dict = collections.defaultdict(collections.Counter)
    planted = 0
    for seed in range(seeds):
        say(f"{rate:.0%} wrong labels, seed {seed}")
        images = folder / f"{rate} {seed}"
        wrong = plant(found, images, rate, seed)
        planted += len(wrong)
        for method, ranked in rankings(images, run).items():
            for part in PARTS:
                counts[method][part] += len(wrong & set(ranked[: round(part * len(found.paths))]))
    return counts, planted


def plant(found, folder: Path, rate: float, seed: int) -> set[str]:
    """Make class folders of links to the images found, see finding.Found, some in another class. Returns their paths."""
    rng = random.Random(seed)
    chosen = sorted(rng.sample(range(len(found.paths)), round(rate * len(found.paths))))
    labels = list(found.labels)
    for i in chosen:
        labels[i] = rng.choice([other for other in range(len(found.classes)) if other != labels[i]])
    links = link_images(found, folder, labels)
    return {str(links[i]) for i in chosen}


def rankings(folder: Path, run: Path) -> dict[str, list[str]]:
    """{method: paths, the most suspicious first}: of evaluate.py, and of cleanlab if it is installed."""
    table = folder.with_name("suspects.csv")
    run_script("evaluate.py", folder, "--model", run, "--suspects", table)
    with open(table, newline="", encoding="utf-8", errors="surrogateescape") as file:
        methods = {"evaluate.py": [row["path"] for row in csv.DictReader(file)]}
    if importlib.util.find_spec("cleanlab"):
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        from classifier.predicting.suspects import find_suspects
        from dataset import read_labelled

        opened, found = find_run(run), find_images(folder)
        images, _ = read_labelled(found, opened.record.image_size, opened.record.fit, opened.cache)
        suspects = find_suspects(images, found.classes, opened)  # once more, for the probabilities of all classes
        paths, labels = [str(path) for path in suspects.paths], suspects.labels
        probabilities = np.exp(suspects.log_probabilities)
        for score in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
            order = get_label_quality_scores(labels, probabilities, method=score).argsort(kind="stable")
            methods[f"cleanlab, {score}"] = [paths[i] for i in order]
        # Its processes can hang beside TensorFlow.
        issues = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
        methods["cleanlab, find_label_issues"] = [paths[i] for i in issues]
    return methods


def show(rate: float, images: int, counts: dict, planted: int, seeds: int) -> None:
    """Print how many of the planted labels are in the first parts of each list, the mean of all plantings."""
    print(f"{rate:.0%} of {images} labels planted, {seeds} times: found in the first …")
    rows = [["", *(f"{part:.0%}" for part in PARTS)]]
    rows += [[method, *(f"{found[part] / planted:.1%}" for part in PARTS)] for method, found in counts.items()]
    most = [min(1, round(part * images) * seeds / planted) for part in PARTS]
    rows.append(["the most that is possible", *(f"{fraction:.1%}" for fraction in most)])
    print(console.aligned(rows), flush=True)


if __name__ == "__main__":
    console.run(main)
