"""Measure what a training costs as images, classes and workers become more: python -m experiments.scaling [PART ...]

Each part prints a table: `images` runs the scripts on small drawn images of many classes; `networks`, `inputs` and `workers`
measure the terms that a step is made of.
"""

import argparse
import itertools
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from classifier.base import console, cpu
from classifier.base.console import DONE, PROJECT, UserError, number
from classifier.data.augmentation import augment
from classifier.data.finding import find_images
from classifier.data.images import decode_image, read_file
from classifier.networks import PRETRAINED_NETWORKS
from dataset import DataSet
from experiments.scripts import Parser, history_of, print_table, record_of, run_script, run_workers, seconds_of

NETWORKS = {"cnn": 128, "resnet": 128, "mobilenet_v2": 224, "resnet50": 224}  # and the side of the images
BATCHES = 8, 32  # images in a step: the time for none is what a step costs beside them
EPOCHS_OF_INPUT = 5
WORKERS, EPOCHS, BATCH = (1, 2, 4), (2, 12), 16
WITH_WORKERS = ("cnn", 32), ("cnn", 128), ("resnet", 32)
FIND = """
import sys
from pathlib import Path
from classifier.runs.settings import Settings
from dataset import read_images, split_images
settings = Settings(data_dir=Path(sys.argv[1]), image_size=8)
sets = split_images(read_images(settings, None), settings, {})
print(f"{len(sets.train)} + {len(sets.valid)}")
"""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, measure, print, and return the exit code."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    add("--sizes", type=number(int, 4), nargs="+", default=[2000, 14000, 200000], metavar="N", help="numbers of images")
    add("--classes", type=number(int, 2), default=1000, metavar="N", help="of images")
    add("--only-find", action="store_true", help="of images: find, decode and split them, no more")
    parser.add_folder("--data-dir", "training_data", "of inputs: images to decode")
    arguments = parser.parse_args(argv)
    if wrong := set(arguments.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(wrong)}: choose from {', '.join(PARTS)}")
    for name in arguments.parts:
        with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
            header, measurements = PARTS[name]
            print_table(header.split(", "), measurements(arguments, Path(folder)))
    return DONE


def draw_images(folder: Path, images: int, classes: int, side: int = 32) -> Path:
    """Draw images of spots, whose colours, size and form depend on the class, at random places and with noise."""
    for label in range(classes):
        (folder / f"class_{label:04}").mkdir(parents=True)
        for k in range(label, images, classes):
            cv2.imwrite(str(folder / f"class_{label:04}" / f"{k}.jpg"), draw(label, k, side))
    return folder


def draw(label: int, number: int, side: int) -> np.ndarray:
    """Image `number`, of class `label`: (side, side, 3) uint8."""
    of_class, own = np.random.default_rng([0, label]), np.random.default_rng([1, number])
    colours = of_class.uniform(20, 235, (2, 3))
    heights = own.normal(size=of_class.integers(4, side // 2, 2)).astype(np.float32)  # fewer, and spots are larger
    spots = cv2.resize(heights, (side, side), interpolation=cv2.INTER_CUBIC) > 0
    image = np.where(spots[..., None], *colours) + own.normal(0, 12, (side, side, 3))
    return image.clip(0, 255).astype(np.uint8)


def many_images(arguments: argparse.Namespace, folder: Path) -> Iterator[list]:
    """Rows: processor time, which other programs disturb less than time, and the most memory that each script had."""
    for size in arguments.sizes:
        images, output = draw_images(folder / f"{size}", size, arguments.classes), folder / f"{size} runs"
        predict = ["predict.py", images, "--model", output, "--format", "csv"]
        flags = ["--image-size", 32, "--batch-size", 128, "--epochs", 2]
        steps = {
            "find, decode, split": ["-c", FIND, images],
            "train two epochs": ["train.py", "--data-dir", images, "--output", output, *flags],
            "evaluate": ["evaluate.py", images, "--model", output],
            "predict to CSV": predict,
            "predict a quarter": [*predict, "--shard", "1/4"],
        }
        for what, command in itertools.islice(steps.items(), 1 if arguments.only_find else None):
            seconds, memory = measure(command, folder / what)
            yield [f"{size:,}", what, f"{seconds:.1f}", f"{1e6 * seconds / size:.0f}", f"{memory:.0f}"]


def measure(command: list, output: Path) -> tuple[float, float]:
    """(seconds of processor time, most memory in MB) of Python with these arguments; what it prints goes to a file.

    Memory is its own, without that of files, such as the cache, which the system takes back when others need it.
    Raises UserError if it fails.
    """
    memory = 0
    with open(output, "w") as out, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=PROJECT, stdout=out, stderr=said)
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory = max(memory, *map(int, re.findall(r"RssAnon:\s+(\d+) kB", status) or [0]))
            time.sleep(0.05)
        _, code, usage = os.wait4(process.pid, 0)
        said.seek(0)
        if code:
            raise UserError(f"{' '.join(map(str, command))} failed: {said.read().strip()[-300:]}")
    return usage.ru_utime + usage.ru_stime, memory / 1000


def networks(arguments: argparse.Namespace, folder: Path) -> Iterator[list]:
    """Rows: parameters, floating-point operations, and the time of training steps, all in float32 and of all layers."""
    from classifier.networks.by_name import create_network

    for name, size in NETWORKS.items():
        images = draw_images(folder / name, 2 * arguments.classes, arguments.classes, side=64)
        network = create_network(name, size, arguments.classes)
        network.trainable = True
        seconds = []
        for batch in BATCHES:
            flags = ["--data-dir", images, "--network", name, "--image-size", size, "--epochs", 2]
            flags += ["--validation-split", 0.5, "--no-group-near-copies", "--no-mixed-precision", "--no-augment"]
            flags += ["--weights", "none"] if name in PRETRAINED_NETWORKS else []
            run_script("train.py", *flags, "--batch-size", batch, "--output", folder / f"{name} {batch}")
            seconds.append(batch / history_of(folder / f"{name} {batch}" / "001")[-1]["images_per_second"])
        forward = flop_of(network, size)
        rate = 3 * forward * (BATCHES[1] - BATCHES[0]) / (seconds[1] - seconds[0])
        gflop = (f"{figure / 1e9:.3f}" for figure in (forward, 3 * forward))
        yield [name, size, f"{trained_in(network):,}", *gflop, *(f"{value:.3f}" for value in seconds), f"{rate / 1e9:.0f}"]


def trained_in(network) -> int:
    """How many parameters of a network are trained."""
    return sum(math.prod(weight.shape) for weight in network.trainable_weights)


def flop_of(network, size: int) -> int:
    """The floating-point operations of a forward pass of one image, in convolutions and fully connected layers.

    A multiplication and an addition for each weight at each place of the output. A step of training takes three times as
    many: the gradients of weights and of inputs take as many again each, but for those of the first layer's inputs.
    """
    import tensorflow as tf

    one = tf.TensorSpec((1, size, size, 3), network.inputs[0].dtype)
    graph = tf.function(lambda image: network(image, training=False)).get_concrete_function(one).graph
    products = [each for each in graph.get_operations() if each.type in ("Conv2D", "DepthwiseConv2dNative", "MatMul")]
    return sum(2 * math.prod(each.inputs[1].shape) * math.prod(each.outputs[0].shape[1:-1]) for each in products)


def inputs(arguments: argparse.Namespace, _folder: Path) -> Iterator[list]:
    """Rows: the bytes of an image, the time of one core for it, and what all cores reach."""
    paths = find_images(arguments.data_dir).paths[:200]
    as_they_are = [read_file(path) for path in paths]
    files = {"as they are": as_they_are, "as large as those of ImageNet": list(map(enlarged, as_they_are))}
    for size, (kind, kept) in itertools.product([8, *sorted(set(NETWORKS.values()))], files.items()):
        images = [decode_image(paths[0], data, size) for data in kept]
        decoding = [seconds_of(decode_image, paths[0], data, size) for data in kept]
        views = [seconds_of(augment, image, size, np.random.default_rng(i)) for i, image in enumerate(images)]
        data_set = DataSet(
            paths, np.zeros(len(images), np.int32), [""] * len(images), np.array(images).__getitem__, images[0].nbytes
        )
        epochs = [data_set.batches(50, epoch, augment=partial(augment, size=size)) for epoch in range(EPOCHS_OF_INPUT)]
        seconds = seconds_of(lambda epochs=epochs: [None for batches in epochs for _ in batches])
        kilobytes = f"{statistics.mean(map(len, kept)) / 1000:.0f}", f"{3 * size**2 / 1000:.0f}"
        times = (f"{1e3 * statistics.median(each):.2f}" for each in (decoding, views))
        yield [kind, size, *kilobytes, *times, f"{EPOCHS_OF_INPUT * len(images) / seconds:,.0f}"]


def enlarged(data: bytes) -> bytes:
    """The bytes of an image file as a JPEG file of 500 × 375 pixels, with noise: about 110 kB, as in ImageNet."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.resize(image, (500, 375), interpolation=cv2.INTER_CUBIC)
    noisy = image + np.random.default_rng(0).normal(0, 8, image.shape)
    return cv2.imencode(".jpg", noisy.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 96])[1].tobytes()


def with_workers(_arguments: argparse.Namespace, folder: Path) -> Iterator[list]:
    """Rows: bytes that workers on this machine exchange in a step, and its time, with all they wait for.

    The bytes are those of the loopback device: nothing else should use it meanwhile. Those of a ring, in which each worker
    sends each part of the gradients on to the next one, and then each part of their sum, are 2 (N - 1) times the gradients.
    """
    from classifier.networks.by_name import create_network

    images = draw_images(folder / "images", 80, 2)
    for (name, size), count in itertools.product(WITH_WORKERS, WORKERS):
        flags = ["--data-dir", images, "--network", name, "--image-size", size, "--batch-size", BATCH]
        flags += ["--start-size", size] if name == "resnet" else []
        sent, steps, seconds = [], [], []
        for epochs in EPOCHS:
            output, before = folder / f"{name} {size} {count} {epochs}", bytes_of_loopback()
            run_workers([[PROJECT / "train.py", *flags, "--epochs", epochs, "--output", output]] * count)
            sent.append(bytes_of_loopback() - before)
            sides = record_of(output / "001")["images"].values()
            steps.append(epochs * math.ceil(sum(side["training"] for side in sides) / BATCH))
            seconds += [BATCH / row["images_per_second"] for row in history_of(output / "001")[1:]]
        decoded = [path.stat().st_size // (3 * size**2) for path in Path(output, ".cache").glob("*.pixels")]
        parameters = trained_in(create_network(name, size, 2))
        measured = (sent[1] - sent[0]) / (steps[1] - steps[0])
        megabytes = (f"{each / 1e6:.2f}" for each in (2 * (count - 1) * 4 * parameters, measured))
        milliseconds = f"{1e3 * statistics.median(seconds):.1f}"
        yield [name, size, count, " + ".join(map(str, decoded)), f"{parameters:,}", *megabytes, milliseconds]


def bytes_of_loopback() -> int:
    """How many bytes this machine has sent to itself."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.partition(":")[2].split()[0])


PARTS = {  # {name: (header, function that yields rows)}
    "images": ("images, what, processor time (s), for an image (µs), most memory (MB)", many_images),
    "networks": (
        "network, px, parameters trained, forward pass (GFLOP an image), training step (GFLOP an image), "
        f"step of {BATCHES[0]} images (s), step of {BATCHES[1]} images (s), GFLOP/s",
        networks,
    ),
    "inputs": (
        "files, px, file (kB), decoded (kB), decoding (ms), augmentation (ms), "
        f"augmented batches on {cpu.cores()} cores (images/s)",
        inputs,
    ),
    "workers": (
        "network, px, workers, images decoded by each, parameters trained, a ring (MB a step), measured (MB a step), "
        f"step of {BATCH} images (ms)",
        with_workers,
    ),
}


if __name__ == "__main__":
    console.run(main)
