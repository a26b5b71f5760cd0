"""How many images do I need? Trains on more and more of them and draws the accuracy: python -m tools.learning_curve"""

import argparse
import collections
import csv
import importlib.util
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from classifier import console
from classifier.console import DONE, NO_DATA, PROJECT, USAGE, UserError, number, say
from classifier.files import csv_text, digest_of, write_text
from classifier.settings import DEFAULTS, PRETRAINED_NETWORKS, RECIPES
from tools.scripts import run_script

COLUMNS = {  # name: kind
    "network": str, "pictures per class": int, "seed": int, "image size": int, "pictures": str, "accuracy": float,
    "log loss": float, "minutes": float,
}  # fmt: skip
KEY = 5  # the first so many columns tell one training from another
IMAGES_SHOWN = 240_000  # in a training from scratch, if that is 20 to 100 epochs


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Train on the first N images of each class, for several N: the default network without and with "
        "augmentation, and a pretrained one; score each on other images, and draw accuracy against N.",
        epilog="What is in FOLDER/learning_curve.csv already, with the same images, is not trained again.",
    )
    add = parser.add_argument
    add("--data-dir", type=Path, default=PROJECT / "training_data", metavar="FOLDER", help="default: training_data")
    add("--test-dir", type=Path, default=PROJECT / "testing_data", metavar="FOLDER", help="default: testing_data")
    add("--sizes", type=number(int, 2), nargs="+", default=[100, 250, 500, 1000, 2400, 7000], metavar="N",
        help="images of each class (default: 100 250 500 1000 2400 7000)")  # fmt: skip
    add("--seeds", type=number(int, 1), default=3, metavar="N", help="trainings for each point (default: 3)")
    add("--pretrained", choices=["", *PRETRAINED_NETWORKS], default="mobilenet_v2", metavar="NAME",
        help="a network of keras.applications; '' for none (default: mobilenet_v2)")  # fmt: skip
    add("--image-size", type=number(int, 8), metavar="PX", help="default: each network's own")
    add("--output", type=Path, default=PROJECT / "runs" / "learning_curve", metavar="FOLDER",
        help="of table and drawing (default: runs/learning_curve)")  # fmt: skip
    return parser.parse_args(argv)


def main(argv=None):
    """Train what is missing in the table, and draw it; returns the exit code."""
    arguments = parse_arguments(argv)
    from dataset import find_images

    found = find_images(arguments.data_dir)
    test = find_images(arguments.test_dir, found.classes)  # or a wrong one would cost a training
    sizes = sizes_within(found, arguments.sizes)
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("learning_curve needs matplotlib: pip install -c requirements-optional.txt matplotlib", USAGE)
    networks = {"cnn, no augmentation": ("cnn", ["--no-augment"]), "cnn": ("cnn", [])}  # {what: (network, flags)}
    if arguments.pretrained:
        networks[f"{arguments.pretrained}, frozen"] = (arguments.pretrained, [])
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = arguments.output / "learning_curve.csv"
    rows = read_rows(table)
    known = {tuple(row[:KEY]) for row in rows}
    defaults = {name: (DEFAULTS | RECIPES[network])["image_size"] for name, (network, _) in networks.items()}
    px = {name: arguments.image_size or size for name, size in defaults.items()}
    known_sizes = {*sizes, *(row[1] for row in rows)}
    seen = {size: images_digest(find_images(arguments.data_dir, limit_per_class=size), test) for size in known_sizes}
    seeds = range(arguments.seeds)
    wanted = [(name, size, seed, px[name], seen[size]) for seed in seeds for size in sizes for name in networks]
    with tempfile.TemporaryDirectory() as folder:
        for i, key in enumerate(wanted, start=1):
            if key not in known:
                name, size, seed, image_size, _ = key
                say(f"{i} of {len(wanted)}: {name}, {size} of each class, seed {seed}")
                network, flags = networks[name]
                flags = ["--network", network, *flags, "--limit-per-class", size, "--seed", seed, "--image-size", image_size]
                rows.append([*key, *train_and_score(network, flags, size, arguments, folder)])
                write_text(table, csv_text(COLUMNS, sorted(rows)))
    # Not those of other images, nor of other image sizes.
    shown = [row for row in rows if row[3] == px.get(row[0], row[3]) and row[4] == seen[row[1]]]
    draw(shown, arguments.output / "learning_curve.png")
    print(table_of(shown))
    return DONE


def images_digest(*found):
    """Identifies images, see dataset.Found, by their names and sizes, wherever they are."""
    files = [(path.relative_to(each.folder), os.stat(path).st_size) for each in found for path in each.paths]
    return digest_of(*(os.fsencode(name) + b"\0%d\0" % size for name, size in files), size=6)


def sizes_within(found, sizes):
    """Those of the sizes that every class has images for, see dataset.Found; says which are left out."""
    label, most = collections.Counter(found.labels).most_common()[-1]
    enough = [size for size in sizes if size <= most]
    if len(enough) < len(sizes):
        left_out = " ".join(str(size) for size in sizes if size > most)
        say(f"left out: {left_out} of each class; {found.folder} has {most} of {found.classes[label]!r}")
    if not enough:
        raise UserError(f"{found.folder} has too few images: give smaller --sizes", NO_DATA)
    return enough


def read_rows(table):
    """The rows of an earlier table, [] if there is none."""
    if not table.exists():
        return []
    try:
        with open(table, newline="", encoding="utf-8") as file:
            return [[kind(row[name]) for name, kind in COLUMNS.items()] for row in csv.DictReader(file)]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{table} is damaged, or of an earlier version: restore it, or choose another --output") from None


def train_and_score(network, flags, size, arguments, folder):
    """[accuracy, log loss, minutes] of one training, on the test images."""
    started = time.monotonic()
    if network == "cnn":
        flags = [*flags, "--epochs", min(max(IMAGES_SHOWN // (2 * size), 20), 100)]
    run_script("train.py", "--data-dir", arguments.data_dir, "--output", folder, *flags)
    minutes = (time.monotonic() - started) / 60
    scores = json.loads(run_script("evaluate.py", arguments.test_dir, "--model", folder, "--format", "json"))
    return [round(scores["accuracy"], 5), round(scores["log_loss"], 5), round(minutes, 2)]


def points_of(rows):
    """{network: [(images per class, mean accuracy, standard deviation, trainings)]}, in percent."""
    found = {}
    for row in rows:
        found.setdefault(row[0], {}).setdefault(row[1], []).append(100 * row[KEY])
    return {
        name: [
            (size, statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))
            for size, values in sorted(by_size.items())
        ]
        for name, by_size in sorted(found.items())
    }


def table_of(rows):
    """The points as text: mean ± standard deviation, where there are several trainings."""
    return "\n".join(
        f"{name}, {size} of each class: {mean:.1f}" + (f" ± {deviation:.1f} % ({count} trainings)" if count > 1 else " %")
        for name, points in points_of(rows).items()
        for size, mean, deviation, count in points
    )


def draw(rows, path):
    """Accuracy against images per class, with error bars of one standard deviation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in points_of(rows).items():
        sizes, means, deviations, _ = zip(*points, strict=True)
        axes.errorbar(sizes, means, deviations, marker="o", capsize=3, label=name)
    sizes = sorted({row[1] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="training and validation images of each class", ylabel="accuracy on test images, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    console.run(main)
