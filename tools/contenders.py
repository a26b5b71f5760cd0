"""What tools.benchmark measures: this project, Keras and PyTorch doing the same work, each in a process of its own.

The packages are imported inside the functions: each process imports only those that it needs.
"""

import contextlib
import itertools
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from classifier.base import cpu
from classifier.base.console import DONE, FAILED
from classifier.training.settings import DEFAULTS
from tools.scripts import run_script

IMAGE_SIZE, BATCH_SIZE = 128, 32
READING = {"image_size": (IMAGE_SIZE, IMAGE_SIZE), "follow_links": True, "verbose": False}  # for Keras
# Of a training step: the products of the convolutions and fully connected layers in the forward pass, and those for the
# gradients of their weights and inputs. The first convolution's input needs no gradient.
FLOP_PER_IMAGE = 0.409e9
# The settings of a training that does what the others do.
PLAIN = {"augment": False, "dropout": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0, "ema": 0.0, "mixed_precision": False}
PREDICTING = "predicting files, whole process, images/s"
OURS, LIMIT = "this project", "steps at the limit of the matrix product, images/s"
ONEDNN = ", oneDNN on"  # Keras with oneDNN, on a CPU where it is off as installed


def limits(arguments):
    """What this machine can do at most: a float32 matrix product, and decoding JPEG files on all cores."""
    import tensorflow as tf

    from classifier.data.finding import find_images
    from classifier.data.images import decode_batches

    matrix = tf.random.normal((2048, 2048))
    multiply = tf.function(lambda: tf.reduce_sum(matrix @ matrix))
    multiply()
    flop_per_second = 2 * 2048**3 / min(timed(lambda: multiply().numpy()) for _ in range(10))
    paths = find_images(arguments.data_dir).paths
    decoded_per_second = len(paths) / timed(lambda: list(decode_batches(paths, IMAGE_SIZE)))
    figures = {"float32 matrix product, GFLOP/s": flop_per_second / 1e9, LIMIT: flop_per_second / FLOP_PER_IMAGE}
    return figures | {"decoding files, images/s": decoded_per_second}


def timed(function):
    """Seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def time_steps(make_run, arguments, **options):
    """{what: images/s} of `make_run(pixels, labels, steps, **options)`, which returns a function that runs the steps."""
    import numpy as np

    figures = {}
    for batch_size in arguments.batch_sizes:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        labels = rng.integers(0, 2, batch_size).astype(np.int32)
        run = make_run(pixels, labels, arguments.steps, **options)
        run()
        figures[f"step, batch {batch_size}, images/s"] = batch_size * arguments.steps / min(timed(run) for _ in range(2))
    return figures


def our_steps(pixels, labels, steps, in_bfloat16=False):
    """The training step of train.py."""
    import tensorflow as tf

    from classifier.training.optimizer import AdamW, bfloat16
    from model import create_cnn
    from train import make_train_step

    tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(0)
    network = create_cnn(IMAGE_SIZE, 2)
    optimizer = AdamW(1e-4)
    optimizer.build(network.trainable_variables)
    sums = tf.Variable([0.0, 0.0], dtype=tf.float64)
    step = make_train_step(tf.distribute.get_strategy(), network, optimizer, sums)
    pixels, labels = tf.constant(pixels), tf.constant(labels)

    def run():
        with bfloat16() if in_bfloat16 else contextlib.nullcontext():
            for _ in range(steps):
                step(pixels, labels)
        return sums.numpy()

    return run


def keras_network():
    """The same network as Keras users write it, compiled."""
    import keras
    from keras import layers

    blocks = [(layers.Conv2D(n, 3, padding="same"), layers.MaxPooling2D(), layers.ReLU()) for n in (32, 32, 64)]
    network = keras.Sequential(
        [
            keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3)),
            layers.Rescaling(1 / 127.5, offset=-1),
            *itertools.chain(*blocks),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"])
    return network


def keras_steps(pixels, labels, steps):
    """Keras' fit."""
    import tensorflow as tf

    network = keras_network()
    batches = tf.data.Dataset.from_tensors((pixels, labels)).cache().repeat(steps)
    return lambda: network.fit(batches, verbose=0)


def torch_network():
    """The same network in PyTorch: (network, step(pixels, labels)); pixels (n, 3, h, w) in any type."""
    import torch
    from torch import nn

    torch.set_num_threads(cpu.cores())
    blocks = [(nn.Conv2d(n, m, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()) for n, m in ((3, 32), (32, 32), (32, 64))]
    head = [nn.Flatten(), nn.Linear((IMAGE_SIZE // 8) ** 2 * 64, 128), nn.ReLU(), nn.Linear(128, 2)]
    network = nn.Sequential(*itertools.chain(*blocks), *head).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=True)

    def step(pixels, labels):
        loss = nn.functional.cross_entropy(network(pixels.float() / 127.5 - 1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return network, step


def torch_steps(pixels, labels, steps):
    """PyTorch, channels last."""
    import torch

    _, step = torch_network()
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(labels).long()

    def run():
        for _ in range(steps):
            step(pixels, labels)

    return run


def epoch_figures(num_images, times):
    """{what: training images/s} from the time of the start and of the end of each epoch."""
    first, *later = (end - start for start, end in itertools.pairwise(times))
    return {
        "first epoch from files, images/s": num_images / first,
        "later epochs from files, images/s": num_images / statistics.median(later),
    }


def our_epochs(arguments, changed_settings=PLAIN):
    """All that train.py does in an epoch except printing and saving; the first includes decoding into the cache."""
    import tensorflow as tf

    from classifier.training.phases import phases_of
    from classifier.training.state import Training
    from dataset import read_train_sets
    from train import train_epoch, train_step_of, validate

    tf.zeros(1)  # starts TensorFlow
    settings = DEFAULTS | {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE} | changed_settings
    with tempfile.TemporaryDirectory() as folder:
        times = [time.perf_counter()]
        sets = read_train_sets(arguments.data_dir, IMAGE_SIZE, cache_dir=Path(folder, "cache"))
        metadata = {"settings": settings | {"epochs": arguments.epochs}, "network": "cnn", "feature_scales": 1}
        training = Training(Path(folder), metadata, sets, *phases_of(metadata))
        training.restore()
        train_step = train_step_of(training)
        for _ in range(arguments.epochs):
            train_epoch(training, train_step)
            validate(training)
            training.begin_epoch()
            times.append(time.perf_counter())
    return epoch_figures(len(sets.train), times)


def keras_epochs(arguments, cached=False):
    """Keras' fit, fed by image_dataset_from_directory."""
    import keras
    import tensorflow as tf

    tf.zeros(1)
    times = [time.perf_counter()]
    split = {"validation_split": 0.2, "subset": "both", "seed": 0}
    read = keras.utils.image_dataset_from_directory
    train, valid = read(arguments.data_dir, batch_size=BATCH_SIZE, **split, **READING)
    num_images = len(train.file_paths)
    if cached:
        train, valid = train.cache(), valid.cache()
    train, valid = train.prefetch(tf.data.AUTOTUNE), valid.prefetch(tf.data.AUTOTUNE)
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: times.append(time.perf_counter()))
    keras_network().fit(train, validation_data=valid, epochs=arguments.epochs, verbose=0, callbacks=[note])
    return epoch_figures(num_images, times)


def torch_epochs(arguments, workers):
    """PyTorch's ImageFolder and DataLoader."""
    import torch
    from torchvision import datasets, transforms

    times = [time.perf_counter()]
    steps = [transforms.Resize((IMAGE_SIZE, IMAGE_SIZE)), transforms.PILToTensor()]
    images = datasets.ImageFolder(arguments.data_dir, transforms.Compose(steps))
    train, valid = torch.utils.data.random_split(images, (0.8, 0.2))
    load = partial(torch.utils.data.DataLoader, batch_size=BATCH_SIZE, num_workers=workers, persistent_workers=workers > 0)
    train, valid = load(train, shuffle=True), load(valid)
    network, step = torch_network()
    for _ in range(arguments.epochs):
        for pixels, labels in train:
            step(pixels.contiguous(memory_format=torch.channels_last), labels)
        with torch.no_grad():
            for pixels, labels in valid:
                network(pixels.float() / 127.5 - 1).argmax(1).eq(labels).sum().item()
        times.append(time.perf_counter())
    return epoch_figures(len(train.dataset), times)


def our_predictions(arguments):
    """predict.py as a user runs it, the start of Python included, with a network that train.py made just before."""
    from classifier.data.finding import find_images

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

    read = keras.utils.image_dataset_from_directory
    images = read(arguments.data_dir, labels=None, batch_size=64, shuffle=False, **READING)
    keras_network().predict(images.prefetch(tf.data.AUTOTUNE), verbose=0)
    return {PREDICTING: len(images.file_paths) / (time.perf_counter() - started)}


MEASUREMENTS = {  # {kind: {who: function(arguments) → {what: figure}}}
    "limits": {"this machine": limits},
    "steps": {
        OURS: partial(time_steps, our_steps),
        f"{OURS}, bfloat16": partial(time_steps, our_steps, in_bfloat16=True),
        "Keras fit": partial(time_steps, keras_steps),
        f"Keras fit{ONEDNN}": partial(time_steps, keras_steps),
        "PyTorch": partial(time_steps, torch_steps),
    },
    "predictions": {OURS: our_predictions, "Keras predict": keras_predictions},
    "epochs": {
        OURS: our_epochs,
        f"{OURS}, all defaults": partial(our_epochs, changed_settings={}),
        "Keras fit": keras_epochs,
        "Keras fit, cached": partial(keras_epochs, cached=True),
        f"Keras fit, cached{ONEDNN}": partial(keras_epochs, cached=True),
        "PyTorch, no workers": partial(torch_epochs, workers=0),
        "PyTorch, 2 workers": partial(torch_epochs, workers=2),
    },
}
