"""How many images do I need? Trains on more and more of them, and draws accuracy: python -m experiments.learning_curve

The default network without and with augmentation and a pretrained one are trained on the first N images of each class, for
several N, and scored on others. What is in FOLDER/learning_curve.csv already, with the same images, is not trained again.
"""

import collections
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, NO_DATA, UserError, number, say
from classifier.base.files import digest_of
from classifier.data.finding import find_images
from experiments.scripts import Parser, add_to_table, read_table, run_script

COLUMNS = ["network", "images per class", "seed", "image size", "images", "accuracy", "log loss", "minutes"]
KEY = 5  # the first columns, which identify a training
IMAGES_SHOWN, LEAST_EPOCHS, MOST_EPOCHS = 240_000, 20, 100  # in a training from scratch
NETWORKS = {"cnn, no augmentation": ["cnn", "--no-augment"], "cnn": ["cnn"]}  # {name: [network, its flags]}


def main(argv: list[str] | None = None) -> int:
    """Train what is missing in the table, and draw the curve; returns the exit code."""
    parser = Parser(__doc__)
    add = parser.add_argument
    parser.add_folder("--data-dir", "training_data", "to train on")
    parser.add_folder("--test-dir", "testing_data", "to score")
    sizes = [100, 250, 500, 1000, 2400, 7000]
    add("--sizes", type=number(int, 2), nargs="+", default=sizes, metavar="N", help="images of each class")
    add("--seeds", type=number(int, 1), default=3, metavar="N", help="trainings for each point")
    add("--pretrained", default="mobilenet_v2", metavar="NAME", help="a network of keras.applications; '' for none")
    add("--image-size", type=number(int, 8), metavar="PX", help="None: each network's own")
    parser.add_folder("--output", "runs/learning_curve", "for the table and the drawing")
    arguments = parser.parse_args(argv)
    found = find_images(arguments.data_dir)
    test = find_images(arguments.test_dir, found.classes)  # checked first, before any training
    most = min(collections.Counter(found.labels).values())
    sizes = [size for size in arguments.sizes if size <= most]
    if not sizes:
        raise UserError(f"{found.folder} has {most} images of a class: give smaller --sizes", NO_DATA)
    pretrained = {f"{arguments.pretrained}, frozen": [arguments.pretrained]} if arguments.pretrained else {}
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = arguments.output / "learning_curve.csv"
    digests = {size: images_digest(find_images(arguments.data_dir, limit_per_class=size), test) for size in sizes}
    shown = []
    with tempfile.TemporaryDirectory() as folder:  # one for all trainings, which share the cache of decoded images in it
        for seed, size, (name, network) in itertools.product(range(arguments.seeds), sizes, (NETWORKS | pretrained).items()):
            key = [name, str(size), str(seed), str(arguments.image_size or "own"), digests[size]]
            shown.append(key)
            if key not in (list(row.values())[:KEY] for row in read_table(table, COLUMNS)):
                say(f"{name}, {size} of each class, seed {seed}")
                flags = [*network, "--limit-per-class", size, "--seed", seed]
                flags += ["--image-size", arguments.image_size] if arguments.image_size else []
                add_to_table(table, COLUMNS, KEY, [*key, *train_and_score(size, flags, arguments, folder)])
    rows = [row for row in read_table(table, COLUMNS) if list(row.values())[:KEY] in shown]
    show(rows, arguments.output / "learning_curve.png")
    return DONE


def images_digest(*found) -> str:
    """Identifies images, see finding.Found, by their names and sizes, in whatever folder they are."""
    files = [(path.relative_to(each.folder), os.stat(path).st_size) for each in found for path in each.paths]
    return digest_of(*(os.fsencode(name) + b"\0%d\0" % size for name, size in files), size=6)


def train_and_score(size: int, network_and_flags: list, arguments, folder: str) -> list[float]:
    """[accuracy, log loss, minutes] of one training on `size` images of each class, on the test images."""
    started = time.monotonic()
    flags = ["--data-dir", arguments.data_dir, "--network", *network_and_flags]
    if network_and_flags[0] == "cnn":
        flags += ["--epochs", min(max(IMAGES_SHOWN // (2 * size), LEAST_EPOCHS), MOST_EPOCHS)]
    run_script("train.py", *flags, "--output", folder)
    minutes = (time.monotonic() - started) / 60
    scores = json.loads(run_script("evaluate.py", arguments.test_dir, "--model", folder, "--format", "json"))
    return [round(scores["accuracy"], 5), round(scores["log_loss"], 5), round(minutes, 2)]


def show(rows: list[dict[str, str]], path: Path) -> None:
    """Print and draw accuracy against images per class: mean and, if there are several trainings, standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    points = collections.defaultdict(lambda: collections.defaultdict(list))  # {network: {images of each class: accuracies}}
    for row in rows:
        points[row["network"]][int(row["images per class"])].append(100 * float(row["accuracy"]))
    for name, of_network in sorted(points.items()):
        drawn = []
        for size, accuracies in sorted(of_network.items()):
            mean, count = statistics.mean(accuracies), len(accuracies)
            deviation = statistics.stdev(accuracies) if count > 1 else 0.0
            spread = f" ± {deviation:.1f} % ({count} trainings)" if count > 1 else " %"
            print(f"{name}, {size} of each class: {mean:.1f}{spread}")
            drawn.append((size, mean, deviation))
        axes.errorbar(*zip(*drawn, strict=True), marker="o", capsize=3, label=name)
    sizes = sorted({size for of_network in points.values() for size in of_network})
    axes.set(xscale="log", xlabel="training and validation images of each class", ylabel="accuracy on test images, %")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    console.run(main)
