"""Measure training and prediction against Keras and PyTorch on this machine: python bench.py

The same network on the same files with the same batch size. Every measurement is a process of its own, and they take turns,
round by round, so that a machine whose speed drifts slows all alike.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import console
import cpu
from console import DONE, FAILED, UserError, csv_text, number, say, write_whole

HERE = Path(__file__).resolve().parent
IMAGE_SIZE, BATCH_SIZE = 128, 32
# Of a training step: the products of the convolutions and fully connected layers forwards, and for the gradients of the
# weights and of what each takes, but that the first convolution's pictures need none.
FLOP_A_PICTURE = 0.409e9
PREDICTING = "predicting files, whole process, pictures/s"
OURS, LIMIT = "this project", "steps at the limit of the matrix product, pictures/s"
ONEDNN = ", oneDNN on"  # of Keras where it is off as installed


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Measure training and prediction against Keras and PyTorch on this machine.",
        epilog="PyTorch takes part where requirements-bench.txt is installed.",
    )
    add = parser.add_argument
    add("--data-dir", type=Path, default=HERE / "training_data", metavar="FOLDER", help="default: training_data")
    add("--batch-sizes", type=number(int, 1), nargs="+", default=[16, 32, 64], metavar="N",
        help="for steps on a batch in memory; files are read 32 at a time (default: 16 32 64)")  # fmt: skip
    add("--rounds", type=number(int, 1), default=5, metavar="N", help="how often each is measured (default: 5)")
    add("--steps", type=number(int, 1), default=40, metavar="N", help="steps on a batch in memory (default: 40)")
    add("--epochs", type=number(int, 2), default=4, metavar="N", help="epochs from files (default: 4)")
    add("--output", type=Path, default=HERE / "results", metavar="FOLDER", help="where the table goes (default: results)")
    add("--measure", nargs=2, help=argparse.SUPPRESS)  # one measurement, in a process of its own
    return parser.parse_args(argv)


def main(argv=None):
    """Measure everything in turn, print the table and write it as CSV; returns the exit code."""
    arguments = parse_arguments(argv)
    if arguments.measure:
        kind, who = arguments.measure
        print(json.dumps(MEASUREMENTS[kind][who](arguments)))
        return DONE
    absent = [] if importlib.util.find_spec("torchvision") else ["PyTorch"]
    absent += [] if cpu.has_bfloat16() else ["bfloat16"]
    absent += [ONEDNN] if cpu.has_onednn_as_installed() else []  # it would be the same again
    figures = {}  # {what: {who: [a figure a round]}}
    with tempfile.TemporaryDirectory() as folder:
        pictures = link_pictures(arguments.data_dir, Path(folder))
        for turn in range(arguments.rounds):
            for kind, contenders in MEASUREMENTS.items():
                for who in contenders:
                    if not any(word in who for word in absent):
                        say(f"round {turn + 1} of {arguments.rounds}: {kind}, {who}")
                        for what, figure in measure(kind, who, arguments, folder).items():
                            figures.setdefault(what, {}).setdefault(who, []).append(figure)
    header, rows = summarize(figures)
    narrowed = " (narrowed)" if os.environ.get("ONEDNN_MAX_CPU_ISA") else ""
    machine = [cpu.name(), f"{cpu.instruction_set()}{narrowed}", cpu.cores()]
    print("CPU: {}, {}, {} cores".format(*machine), table_text([header, *rows]), sep="\n")
    arguments.output.mkdir(parents=True, exist_ok=True)
    name, instructions = (re.sub(r"[^A-Za-z0-9_]+", "-", part).strip("-") for part in machine[:2])
    path = arguments.output / f"bench-{name}-{instructions}-{machine[2]}cores-{versions()}-{pictures}pictures.csv"
    write_whole(path, csv_text([*header, "CPU", "instruction set", "cores"], ([*row, *machine] for row in rows)))
    say(f"written to {path}")
    return DONE


def link_pictures(data_dir, folder):
    """Class folders of links to the pictures, a layout that all three can read; returns how many there are."""
    from dataset import find_pictures

    found = find_pictures(data_dir)
    for i, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
        link = folder / found.classes[label] / f"{i}_{path.name}"  # subfolders may have the same names
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path.absolute())
    return len(found.paths)


def measure(kind, who, arguments, folder):
    """Run one measurement in a process of its own: {what: figure}."""
    options = {"--steps": arguments.steps, "--epochs": arguments.epochs, "--data-dir": folder}
    command = [sys.executable, __file__, "--measure", kind, who, *(str(part) for pair in options.items() for part in pair),
               "--batch-sizes", *map(str, arguments.batch_sizes)]  # fmt: skip
    environment = dict(os.environ)
    if who.startswith("Keras"):
        environment["TF_ENABLE_ONEDNN_OPTS"] = "1" if who.endswith(ONEDNN) or cpu.has_onednn_as_installed() else "0"
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    if finished.returncode:
        raise UserError(f"{kind}, {who} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])


def summarize(figures):
    """(header, rows): every figure's median, least and greatest, its share of the limit, and how many times it ours is."""
    header = ["what", "who", "median", "least", "greatest", "runs", "of the limit", "ours / this"]
    (limit,) = (statistics.median(values) for values in figures[LIMIT].values())
    rows = []
    for what, by_who in figures.items():
        for who, values in by_who.items():
            median = statistics.median(values)
            shown = [f"{value:.1f}" for value in (median, min(values), max(values))]
            is_speed = what.endswith("pictures/s")
            share = f"{median / limit:.0%}" if is_speed and what.startswith("step") else ""
            comparable = is_speed and who != OURS and OURS in by_who
            ratio = f"{statistics.median(by_who[OURS]) / median:.2f}" if comparable else ""
            rows.append([what, who, *shown, len(values), share, ratio])
    return header, rows


def table_text(rows):
    """Rows as text with aligned columns."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell!s:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def versions():
    """The packages' versions, for a file's name."""
    from importlib.metadata import PackageNotFoundError, version

    parts = []
    for package in ("tensorflow", "keras", "torch"):
        try:
            parts.append(package + version(package).split("+")[0])
        except PackageNotFoundError:
            continue
    return "-".join(parts)


# --- The limits -------------------------------------------------------------------------------------------------------


def limits(arguments):
    """What this machine can do at most: a float32 matrix product, and decoding JPEG files on all cores."""
    from dataset import decode_batches, find_pictures
    from model import tf

    matrix = tf.random.normal((2048, 2048))
    multiply = tf.function(lambda: tf.reduce_sum(matrix @ matrix))
    multiply()
    seconds = min(timed(lambda: multiply().numpy()) for _ in range(10))
    paths = find_pictures(arguments.data_dir).paths
    decoding = timed(lambda: list(decode_batches(paths, IMAGE_SIZE)))
    return {
        "float32 matrix product, GFLOP/s": 2 * 2048**3 / seconds / 1e9,
        LIMIT: 2 * 2048**3 / seconds / FLOP_A_PICTURE,
        "decoding files, pictures/s": len(paths) / decoding,
    }


def timed(function):
    """Seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


# --- Steps on a batch in memory ---------------------------------------------------------------------------------------


def random_batch(batch_size):
    """Pixels and labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    return pixels, rng.integers(0, 2, batch_size).astype(np.int32)


def pictures_per_second(arguments, make_run):
    """{what: pictures/s or page faults}: `make_run(batch_size, steps)` returns a function that runs so many steps."""
    figures = {}
    for batch_size in arguments.batch_sizes:
        run = make_run(batch_size, arguments.steps)
        run()
        faults = page_faults()
        figures[f"step, batch {batch_size}, pictures/s"] = batch_size * arguments.steps / min(timed(run) for _ in range(2))
        figures[f"step, batch {batch_size}, minor page faults"] = (page_faults() - faults) / (2 * arguments.steps)
    return figures


def page_faults():
    """How many pages of memory this process has been given so far; 0 where nobody tells."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def our_steps(arguments, precision=contextlib.nullcontext):
    """train.py's step."""
    from model import create_cnn, tf
    from trainer import AdamW, make_train_step

    tf.config.experimental.enable_op_determinism()

    def make_run(batch_size, steps):
        tf.keras.utils.set_random_seed(0)
        network = create_cnn(IMAGE_SIZE, 2)
        optimizer = AdamW(1e-4)
        optimizer.build(network.trainable_variables)
        sums = tf.Variable([0.0, 0.0], dtype=tf.float64)
        step = make_train_step(tf.distribute.get_strategy(), network, optimizer, sums)
        pixels, labels = map(tf.constant, random_batch(batch_size))

        def run():
            with precision():
                for _ in range(steps):
                    step(pixels, labels)
            return sums.numpy()

        return run

    return pictures_per_second(arguments, make_run)


def keras_network():
    """The same network as Keras users write it, compiled."""
    from model import keras

    layers = keras.layers
    network = keras.Sequential([keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3)), layers.Rescaling(1 / 127.5, offset=-1)])
    for filters in (32, 32, 64):
        for layer in (layers.Conv2D(filters, 3, padding="same"), layers.MaxPooling2D(), layers.ReLU()):
            network.add(layer)
    for layer in (layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(2)):
        network.add(layer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"])
    return network


def keras_steps(arguments):
    """Keras' fit."""
    from model import tf

    def make_run(batch_size, steps):
        network = keras_network()
        batch = tf.data.Dataset.from_tensors(random_batch(batch_size)).cache().repeat(steps)
        return lambda: network.fit(batch, verbose=0)

    return pictures_per_second(arguments, make_run)


def torch_network():
    """The same network in PyTorch: (network, step(pixels, labels)); pixels (n, 3, h, w) in any type."""
    import torch
    from torch import nn

    torch.set_num_threads(cpu.cores())
    blocks, channels = [], 3
    for filters in (32, 32, 64):
        blocks += [nn.Conv2d(channels, filters, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        channels = filters
    side = IMAGE_SIZE // 8
    network = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(side * side * 64, 128), nn.ReLU(), nn.Linear(128, 2))
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=True)

    def step(pixels, labels):
        loss = nn.functional.cross_entropy(network(pixels.float() / 127.5 - 1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return network, step


def torch_steps(arguments):
    """PyTorch, channels last."""
    import torch

    def make_run(batch_size, steps):
        _, step = torch_network()
        pixels, labels = map(torch.from_numpy, random_batch(batch_size))
        pixels = pixels.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        labels = labels.long()

        def run():
            for _ in range(steps):
                step(pixels, labels)

        return run

    return pictures_per_second(arguments, make_run)


# --- Epochs from files, validation included ---------------------------------------------------------------------------


def epoch_figures(pictures, seconds):
    """{what: training pictures/s} from each epoch's seconds."""
    return {
        "first epoch from files, pictures/s": pictures / seconds[0],
        "later epochs from files, pictures/s": pictures / statistics.median(seconds[1:]),
    }


def our_card(defaults=False):
    """The card of a run that does what the others do: without train.py's aids to accuracy and speed."""
    from settings import DEFAULTS

    plain = {"augment": False, "dropout": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0, "ema": 0.0,
             "mixed_precision": False}  # fmt: skip
    settings = DEFAULTS | {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE} | ({} if defaults else plain)
    return {"settings": settings, "network": "cnn"}


def our_epochs(arguments, defaults=False):
    """All that train.py does in an epoch but printing and saving; the first includes decoding into the cache."""
    import tensorflow as tf

    from dataset import read_train_sets
    from trainer import Training, phases_of

    tf.zeros(1)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        sets = read_train_sets(arguments.data_dir, IMAGE_SIZE, cache_dir=Path(folder, "cache"))
        card = our_card(defaults)
        training = Training(Path(folder), card, sets, *phases_of(card["settings"]))
        seconds, steps, waits = [], [], []
        for _ in range(arguments.epochs):
            waits.append(count_waiting(sets.train))
            steps.append(timed(training.train_epoch))
            training.validate()
            training.begin_epoch()
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
    waiting = 100 * statistics.median(sum(wait) / step for wait, step in zip(waits[1:], steps[1:], strict=True))
    return epoch_figures(len(sets.train), seconds) | {"waiting for pictures, later epochs, % of the steps' time": waiting}


def count_waiting(data_set):
    """Make a DataSet note how many seconds each batch is waited for; returns the list that they come into."""
    waits, batches = [], type(data_set).batches

    def noting(*arguments):
        iterator = batches(data_set, *arguments)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            waits.append(time.perf_counter() - started)
            if batch is None:
                return
            yield batch

    data_set.batches = noting
    return waits


def our_second_run(arguments):
    """From TensorFlow's import being done to the end of the first step, where an earlier run has left its cache."""
    from dataset import read_train_sets

    with tempfile.TemporaryDirectory() as folder:
        read = functools.partial(read_train_sets, arguments.data_dir, IMAGE_SIZE, cache_dir=Path(folder, "cache"))
        read()
        import tensorflow as tf

        from trainer import Training, phases_of

        tf.zeros(1)
        started = time.perf_counter()
        sets = read()
        card = our_card()
        training = Training(Path(folder), card, sets, *phases_of(card["settings"]))
        training.train_step(*next(sets.train.batches(BATCH_SIZE, seed=0)))
        training.sums.numpy()
        return {"first step of a second run, s after the import": time.perf_counter() - started}


def keras_epochs(arguments, cached=False):
    """Keras' fit, fed by image_dataset_from_directory."""
    from model import keras, tf

    tf.zeros(1)
    started = time.perf_counter()
    train, valid = keras.utils.image_dataset_from_directory(
        arguments.data_dir, image_size=(IMAGE_SIZE, IMAGE_SIZE), batch_size=BATCH_SIZE, validation_split=0.2, subset="both",
        seed=0, follow_links=True, verbose=False,
    )  # fmt: skip
    pictures = len(train.file_paths)
    if cached:
        train, valid = train.cache(), valid.cache()
    network, ends = keras_network(), []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.perf_counter()))
    network.fit(
        train.prefetch(tf.data.AUTOTUNE), validation_data=valid.prefetch(tf.data.AUTOTUNE), epochs=arguments.epochs,
        verbose=0, callbacks=[note],
    )  # fmt: skip
    return epoch_figures(pictures, [end - start for start, end in zip([started, *ends], ends, strict=False)])


def torch_epochs(arguments, workers):
    """PyTorch's ImageFolder and DataLoader."""
    import torch
    from torchvision import datasets, transforms

    started = time.perf_counter()
    steps = [transforms.Resize((IMAGE_SIZE, IMAGE_SIZE)), transforms.PILToTensor()]
    pictures = datasets.ImageFolder(arguments.data_dir, transforms.Compose(steps))
    counts = [len(pictures) - len(pictures) // 5, len(pictures) // 5]
    options = {"batch_size": BATCH_SIZE, "num_workers": workers, "persistent_workers": workers > 0}
    train, valid = (
        torch.utils.data.DataLoader(part, shuffle=shuffle, **options)
        for part, shuffle in zip(torch.utils.data.random_split(pictures, counts), (True, False), strict=True)
    )
    network, step = torch_network()
    seconds = []
    for _ in range(arguments.epochs):
        for pixels, labels in train:
            step(pixels.contiguous(memory_format=torch.channels_last), labels)
        with torch.no_grad():
            for pixels, labels in valid:
                network(pixels.float() / 127.5 - 1).argmax(1).eq(labels).sum().item()
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    return epoch_figures(counts[0], seconds)


# --- Predicting many files --------------------------------------------------------------------------------------------


def our_predictions(arguments):
    """predict.py as a user runs it, the start of Python included, with a network that train.py made just before."""
    from dataset import find_pictures

    with tempfile.TemporaryDirectory() as folder:
        brief = ["--limit-per-class", "20", "--epochs", "1", "--image-size", str(IMAGE_SIZE), "--output", folder]
        python(HERE / "train.py", *brief)
        seconds = timed(lambda: python(HERE / "predict.py", "--model", folder, "--format", "csv", arguments.data_dir))
    return {PREDICTING: len(find_pictures(arguments.data_dir).paths) / seconds}


def python(*arguments):
    """Run a script in a process of its own; a picture that cannot be read is no reason to stop."""
    finished = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    if finished.returncode not in (DONE, FAILED):
        raise UserError(finished.stderr)


def keras_predictions(arguments):
    """Keras' predict, fed by image_dataset_from_directory, the imports included."""
    started = time.perf_counter()
    from model import keras, tf

    pictures = keras.utils.image_dataset_from_directory(
        arguments.data_dir, labels=None, image_size=(IMAGE_SIZE, IMAGE_SIZE), batch_size=64, shuffle=False,
        follow_links=True, verbose=False,
    )  # fmt: skip
    keras_network().predict(pictures.prefetch(tf.data.AUTOTUNE), verbose=0)
    return {PREDICTING: len(pictures.file_paths) / (time.perf_counter() - started)}


MEASUREMENTS = {
    "limits": {"this machine": limits},
    "steps": {
        OURS: our_steps,
        f"{OURS}, bfloat16": lambda arguments: our_steps(arguments, cpu.bfloat16),
        "Keras fit": keras_steps,
        f"Keras fit{ONEDNN}": keras_steps,
        "PyTorch": torch_steps,
    },
    "second run": {OURS: our_second_run},
    "predictions": {OURS: our_predictions, "Keras predict": keras_predictions},
    "epochs": {
        OURS: our_epochs,
        f"{OURS}, all defaults": lambda arguments: our_epochs(arguments, defaults=True),
        "Keras fit": keras_epochs,
        "Keras fit, cached": lambda arguments: keras_epochs(arguments, cached=True),
        f"Keras fit, cached{ONEDNN}": lambda arguments: keras_epochs(arguments, cached=True),
        "PyTorch, no workers": lambda arguments: torch_epochs(arguments, 0),
        "PyTorch, 2 workers": lambda arguments: torch_epochs(arguments, 2),
    },
}

if __name__ == "__main__":
    console.run(main)
