"""Measure what a training costs, term by term: python -m tools.costs [PART ...]

Prints the tables of measurements in results/scaling.md: of networks, of input, and of several workers.
"""

import argparse
import itertools
import math
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from classifier.base import console, cpu
from classifier.base.console import DONE, PROJECT
from classifier.runs.folder import read_metadata
from classifier.runs.history import read_history
from classifier.training.settings import DEFAULTS, recipe_of
from tools import many_images
from tools.scripts import run_workers

NETWORKS = {"cnn": 128, "resnet": 128, "mobilenet_v2": 224, "resnet50": 224}  # and the side of the images
BATCHES = 8, 32  # images in a step: the time for none is what a step costs beside them
STEPS = 3  # of each, after a first one
EPOCHS_OF_INPUT = 5
TOGETHER = ("cnn", 32), ("cnn", 128), ("resnet", 32)
WORKERS, EPOCHS, BATCH = (1, 2, 4), (2, 12), 16


def main(argv=None):
    """Parse the command line, measure, print, and return the exit code."""
    parser = argparse.ArgumentParser("python -m tools.costs", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all of {', '.join(PARTS)}")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=PROJECT / "training_data",
        metavar="FOLDER",
        help="images to decode (default: training_data)",
    )
    arguments = parser.parse_args(argv)
    for name in arguments.parts:
        if name not in PARTS:
            parser.error(f"no part {name}: choose from {', '.join(PARTS)}")
    for name in arguments.parts or PARTS:
        header, rows = PARTS[name](arguments)
        print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
        for row in rows:
            print(f"| {' | '.join(map(str, row))} |", flush=True)
        print()
    return DONE


def networks(arguments):
    """(header, rows): parameters, floating-point operations, and the time of training steps, all in float32."""
    header = [
        "network",
        "px",
        "parameters trained",
        "forward pass, GFLOP an image",
        "training step, GFLOP an image",
        *(f"step of {count} images (s)" for count in BATCHES),
        "GFLOP/s",
    ]
    return header, map(_costs_of_network, NETWORKS)


def _costs_of_network(name):
    import tensorflow as tf

    from classifier.networks.by_name import create_network
    from classifier.training.optimizer import AdamW
    from train import make_train_step

    size = NETWORKS[name]
    tf.keras.utils.clear_session()
    network = create_network(name, size, num_classes=1000)
    network.trainable = True
    average = create_network(name, size, num_classes=1000)
    optimizer, sums = AdamW(1e-4, 0.01), tf.Variable([0.0, 0.0], dtype=tf.float64)
    optimizer.build(network.trainable_variables)
    settings = DEFAULTS | recipe_of(name, "none")
    step = make_train_step(tf.distribute.get_strategy(), network, optimizer, sums, 0.1, None, average, settings["ema"])
    rng, seconds = np.random.default_rng(0), []
    for count in BATCHES:
        images = tf.constant(rng.integers(0, 256, (count, size, size, 3), np.uint8))
        labels = tf.constant(rng.integers(0, 1000, count, np.int32))
        times = [_seconds(step, images, labels) for _ in range(1 + STEPS)]
        seconds.append(statistics.median(times[1:]))
    trained = sum(math.prod(weight.shape) for weight in network.trainable_weights)
    forward = flop_of(network, size)
    rate = 3 * forward * (BATCHES[1] - BATCHES[0]) / (seconds[1] - seconds[0])
    return [
        name,
        size,
        f"{trained:,}",
        f"{forward / 1e9:.3f}",
        f"{3 * forward / 1e9:.3f}",
        *(f"{value:.3f}" for value in seconds),
        f"{rate / 1e9:.0f}",
    ]


def flop_of(network, size):
    """The floating-point operations of a forward pass of one image, in convolutions and fully connected layers.

    A multiplication and an addition for each weight at each place of the output. A step of training takes three times as
    many: the gradients of weights and of inputs take as many again each, but for those of the first layer's inputs.
    """
    import keras

    total = 0
    for layer in keras.models.clone_model(network, keras.Input((size, size, 3))).layers:  # which is for any size
        if isinstance(layer, keras.Model):
            total += flop_of(layer, size)
        else:
            places = math.prod(layer.output.shape[1:-1])
            total += sum(2 * math.prod(weight.shape) * places for weight in layer.weights if len(weight.shape) > 1)
    return total


def inputs(arguments):
    """(header, rows): the bytes of an image, the time of one core for it, and what all cores reach."""
    from classifier.data.augmentation import augment
    from classifier.data.finding import find_images
    from classifier.data.images import decode_image, read_file
    from dataset import DataSet

    paths = find_images(arguments.data_dir).paths[:200]
    as_they_are = [read_file(path) for path in paths]
    files = {"as they are": as_they_are, "as large as those of ImageNet": list(map(enlarged, as_they_are))}
    rows = []
    for size, (kind, kept) in itertools.product([8, *sorted(set(NETWORKS.values()))], files.items()):
        images = [decode_image(paths[0], data, size) for data in kept]
        decoding = [_seconds(decode_image, paths[0], data, size) for data in kept]
        views = [_seconds(augment, image, size, np.random.default_rng(i)) for i, image in enumerate(images)]
        data_set = DataSet(paths, [0] * len(images), None, np.array(images).__getitem__, images[0].nbytes)
        epochs = [data_set.batches(50, epoch, augment=partial(augment, size=size)) for epoch in range(EPOCHS_OF_INPUT)]
        seconds = _seconds(lambda epochs=epochs: [None for batches in epochs for _ in batches])
        rows.append(
            [
                kind,
                size,
                f"{statistics.mean(map(len, kept)) / 1000:.0f}",
                f"{3 * size**2 / 1000:.0f}",
                *(f"{1e3 * statistics.median(times):.2f}" for times in (decoding, views)),
                f"{EPOCHS_OF_INPUT * len(images) / seconds:,.0f}",
            ]
        )
    header = [
        "files",
        "px",
        "file (kB)",
        "decoded (kB)",
        "decoding (ms)",
        "augmentation (ms)",
        f"augmented batches, {cpu.cores()} cores (images/s)",
    ]
    return header, rows


def enlarged(data):
    """The bytes of an image file as a JPEG file of 500 × 375 pixels, with noise: about 110 kB, as in ImageNet."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.resize(image, (500, 375), interpolation=cv2.INTER_CUBIC)
    noisy = image + np.random.default_rng(0).normal(0, 8, image.shape)
    return cv2.imencode(".jpg", noisy.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 96])[1].tobytes()


def together(arguments):
    """(header, rows): bytes that workers on this machine exchange in a step, and its time, with all they wait for.

    The bytes are those of the loopback device: nothing else should use it meanwhile. Those of a ring, in which each worker
    sends each part of the gradients on to the next one, and then each part of their sum, are 2 (N - 1) times the gradients.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="costs-") as folder:
        images = Path(folder, "images")
        many_images.main([str(images), "--images", "80", "--classes", "2"])
        for (name, size), count in itertools.product(TOGETHER, WORKERS):
            flags = ["--data-dir", images, "--network", name, "--image-size", size, "--batch-size", BATCH]
            flags += ["--start-size", size] if name == "resnet" else []
            sent, steps, seconds = [], [], []
            for epochs in EPOCHS:
                output, before = Path(folder, f"{name} {size} {count} {epochs}"), _bytes_of_loopback()
                command = ["train.py", *flags, "--epochs", epochs, "--output", output]
                run_workers([command] * count, cwd=PROJECT)
                sent.append(_bytes_of_loopback() - before)
                sides = read_metadata(output / "001")["images"].values()
                steps.append(epochs * math.ceil(sum(side["training"] for side in sides) / BATCH))
                seconds += [BATCH / row["images_per_second"] for row in read_history(output / "001")[1:]]
            decoded = [path.stat().st_size // (3 * size**2) for path in Path(output, ".cache").glob("*.pixels")]
            parameters = _trained_parameters(name, size)
            measured = (sent[1] - sent[0]) / (steps[1] - steps[0])
            rows.append(
                [
                    name,
                    size,
                    count,
                    " + ".join(map(str, decoded)),
                    f"{parameters:,}",
                    f"{2 * (count - 1) * 4 * parameters / 1e6:.2f}",
                    f"{measured / 1e6:.2f}",
                    f"{1e3 * statistics.median(seconds):.1f}",
                ]
            )
    header = [
        "network",
        "px",
        "workers",
        "images decoded by each",
        "parameters trained",
        "a ring (MB a step)",
        "measured (MB a step)",
        f"step of {BATCH} images (ms)",
    ]
    return header, rows


def _trained_parameters(name, size):
    """How many parameters of a network for two classes are trained."""
    from classifier.networks.by_name import create_network

    return sum(math.prod(weight.shape) for weight in create_network(name, size, 2).trainable_weights)


def _bytes_of_loopback():
    """How many bytes this machine has sent to itself."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.partition(":")[2].split()[0])


def _seconds(function, *arguments):
    """Seconds that a call takes."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


PARTS = {"networks": networks, "inputs": inputs, "together": together}


if __name__ == "__main__":
    console.run(main)
