"""What tests look at and change in run folders."""

import json
from pathlib import Path

import pytest
from comparing import difference_of_checkpoints
from conftest import predictions, rows_of

from classifier.base.files import digest_of


def history_of(run_folder):
    rows = rows_of(Path(run_folder, "history.csv"))
    return [{name: row[name] for name in ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")} for row in rows]


def metadata_of(run_folder):
    return json.loads(Path(run_folder, "model.json").read_text())


def change_metadata(run_folder, **changes):
    """Change entries of a run's record, with a digest that fits; those that are dictionaries in both are joined."""
    metadata = metadata_of(run_folder)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(metadata.get(name), dict)
        metadata[name] = metadata[name] | value if both else value
    del metadata["digest"]
    metadata["digest"] = digest_of(json.dumps(metadata, sort_keys=True).encode())
    Path(run_folder, "model.json").write_text(json.dumps(metadata))


def damage(path):
    """Change a byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def newest_checkpoint(run_folder, phase="training"):
    """The path of a phase's newest checkpoint, without the suffixes of its files."""
    indexes = Path(run_folder, "checkpoints", phase).glob("ckpt-*.index")
    return max(indexes, key=lambda path: int(path.stem.split("-")[1])).with_suffix("")


def assert_same_run(one, other, phases=("training",)):
    """Both runs ended with the same weights, bit for bit, and tell the same story."""
    for phase in phases:
        assert difference_of_checkpoints(Path(one), Path(other), phase) is None
    assert Path(one, "model.tflite").read_bytes() == Path(other, "model.tflite").read_bytes()
    assert history_of(one) == history_of(other)


def assert_runtimes_agree(model, *paths):
    """LiteRT and TensorFlow give the same probabilities; returns the predictions of each."""
    by_litert, by_tensorflow = (predictions(model, *paths, "--runtime", name) for name in ("litert", "tensorflow"))
    for path, prediction in by_litert.items():
        assert prediction["probabilities"] == pytest.approx(by_tensorflow[path]["probabilities"], abs=1e-5)
    return by_litert, by_tensorflow
