"""The network, and how a trained one is kept: checkpoints and a JSON card in a run folder.

A run folder is all that prediction needs:

    runs/001/model.json                  the card: network, classes, picture size, settings, data counts, results
    runs/001/checkpoints/newest/ckpt-*   weights, optimizer and position, to resume from
    runs/001/checkpoints/best/ckpt-*     weights of the epoch with the best validation accuracy, to predict with
"""

import contextlib
import itertools
import json
import os
import re
import shutil
from pathlib import Path

from console import NO_DATA, UserError, describe, say

os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user's ~/.keras/keras.json says

import keras
import numpy as np
import tensorflow as tf
from keras import layers

MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 8, 2048  # three poolings halve the picture three times
CARD = "model.json"

# --- The network ------------------------------------------------------------------------------------------------------


def create_weights():
    """How weights start: a normal distribution with σ = 0.05, cut off at 2 σ."""
    return keras.initializers.TruncatedNormal(stddev=0.05)


def create_biases():
    """How biases start: a little above zero, so that every ReLU lets something through at first."""
    return keras.initializers.Constant(0.05)


def create_convolutional_layer(inputs, num_filters, name):
    """3×3 convolution, 2×2 max-pooling, ReLU: (n, h, w, channels) → (n, h // 2, w // 2, num_filters)."""
    maps = layers.Conv2D(
        num_filters, 3, padding="same", name=name, kernel_initializer=create_weights(), bias_initializer=create_biases()
    )(inputs)
    maps = layers.MaxPooling2D(2, name=f"{name}_pool")(maps)
    return layers.ReLU(name=f"{name}_relu")(maps)


def create_flatten_layer(inputs):
    """(n, h, w, channels) → (n, h * w * channels)."""
    return layers.Flatten(name="flatten")(inputs)


def create_fc_layer(inputs, num_outputs, name, use_relu=True):
    """Fully connected layer, with ReLU if wanted: (n, features) → (n, num_outputs)."""
    outputs = layers.Dense(
        num_outputs, name=name, kernel_initializer=create_weights(), bias_initializer=create_biases()
    )(inputs)
    return layers.ReLU(name=f"{name}_relu")(outputs) if use_relu else outputs


def create_cnn(image_size, num_classes):
    """Three convolutions and two fully connected layers.

    (n, image_size, image_size, 3) uint8 RGB → (n, num_classes) logits.
    """
    pictures = keras.Input((image_size, image_size, 3), dtype="uint8", name="pictures")
    maps = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(pictures)  # -1 … 1: around 0, training starts sooner
    maps = create_convolutional_layer(maps, 32, "conv1")
    maps = create_convolutional_layer(maps, 32, "conv2")
    maps = create_convolutional_layer(maps, 64, "conv3")
    features = create_flatten_layer(maps)
    features = create_fc_layer(features, 128, "fc1")
    logits = create_fc_layer(features, num_classes, "fc2", use_relu=False)
    return keras.Model(pictures, logits, name="cnn")


NETWORKS = {"cnn": create_cnn}


def compile_logits(network):
    """A fast `logits(pictures)`: (n, image_size, image_size, 3) uint8 array → (n, classes) float32 array."""
    signature = tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)
    graph = tf.function(lambda pictures: network(pictures, training=False), input_signature=[signature])
    return lambda pictures: graph(tf.constant(pictures)).numpy()


def log_probabilities(logits):
    """Logarithm of the softmax over the last axis, in float64, without overflow: exp() of it are the probabilities."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


# --- Checkpoints ------------------------------------------------------------------------------------------------------


class Saver:
    """Saves checkpoints of a training into its run folder, and finds the newest sound one again.

    `tracked` are the parts of the training to resume, by name; one is `network`, whose weights the best one holds.
    """

    def __init__(self, run, **tracked):
        self._all = tf.train.Checkpoint(**tracked)
        self._weights = tf.train.Checkpoint(network=tracked["network"])
        self._newest_folder = run / "checkpoints" / "newest"
        self._newest = tf.train.CheckpointManager(self._all, str(self._newest_folder), max_to_keep=2)
        self._best = tf.train.CheckpointManager(self._weights, str(run / "checkpoints" / "best"), max_to_keep=1)

    def save(self, number):
        """Save everything as the newest checkpoint, `number`; the one before it stays. Raises UserError if it can't."""
        _write(self._newest, number)

    def save_best(self, number):
        """Save the weights as the best so far."""
        _write(self._best, number)

    def restore(self):
        """Restore the newest sound checkpoint; False if there is none yet."""
        prefixes = checkpoints_in(self._newest_folder)
        return bool(prefixes) and bool(_restore_first_sound(self._all, prefixes))


def _write(manager, number):
    try:
        manager.save(checkpoint_number=number)
    except (tf.errors.OpError, OSError) as error:
        for leftover in Path(manager.directory).glob("*_temp"):
            shutil.rmtree(leftover, ignore_errors=True)
        reason = describe(error) if isinstance(error, OSError) else error.message.split("\n")[0]
        raise UserError(f"cannot save a checkpoint in {manager.directory} (the last good one is kept): {reason}") from None


def checkpoints_in(folder):
    """Path prefixes of the checkpoints in a folder, the newest first."""
    numbers = [re.fullmatch(r"ckpt-(\d+)\.index", path.name) for path in folder.glob("ckpt-*.index")]
    return [folder / f"ckpt-{n}" for n in sorted((int(match[1]) for match in numbers if match), reverse=True)]


def _restore_first_sound(checkpoint, prefixes):
    """Restore the first of `prefixes` that can be read and fits; says which ones could not. Returns it.

    A checkpoint is a TensorFlow tensor bundle: reading it checks every tensor's sum and never runs code.
    """
    for prefix in prefixes:
        try:
            checkpoint.read(str(prefix)).assert_existing_objects_matched().expect_partial()
            return prefix
        except (tf.errors.OpError, OSError, ValueError, AssertionError) as error:
            problem = "does not fit the network" if isinstance(error, ValueError | AssertionError) else "is damaged"
            say(f"warning: checkpoint {prefix} {problem}")
    raise UserError(f"no sound checkpoint among {', '.join(map(str, prefixes))}", NO_DATA)


# --- Run folders and their cards --------------------------------------------------------------------------------------


def new_run(output):
    """Make the next free folder output/001, output/002, … and return it. Raises UserError where it can't."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1 + max((int(path.name) for path in runs_in(output)), default=0)):
            with contextlib.suppress(FileExistsError):  # another training may have been quicker
                run = output / f"{number:03d}"
                run.mkdir()
                return run
    except OSError as error:
        raise UserError(f"cannot make a run folder ({describe(error)}): choose another --output") from None


def runs_in(output):
    """The numbered run folders in `output`, the newest first."""
    runs = [path for path in output.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
    return sorted(runs, key=lambda path: int(path.name), reverse=True)


def find_run(path, finished=True):
    """`path` itself if it is a run folder, else the newest run in it: the newest finished one, if `finished`."""
    if (path / CARD).exists() or not runs_in(path):
        if not path.is_dir():
            raise UserError(f"there is no run folder {path}: train first, or give another", NO_DATA)
        return path
    for run in runs_in(path):
        with contextlib.suppress(UserError):
            if not finished or read_card(run)["finished"]:
                return run
    raise UserError(f"no finished run in {path}: name an unfinished one, such as {runs_in(path)[0]}, to use it", NO_DATA)


def write_card(run, card):
    """Write the card as a whole or not at all."""
    partial = run / f"{CARD}.partial"
    partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, run / CARD)


def read_card(run):
    """The card of a run as a dictionary. Raises UserError where there is none, or it is not one of ours."""
    try:
        card = json.loads((run / CARD).read_text(encoding="utf-8"))
        classes, size = card["classes"], card["image_size"]
        sound = (
            len(classes) >= 2
            and all(isinstance(name, str) for name in classes)
            and len(set(classes)) == len(classes)
            and isinstance(size, int)
            and MIN_IMAGE_SIZE <= size <= MAX_IMAGE_SIZE
            and all(isinstance(card[key], dict) for key in ("settings", "pictures"))
            and isinstance(card["finished"], bool)
        )
        network = card["network"]
    except OSError as error:
        raise UserError(f"{run} is not a run folder of this project: {describe(error)}", NO_DATA) from None
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise UserError(f"{run / CARD} is damaged: restore it, or use another run", NO_DATA)
    if network not in NETWORKS:
        raise UserError(f"{run} was made by a network this version does not have: {network!r}", NO_DATA)
    return card


def load_network(run):
    """Rebuild the network of a run with its best weights, or its newest where those cannot be read.

    Returns (network, card). Raises UserError with exit code 3 for a folder that has no sound checkpoint.
    """
    card = read_card(run)
    network = NETWORKS[card["network"]](card["image_size"], len(card["classes"]))
    prefixes = [*checkpoints_in(run / "checkpoints" / "best"), *checkpoints_in(run / "checkpoints" / "newest")]
    if not prefixes:
        raise UserError(f"{run} has no checkpoint yet", NO_DATA)
    used = _restore_first_sound(tf.train.Checkpoint(network=network), prefixes)
    if used != prefixes[0]:
        say(f"using checkpoint {used} instead")
    return network, card
