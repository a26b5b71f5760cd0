"""Measure training and prediction against Keras and PyTorch on this machine: python -m experiments.benchmark

All use the same network, the same files and the same batch size. Every measurement is a process of its own. They take turns,
round by round: if the speed of the machine changes, it changes for all of them alike. PyTorch is measured if it is there:
pip install -c requirements-optional.txt torch torchvision
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from classifier.base import console, cpu
from classifier.base.console import DONE, FAILED, PROJECT, UserError, number, say
from classifier.base.files import csv_text, write_text
from classifier.data.cache import decode_once
from classifier.data.finding import find_images
from classifier.data.images import decode_batches
from experiments.scripts import RESULTS, Parser, history_of, link_images, record_of, run_script, seconds_of

IMAGE_SIZE = 128
READING = {"image_size": (IMAGE_SIZE, IMAGE_SIZE), "follow_links": True, "verbose": False}  # for Keras
# Of a training step: the products of the convolutions and fully connected layers in the forward pass, and those for the
# gradients of their weights and inputs. The first convolution's input needs no gradient.
FLOP_PER_IMAGE = 0.409e9
# The flags of a training that does what the others do, in bfloat16 where the CPU has it.
PLAIN = ["--no-augment", "--dropout", "0", "--weight-decay", "0", "--label-smoothing", "0", "--ema", "0", "--lr", "1e-4"]
LIMIT = "training at the limit of the matrix product, images/s"
FIRST, LATER = "first epoch from files, images/s", "later epochs from files, images/s"
PREDICTING = "predicting files, whole process, images/s"
OURS, ONEDNN = "this project", ", oneDNN on"  # Keras with oneDNN, on a CPU where it is off as installed

Figures = dict[str, float]  # {what: images/s}


def main(argv: list[str] | None = None) -> int:
    """Measure everything in turn, print the table and write it as CSV; returns the exit code."""
    parser = Parser(__doc__)
    add = parser.add_argument
    parser.add_folder("--data-dir", "training_data", "images")
    add("--batch-size", type=number(int, 1), default=32, metavar="N", help="images in a step")
    add("--rounds", type=number(int, 1), default=5, metavar="N", help="how often each is measured")
    add("--epochs", type=number(int, 2), default=4, metavar="N", help="of a training")
    parser.add_folder("--output", RESULTS, "folder for the table")
    add("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)  # one measurement, in a process of its own
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(MEASUREMENTS[arguments.measure](arguments, arguments.measure)))
        return DONE
    absent = [] if importlib.util.find_spec("torchvision") else ["PyTorch"]
    absent += [] if cpu.has_bfloat16() else [BFLOAT16]
    absent += [ONEDNN] if cpu.has_onednn_as_installed() else []  # it would be measured twice
    measured = [who for who in MEASUREMENTS if not any(word in who for word in absent)]
    figures: dict[str, dict[str, list[float]]] = {}  # {what: {who: [a figure for each round]}}
    with tempfile.TemporaryDirectory() as folder:
        num_images = len(link_images(find_images(arguments.data_dir), Path(folder)))  # all three can read these folders
        for turn, who in itertools.product(range(arguments.rounds), measured):
            say(f"round {turn + 1} of {arguments.rounds}: {who}")
            for what, figure in measure(who, arguments, folder).items():
                figures.setdefault(what, {}).setdefault(who, []).append(figure)
    write_results(*summarize(figures), arguments.output, num_images)
    return DONE


def measure(who: str, arguments: argparse.Namespace, folder: str) -> Figures:
    """Run one measurement in a process of its own."""
    flags = ["--data-dir", folder, "--batch-size", str(arguments.batch_size), "--epochs", str(arguments.epochs)]
    environment = dict(os.environ)
    if who.startswith("Keras"):
        environment["TF_ENABLE_ONEDNN_OPTS"] = "1" if who.endswith(ONEDNN) or cpu.has_onednn_as_installed() else "0"
    command = [sys.executable, "-m", "experiments.benchmark", "--measure", who, *flags]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PROJECT)
    if finished.returncode:
        raise UserError(f"{who} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])


def summarize(figures: dict[str, dict[str, list[float]]]) -> tuple[list[str], list[list]]:
    """(header, rows): median, least and greatest of every figure, its share of the limit, and the ratio of ours to it."""
    header = ["what", "who", "median", "least", "greatest", "runs", "of the limit", "ours / this"]
    (limit,) = (statistics.median(values) for values in figures[LIMIT].values())
    rows = []
    for what, by_who in figures.items():
        for who, values in by_who.items():
            median = statistics.median(values)
            shown = [f"{value:.1f}" for value in (median, min(values), max(values))]
            share = f"{median / limit:.0%}" if what == LATER else ""
            ours = next((name for name in by_who if name.startswith(OURS)), who)
            ratio = f"{statistics.median(by_who[ours]) / median:.2f}" if who != ours else ""
            rows.append([what, who, *shown, len(values), share, ratio])
    return header, rows


def write_results(header: list[str], rows: list[list], output: Path, num_images: int) -> None:
    """Print the table, and write it to a file that is named after the CPU and the versions."""
    limited = " (limited)" if os.environ.get("ONEDNN_MAX_CPU_ISA") else ""
    machine = [cpu.name(), f"{cpu.instruction_set()}{limited}", cpu.cores()]
    print("CPU: {}, {}, {} cores".format(*machine), console.aligned([header, *rows]), sep="\n")
    output.mkdir(parents=True, exist_ok=True)
    name, instructions = (re.sub(r"[^A-Za-z0-9_]+", "-", part).strip("-") for part in machine[:2])
    packages = [package for package in ("tensorflow", "keras", "torch") if importlib.util.find_spec(package)]
    versions = "-".join(package + importlib.metadata.version(package).split("+")[0] for package in packages)
    path = output / f"bench-{name}-{instructions}-{machine[2]}cores-{versions}-{num_images}images.csv"
    write_text(path, csv_text([*header, "CPU", "instruction set", "cores"], ([*row, *machine] for row in rows)))
    say(f"written to {path}")


def limits(arguments: argparse.Namespace, _who: str) -> Figures:
    """What this machine can do at most: a float32 matrix product, and decoding JPEG files on all cores."""
    import tensorflow as tf

    matrix = tf.random.normal((2048, 2048))
    multiply = tf.function(lambda: tf.reduce_sum(matrix @ matrix))
    multiply()
    flop_per_second = 2 * 2048**3 / min(seconds_of(lambda: multiply().numpy()) for _ in range(10))
    paths = find_images(arguments.data_dir).paths
    decoded_per_second = len(paths) / seconds_of(lambda: list(decode_batches(paths, IMAGE_SIZE)))
    figures = {"float32 matrix product, GFLOP/s": flop_per_second / 1e9, LIMIT: flop_per_second / FLOP_PER_IMAGE}
    return figures | {"decoding files, images/s": decoded_per_second}


def our_training(arguments: argparse.Namespace, who: str) -> Figures:
    """train.py, as its history says; the first epoch with decoding, all with validation and saving."""
    flags = [] if "all defaults" in who else PLAIN if BFLOAT16 in who else [*PLAIN, "--no-mixed-precision"]
    with tempfile.TemporaryDirectory() as folder:
        decoding = seconds_of(decode_once, find_images(arguments.data_dir).paths, IMAGE_SIZE, Path(folder, ".cache"))
        sizes = ["--image-size", IMAGE_SIZE, "--batch-size", arguments.batch_size, "--epochs", arguments.epochs]
        data = ["--data-dir", arguments.data_dir, "--no-group-near-copies", "--output", folder]
        run_script("train.py", *data, *sizes, *flags)
        run = Path(folder, "001")
        images = sum(side["training"] for side in record_of(run)["images"].values())
        return epoch_figures(images, decoding, [row["seconds"] for row in history_of(run)])


def epoch_figures(num_images: int, before: float, seconds: list[float]) -> Figures:
    """Training images/s from the seconds that each epoch takes, and those before the first one."""
    first, *later = seconds
    return {FIRST: num_images / (before + first), LATER: num_images / statistics.median(later)}


def keras_network():
    """The same network as Keras users write it, compiled."""
    import keras
    from keras import layers

    blocks = [(layers.Conv2D(n, 3, padding="same"), layers.MaxPooling2D(), layers.ReLU()) for n in (32, 32, 64)]
    first = [keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3)), layers.Rescaling(1 / 127.5, offset=-1)]
    last = [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(2)]
    in_float32 = layers.Activation("linear", dtype="float32")
    network = keras.Sequential([*first, *itertools.chain(*blocks), *last, in_float32])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"])
    return network


def keras_training(arguments: argparse.Namespace, who: str) -> Figures:
    """Keras' fit, fed by image_dataset_from_directory."""
    import keras
    import tensorflow as tf

    tf.zeros(1)  # starts TensorFlow
    if BFLOAT16 in who:
        keras.config.set_dtype_policy("mixed_bfloat16")
    times = [time.perf_counter()]
    split = {"validation_split": 0.2, "subset": "both", "seed": 0}
    read = keras.utils.image_dataset_from_directory
    train, valid = read(arguments.data_dir, batch_size=arguments.batch_size, **split, **READING)
    num_images = len(train.file_paths)
    if CACHED in who:
        train, valid = train.cache(), valid.cache()
    train, valid = train.prefetch(tf.data.AUTOTUNE), valid.prefetch(tf.data.AUTOTUNE)
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: times.append(time.perf_counter()))
    keras_network().fit(train, validation_data=valid, epochs=arguments.epochs, verbose=0, callbacks=[note])
    return epoch_figures(num_images, 0, [end - start for start, end in itertools.pairwise(times)])


def torch_training(arguments: argparse.Namespace, who: str) -> Figures:
    """The same network in PyTorch, channels last, fed by ImageFolder and DataLoader."""
    import torch
    from torch import nn
    from torchvision import datasets, transforms

    torch.set_num_threads(cpu.cores())
    started = time.perf_counter()
    steps = [transforms.Resize((IMAGE_SIZE, IMAGE_SIZE)), transforms.PILToTensor()]
    images = datasets.ImageFolder(arguments.data_dir, transforms.Compose(steps))
    images = list(images) if CACHED in who else images
    before = time.perf_counter() - started
    train, valid = torch.utils.data.random_split(images, (0.8, 0.2))
    workers = 2 if "2 workers" in who else 0
    load = partial(torch.utils.data.DataLoader, num_workers=workers, persistent_workers=workers > 0)
    train, valid = (load(part, arguments.batch_size, shuffle=part is train) for part in (train, valid))
    blocks = [(nn.Conv2d(n, m, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()) for n, m in ((3, 32), (32, 32), (32, 64))]
    head = [nn.Flatten(), nn.Linear((IMAGE_SIZE // 8) ** 2 * 64, 128), nn.ReLU(), nn.Linear(128, 2)]
    network = nn.Sequential(*itertools.chain(*blocks), *head).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=True)

    def logits_of(pixels):
        with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16 in who):
            return network(pixels.contiguous(memory_format=torch.channels_last).float() / 127.5 - 1)

    def epoch():
        for pixels, labels in train:
            loss = nn.functional.cross_entropy(logits_of(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for pixels, labels in valid:
                logits_of(pixels).argmax(1).eq(labels).sum().item()

    return epoch_figures(len(train.dataset), before, [seconds_of(epoch) for _ in range(arguments.epochs)])


def our_predictions(arguments: argparse.Namespace, _who: str) -> Figures:
    """predict.py as a user runs it, the start of Python included, with a network that train.py made just before."""
    with tempfile.TemporaryDirectory() as folder:
        run_script("train.py", "--limit-per-class", 20, "--epochs", 1, "--image-size", IMAGE_SIZE, "--output", folder)
        predict = partial(run_script, codes=(DONE, FAILED))  # some images may be unreadable
        seconds = seconds_of(predict, "predict.py", "--model", folder, "--format", "csv", arguments.data_dir)
    return {PREDICTING: len(find_images(arguments.data_dir).paths) / seconds}


def keras_predictions(arguments: argparse.Namespace, _who: str) -> Figures:
    """Keras' predict, fed by image_dataset_from_directory, the imports included."""
    started = time.perf_counter()
    import keras
    import tensorflow as tf

    read = keras.utils.image_dataset_from_directory
    images = read(arguments.data_dir, labels=None, batch_size=64, shuffle=False, **READING)
    keras_network().predict(images.prefetch(tf.data.AUTOTUNE), verbose=0)
    return {PREDICTING: len(images.file_paths) / (time.perf_counter() - started)}


BFLOAT16, CACHED = "bfloat16", "cached"
MEASUREMENTS: dict[str, Callable[[argparse.Namespace, str], Figures]] = {  # {who: function of the command line and who}
    "this machine": limits,
    OURS: our_training,
    f"{OURS}, {BFLOAT16}": our_training,
    f"{OURS}, all defaults": our_training,
    "Keras fit": keras_training,
    f"Keras fit, {CACHED}": keras_training,
    f"Keras fit, {CACHED}{ONEDNN}": keras_training,
    f"Keras fit, {CACHED}, {BFLOAT16}": keras_training,
    "PyTorch": torch_training,
    "PyTorch, 2 workers": torch_training,
    f"PyTorch, {CACHED}": torch_training,
    f"PyTorch, {CACHED}, {BFLOAT16}": torch_training,
    f"{OURS}, predicting": our_predictions,
    "Keras predict": keras_predictions,
}


if __name__ == "__main__":
    console.run(main)
