"""What the tests and the reliability harness share: weights to train with, and how two runs differ."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

OF_NO_EFFECT = ("seconds", "images_per_second", "save_minutes", "digest")  # all else in a run is the same each time
SAME = 1e-4  # relative: the difference between workers or devices and one that is rounding


def write_random_weights(path: Path) -> None:
    """Write a file of weights for mobilenet as Keras writes them: random ones, always the same."""
    import keras

    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(np.full(layer.gamma.shape, 6.0))  # or features would be 0 but for rounding
    network.save_weights(path)


def history_rows(run: Path) -> list[dict[str, str]]:
    """The rows of a run's history, without what differs between runs that are the same."""
    with open(run / "history.csv", newline="") as file:
        return lasting(list(csv.DictReader(file)))


def newest_checkpoint(run: Path, phase: str):
    """A reader of the newest checkpoint of a phase; None if there is none."""
    import tensorflow as tf

    indexes = (run / "checkpoints" / phase).glob("ckpt-*.index")
    newest = max(indexes, key=lambda path: int(path.stem.split("-")[1]), default=None)
    return tf.train.load_checkpoint(str(newest.with_suffix(""))) if newest else None


def difference(run: Path, expected: Path) -> str | None:
    """How a run differs from another one of the same training, in words; None if it is the same, bit for bit."""
    if history_rows(run) != history_rows(expected):
        return "another history"
    if lasting(json.loads((run / "model.json").read_text())) != lasting(json.loads((expected / "model.json").read_text())):
        return "another model.json"
    for phase in sorted(path.name for path in (expected / "checkpoints").iterdir()):
        if problem := difference_of_checkpoints(run, expected, phase):
            return problem
    if (run / "model.tflite").read_bytes() != (expected / "model.tflite").read_bytes():
        return "another model.tflite"
    return None


def difference_of_checkpoints(run: Path, expected: Path, phase: str) -> str | None:
    """How the newest checkpoint of a phase differs from that of another run, in words; None if all tensors are the same."""
    readers = [newest_checkpoint(one, phase) for one in (run, expected)]
    if readers[0] is None:
        return f"no checkpoint in {phase}"
    shapes = [reader.get_variable_to_shape_map() for reader in readers]
    if shapes[0] != shapes[1]:
        return f"other tensors in {phase}"
    for name in shapes[0].keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH"}:
        try:
            one, other = (reader.get_tensor(name) for reader in readers)
        except Exception as error:  # of TensorFlow: it is damaged
            return str(error)
        if not np.array_equal(one, other):
            return f"{phase}: {name} differs"
    return None


def lasting(data):
    """JSON data without what has no effect on the result, such as how long things took."""
    if isinstance(data, dict):
        return {name: lasting(value) for name, value in data.items() if name not in OF_NO_EFFECT}
    return [lasting(value) for value in data] if isinstance(data, list) else data


class Distance(NamedTuple):
    """How far a run is from another one of the same training: relative differences, of tensors by their norms."""

    all_weights: float  # of one vector of all averaged weights of the newest checkpoint
    weights: float  # of the tensor of weights that differs most
    history: float  # of the figure in the history that differs most

    def __str__(self) -> str:
        return f"all weights {self.all_weights:.0e}, a tensor of them {self.weights:.0e}, history {self.history:.0e}"

    @property
    def is_rounding(self) -> bool:
        """Whether rounding alone can be the reason."""
        return max(self) <= SAME


def distance(run: Path, expected: Path) -> Distance:
    """The Distance of a run from another one, in the last phase of both."""
    phase = next(phase for phase in ("fine_tuning", "head", "training") if (expected / "checkpoints" / phase).exists())
    readers = [newest_checkpoint(one, phase) for one in (run, expected)]
    norms = []
    for name in readers[1].get_variable_to_shape_map():
        if name.startswith("network/") and name.endswith("VARIABLE_VALUE"):
            one, other = (reader.get_tensor(name).astype(float) for reader in readers)
            norms.append((np.linalg.norm(one - other), max(np.linalg.norm(other), 1e-30)))
    rows = [np.array([list(row.values()) for row in history_rows(one)], float) for one in (run, expected)]
    history = np.abs(rows[0] - rows[1]) / np.maximum(np.abs(rows[1]), 1e-30)
    of_all = np.linalg.norm(norms, axis=0)
    return Distance(of_all[0] / of_all[1], max(one / other for one, other in norms), history.max())
