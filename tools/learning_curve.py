"""How many images do I need? Trains on more and more of them and draws the accuracy: python -m tools.learning_curve"""

import argparse
import collections
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, NO_DATA, PROJECT, UserError, number, say
from classifier.base.files import csv_text, digest_of, write_text
from classifier.training.settings import DEFAULTS, PRETRAINED_NETWORKS, recipe_of
from tools.scripts import read_table, run_script

COLUMNS = {  # name: type
    "network": str,
    "images per class": int,
    "seed": int,
    "image size": int,
    "images": str,
    "accuracy": float,
    "log loss": float,
    "minutes": float,
}
KEY = 5  # the first columns, which identify a training
IMAGES_SHOWN = 240_000  # in a training from scratch, if that is 20 to 100 epochs


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Train on the first N images of each class, for several N: the default network without and with "
        "augmentation, and a pretrained one. Score each on other images, and draw accuracy against N.",
        epilog="A training that is in FOLDER/learning_curve.csv already, with the same images, is not repeated.",
    )
    add = parser.add_argument
    add("--data-dir", type=Path, default=PROJECT / "training_data", metavar="FOLDER", help="default: training_data")
    add("--test-dir", type=Path, default=PROJECT / "testing_data", metavar="FOLDER", help="default: testing_data")
    add(
        "--sizes",
        type=number(int, 2),
        nargs="+",
        default=[100, 250, 500, 1000, 2400, 7000],
        metavar="N",
        help="images of each class (default: 100 250 500 1000 2400 7000)",
    )
    add("--seeds", type=number(int, 1), default=3, metavar="N", help="trainings for each point (default: 3)")
    add(
        "--pretrained",
        choices=["", *PRETRAINED_NETWORKS],
        default="mobilenet_v2",
        metavar="NAME",
        help="a network of keras.applications; '' for none (default: mobilenet_v2)",
    )
    add("--image-size", type=number(int, 8), metavar="PX", help="default: each network's own")
    add(
        "--output",
        type=Path,
        default=PROJECT / "runs" / "learning_curve",
        metavar="FOLDER",
        help="for the table and the drawing (default: runs/learning_curve)",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Train what is missing in the table, and draw the curve; returns the exit code."""
    arguments = parse_arguments(argv)
    from classifier.data.finding import find_images

    found = find_images(arguments.data_dir)
    test = find_images(arguments.test_dir, found.classes)  # checked first, before any training
    sizes = sizes_within(found, arguments.sizes)
    networks = {"cnn, no augmentation": ["cnn", "--no-augment"], "cnn": ["cnn"]}  # {name: [network, its flags]}
    if arguments.pretrained:
        networks[f"{arguments.pretrained}, frozen"] = [arguments.pretrained]
    recipes = {name: DEFAULTS | recipe_of(network, DEFAULTS["weights"]) for name, (network, *_) in networks.items()}
    image_sizes = {name: arguments.image_size or recipe["image_size"] for name, recipe in recipes.items()}
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = arguments.output / "learning_curve.csv"
    rows = read_table(table, COLUMNS, "--output")
    known_sizes = {*sizes, *(row[1] for row in rows)}
    digests = {size: images_digest(find_images(arguments.data_dir, limit_per_class=size), test) for size in known_sizes}
    seeds = range(arguments.seeds)
    wanted = [[name, size, seed, image_sizes[name], digests[size]] for seed in seeds for size in sizes for name in networks]
    known = [row[:KEY] for row in rows]
    with tempfile.TemporaryDirectory() as folder:  # one for all trainings, which share the cache of decoded images in it
        for i, key in enumerate(wanted, start=1):
            if key not in known:
                name, size, seed, image_size, _ = key
                say(f"{i} of {len(wanted)}: {name}, {size} of each class, seed {seed}")
                flags = [*networks[name], "--limit-per-class", size, "--seed", seed, "--image-size", image_size]
                rows.append([*key, *train_and_score(size, flags, arguments, folder)])
                write_text(table, csv_text(COLUMNS, sorted(rows)))
    # Rows with other images or another image size are not shown.
    shown = [row for row in rows if row[3] == image_sizes.get(row[0], row[3]) and row[4] == digests[row[1]]]
    show(shown, arguments.output / "learning_curve.png")
    return DONE


def images_digest(*found):
    """Identifies images, see dataset.Found, by their names and sizes, in whatever folder they are."""
    files = [(path.relative_to(each.folder), os.stat(path).st_size) for each in found for path in each.paths]
    return digest_of(*(os.fsencode(name) + b"\0%d\0" % size for name, size in files), size=6)


def sizes_within(found, sizes):
    """The sizes for which every class has enough images, see dataset.Found; says which are left out."""
    label, most = collections.Counter(found.labels).most_common()[-1]
    enough, too_large = [size for size in sizes if size <= most], [str(size) for size in sizes if size > most]
    if too_large:
        say(f"left out: {' '.join(too_large)} of each class; {found.folder} has {most} of {found.classes[label]!r}")
    if not enough:
        raise UserError(f"{found.folder} has too few images: give smaller --sizes", NO_DATA)
    return enough


def train_and_score(size, network_and_flags, arguments, folder):
    """[accuracy, log loss, minutes] of one training on `size` images of each class, on the test images."""
    started = time.monotonic()
    flags = ["--data-dir", arguments.data_dir, "--network", *network_and_flags]
    if network_and_flags[0] == "cnn":
        flags += ["--epochs", min(max(IMAGES_SHOWN // (2 * size), 20), 100)]
    run_script("train.py", *flags, "--output", folder)
    minutes = (time.monotonic() - started) / 60
    scores = json.loads(run_script("evaluate.py", arguments.test_dir, "--model", folder, "--format", "json"))
    return [round(scores["accuracy"], 5), round(scores["log_loss"], 5), round(minutes, 2)]


def show(rows, path):
    """Print and draw accuracy against images per class: mean and, if there are several trainings, standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, of_network in itertools.groupby(sorted(rows), key=lambda row: row[0]):
        points = []
        for size, group in itertools.groupby(of_network, key=lambda row: row[1]):
            accuracies = [100 * row[KEY] for row in group]
            mean, count = statistics.mean(accuracies), len(accuracies)
            deviation = statistics.stdev(accuracies) if count > 1 else 0.0
            spread = f" ± {deviation:.1f} % ({count} trainings)" if count > 1 else " %"
            print(f"{name}, {size} of each class: {mean:.1f}{spread}")
            points.append((size, mean, deviation))
        axes.errorbar(*zip(*points, strict=True), marker="o", capsize=3, label=name)
    sizes = sorted({row[1] for row in rows})
    axes.set(xscale="log", xlabel="training and validation images of each class", ylabel="accuracy on test images, %")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    console.run(main)
