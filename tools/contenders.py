"""What tools.benchmark measures: this project, Keras and PyTorch at the same work, each in a process of its own."""

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from classifier import cpu
from classifier.console import DONE, FAILED
from tools.scripts import run_script

# The packages to be measured are imported inside the functions: each process imports only those that it needs.

IMAGE_SIZE, BATCH_SIZE = 128, 32
# Of a training step: the products of the convolutions and fully connected layers in the forward pass, and for the gradients
# of their weights and inputs; the first convolution's input needs none.
FLOP_PER_IMAGE = 0.409e9
PREDICTING = "predicting files, whole process, images/s"
OURS, LIMIT = "this project", "steps at the limit of the matrix product, images/s"
ONEDNN = ", oneDNN on"  # of Keras where it is off as installed


# --- The limits -------------------------------------------------------------------------------------------------------


def limits(arguments):
    """What this machine can do at most: a float32 matrix product, and decoding JPEG files on all cores."""
    import tensorflow as tf

    from classifier.images import decode_batches
    from dataset import find_images

    matrix = tf.random.normal((2048, 2048))
    multiply = tf.function(lambda: tf.reduce_sum(matrix @ matrix))
    multiply()
    seconds = min(timed(lambda: multiply().numpy()) for _ in range(10))
    paths = find_images(arguments.data_dir).paths
    decoding = timed(lambda: list(decode_batches(paths, IMAGE_SIZE)))
    return {
        "float32 matrix product, GFLOP/s": 2 * 2048**3 / seconds / 1e9,
        LIMIT: 2 * 2048**3 / seconds / FLOP_PER_IMAGE,
        "decoding files, images/s": len(paths) / decoding,
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


def images_per_second(arguments, make_run):
    """{what: images/s}: `make_run(batch_size, steps)` returns a function that runs so many steps."""
    figures = {}
    for batch_size in arguments.batch_sizes:
        run = make_run(batch_size, arguments.steps)
        run()
        figures[f"step, batch {batch_size}, images/s"] = batch_size * arguments.steps / min(timed(run) for _ in range(2))
    return figures


def our_steps(arguments, in_bfloat16=False):
    """train.py's step."""
    import tensorflow as tf

    from classifier.optimizer import AdamW, bfloat16
    from model import create_cnn
    from train import make_train_step

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
            with bfloat16() if in_bfloat16 else contextlib.nullcontext():
                for _ in range(steps):
                    step(pixels, labels)
            return sums.numpy()

        return run

    return images_per_second(arguments, make_run)


def keras_network():
    """The same network as Keras users write it, compiled."""
    import keras

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
    import tensorflow as tf

    def make_run(batch_size, steps):
        network = keras_network()
        batch = tf.data.Dataset.from_tensors(random_batch(batch_size)).cache().repeat(steps)
        return lambda: network.fit(batch, verbose=0)

    return images_per_second(arguments, make_run)


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

    return images_per_second(arguments, make_run)


# --- Epochs from files, validation included ---------------------------------------------------------------------------


def epoch_figures(images, seconds):
    """{what: training images/s} from each epoch's seconds."""
    return {
        "first epoch from files, images/s": images / seconds[0],
        "later epochs from files, images/s": images / statistics.median(seconds[1:]),
    }


def our_training(folder, sets, defaults=False):
    """A training that does what the others do: without train.py's aids to accuracy and speed, unless `defaults`."""
    from classifier.settings import DEFAULTS
    from classifier.training import Training, phases_of

    plain = {"augment": False, "dropout": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0, "ema": 0.0,
             "mixed_precision": False}  # fmt: skip
    settings = DEFAULTS | {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE} | ({} if defaults else plain)
    training = Training(Path(folder), {"settings": settings, "network": "cnn"}, sets, *phases_of(settings))
    training.restore()
    return training


def our_epochs(arguments, defaults=False):
    """All that train.py does in an epoch except printing and saving; the first includes decoding into the cache."""
    import tensorflow as tf

    from dataset import read_train_sets
    from train import train_epoch, train_step_of, validate

    tf.zeros(1)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        sets = read_train_sets(arguments.data_dir, IMAGE_SIZE, cache_dir=Path(folder, "cache"))
        training = our_training(folder, sets, defaults)
        train_step = train_step_of(training)
        seconds = []
        for _ in range(arguments.epochs):
            train_epoch(training, train_step)
            validate(training)
            training.begin_epoch()
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
    return epoch_figures(len(sets.train), seconds)


def keras_epochs(arguments, cached=False):
    """Keras' fit, fed by image_dataset_from_directory."""
    import keras
    import tensorflow as tf

    tf.zeros(1)
    started = time.perf_counter()
    train, valid = keras.utils.image_dataset_from_directory(
        arguments.data_dir, image_size=(IMAGE_SIZE, IMAGE_SIZE), batch_size=BATCH_SIZE, validation_split=0.2, subset="both",
        seed=0, follow_links=True, verbose=False,
    )  # fmt: skip
    images = len(train.file_paths)
    if cached:
        train, valid = train.cache(), valid.cache()
    network, ends = keras_network(), []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.perf_counter()))
    network.fit(
        train.prefetch(tf.data.AUTOTUNE), validation_data=valid.prefetch(tf.data.AUTOTUNE), epochs=arguments.epochs,
        verbose=0, callbacks=[note],
    )  # fmt: skip
    return epoch_figures(images, [end - start for start, end in zip([started, *ends], ends, strict=False)])


def torch_epochs(arguments, workers):
    """PyTorch's ImageFolder and DataLoader."""
    import torch
    from torchvision import datasets, transforms

    started = time.perf_counter()
    steps = [transforms.Resize((IMAGE_SIZE, IMAGE_SIZE)), transforms.PILToTensor()]
    images = datasets.ImageFolder(arguments.data_dir, transforms.Compose(steps))
    counts = [len(images) - len(images) // 5, len(images) // 5]
    options = {"batch_size": BATCH_SIZE, "num_workers": workers, "persistent_workers": workers > 0}
    train, valid = (
        torch.utils.data.DataLoader(part, shuffle=shuffle, **options)
        for part, shuffle in zip(torch.utils.data.random_split(images, counts), (True, False), strict=True)
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
    from dataset import find_images

    with tempfile.TemporaryDirectory() as folder:
        run_script("train.py", "--limit-per-class", 20, "--epochs", 1, "--image-size", IMAGE_SIZE, "--output", folder)
        flags = ("--model", folder, "--format", "csv", arguments.data_dir)
        seconds = timed(lambda: run_script("predict.py", *flags, codes=(DONE, FAILED)))  # some images may be unreadable
    return {PREDICTING: len(find_images(arguments.data_dir).paths) / seconds}


def keras_predictions(arguments):
    """Keras' predict, fed by image_dataset_from_directory, the imports included."""
    started = time.perf_counter()
    import keras
    import tensorflow as tf

    images = keras.utils.image_dataset_from_directory(
        arguments.data_dir, labels=None, image_size=(IMAGE_SIZE, IMAGE_SIZE), batch_size=64, shuffle=False,
        follow_links=True, verbose=False,
    )  # fmt: skip
    keras_network().predict(images.prefetch(tf.data.AUTOTUNE), verbose=0)
    return {PREDICTING: len(images.file_paths) / (time.perf_counter() - started)}


MEASUREMENTS = {
    "limits": {"this machine": limits},
    "steps": {
        OURS: our_steps,
        f"{OURS}, bfloat16": lambda arguments: our_steps(arguments, in_bfloat16=True),
        "Keras fit": keras_steps,
        f"Keras fit{ONEDNN}": keras_steps,
        "PyTorch": torch_steps,
    },
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
