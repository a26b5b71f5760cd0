"""What the checks train: small runs of every kind, in this process or in one of their own, and how two runs differ."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from typing import NamedTuple

import cv2
import numpy as np

from classifier.base import console
from classifier.base.console import PROJECT, UserError
from classifier.runs.folder import LITERT, RECORD, checkpoints_in
from classifier.runs.history import RESULTS, read_history
from tests import faults
from tools.draw_samples import draw

IMAGES_PER_CLASS = 12
SMALL = ("--image-size", 32, "--batch-size", 8)
KINDS = {
    "cnn": (*SMALL, "--epochs", 3),
    "resnet": (*SMALL, "--network", "resnet", "--epochs", 2),
    "head": (*SMALL, "--network", "mobilenet", "--epochs", 3),
    "fine-tuning": (*SMALL, "--network", "mobilenet", "--epochs", 2, "--fine-tune", "conv_pw_11", "--fine-tune-epochs", 2),
}
OF_NO_EFFECT = ("seconds", "images_per_second", "save_minutes", "digest")  # all else in a run is the same each time


class Trainings:
    """Trainings of each of KINDS on drawings in `folder`, and for each kind a run that nothing disturbs."""

    def __init__(self, folder):
        self.folder = folder
        self.images = draw_images(folder / "images")

    def flags(self, kind):
        """The flags of train.py for a kind, all but --output."""
        flags = ["--data-dir", self.images, *KINDS[kind]]
        return [*flags, "--weights", self._weights()] if "mobilenet" in flags else flags

    def _weights(self):
        path = self.folder / "mobilenet.weights.h5"
        if not path.exists():
            write_random_weights(path)
        return path

    def undisturbed(self, kind, log=None):
        """The folder of a run that nothing disturbs; its changes of files are in the file `log` if that is given."""
        output = self.folder / f"undisturbed {kind}"
        if not output.exists():
            flags = ("train", *self.flags(kind), "--output", output)
            sound(finish(start(*flags, env=faults.environment(output, log=log))) if log else call(*flags))
        return output / "001"


def write_random_weights(path):
    """Write a file of weights for mobilenet as Keras writes them: random ones, always the same."""
    import keras

    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(np.full(layer.gamma.shape, 6.0))  # or features would be 0 but for rounding
    network.save_weights(path)


def draw_images(folder):
    """Class folders of small drawings."""
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            drawing = draw(name[:-1], np.random.default_rng([len(name), number]))
            cv2.imwrite(str(folder / name / f"{number}.png"), cv2.resize(drawing, (48, 48), interpolation=cv2.INTER_AREA))
    return folder


def call(script, *arguments):
    """Run a script's main() in this process, where TensorFlow is imported already; returns it like a finished process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = console.exit_code_of(importlib.import_module(script).main, [str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code
        except Exception as error:  # a traceback for the user
            code = f"{type(error).__name__}: {error}"
    return subprocess.CompletedProcess([script, *map(str, arguments)], code, out.getvalue(), err.getvalue())


def start(script, *arguments, **options):
    """Start a script in a process of its own, as a user does."""
    command = [sys.executable, str(PROJECT / f"{script}.py"), *map(str, arguments)]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, **options)


def finish(process):
    """Wait for a process that start() started; returns it as subprocess.run() does."""
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sound(finished):
    """The finished process; raises UserError if it failed: then the checks can show nothing."""
    if finished.returncode:
        raise UserError(f"{' '.join(map(str, finished.args))} failed: {finished.stderr.strip()[-500:]}")
    return finished


def difference(run, expected):
    """How a run differs from another one of the same training, in words; None if it is the same, bit for bit."""
    import tensorflow as tf

    if lasting(read_history(run)) != lasting(read_history(expected)):
        return "another history"
    if lasting(json.loads((run / RECORD).read_text())) != lasting(json.loads((expected / RECORD).read_text())):
        return f"another {RECORD}"
    for folder in sorted(path.name for path in (expected / "checkpoints").iterdir()):
        readers = []
        for one in (run, expected):
            prefixes = checkpoints_in(one / "checkpoints" / folder)
            if not prefixes:
                return f"no checkpoint in {folder}"
            readers.append(tf.train.load_checkpoint(str(prefixes[0])))
        shapes = [reader.get_variable_to_shape_map() for reader in readers]
        if shapes[0] != shapes[1]:
            return f"other tensors in {folder}"
        for name in shapes[0]:
            try:
                one, other = (reader.get_tensor(name) for reader in readers)
            except tf.errors.OpError as error:
                return error.message
            if name != "_CHECKPOINTABLE_OBJECT_GRAPH" and not np.array_equal(one, other):
                return f"{folder}: {name} differs"
    if (run / LITERT).read_bytes() != (expected / LITERT).read_bytes():
        return f"another {LITERT}"
    return None


class Distance(NamedTuple):
    """How far a run is from another one of the same training: relative differences, of tensors by their norms."""

    all_weights: float  # of one vector of all weights
    weights: float  # of the tensor of weights that differs most
    optimizer: float  # of the tensor of the optimizer's moments that differs most
    history: float  # of the figure in the history that differs most

    def __str__(self):
        return (
            f"all weights {self.all_weights:.0e}, a tensor of them {self.weights:.0e}, of the optimizer's moments"
            f" {self.optimizer:.0e}, history {self.history:.0e}"
        )


def distance(run, expected):
    """The Distance of a run, its newest checkpoint and its history, from another one."""
    import tensorflow as tf

    readers = [tf.train.load_checkpoint(str(checkpoints_in(one / "checkpoints" / "training")[0])) for one in (run, expected)]
    weights, moments = [], []
    for name in readers[1].get_variable_to_shape_map():
        if name.endswith("VARIABLE_VALUE"):
            one, other = (reader.get_tensor(name).astype(float) for reader in readers)
            norms = np.linalg.norm(one - other), max(np.linalg.norm(other), 1e-30)
            (weights if name.startswith(("network/", "optimizer/_trainable")) else moments).append(norms)
    weights, moments = np.array(weights), np.array(moments)
    rows = [[[row[name] for name in RESULTS] for row in read_history(one)] for one in (run, expected)]
    history = np.abs(np.subtract(*rows)) / np.maximum(np.abs(rows[1]), 1e-30)
    all_weights = np.sqrt((weights**2).sum(axis=0))
    return Distance(
        all_weights[0] / all_weights[1], *((one / other).max() for one, other in (weights.T, moments.T)), history.max()
    )


def lasting(data):
    """JSON data without what has no effect on the result, such as how long things took."""
    if isinstance(data, dict):
        return {name: lasting(value) for name, value in data.items() if name not in OF_NO_EFFECT}
    return [lasting(value) for value in data] if isinstance(data, list) else data
