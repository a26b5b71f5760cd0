"""Several devices, and several machines, train what one would."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, QUICK, train
from run_folders import history_of, newest_tensors

TRAIN_ON_DEVICES = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]  # virtual CPUs stand for GPUs: the same strategy, the same lines of code
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[2]))
import train
from classifier import distributed
fed, shares_of = {}, distributed.shares_of
def watched_shares_of(images, labels, names):
    for share in shares_of(images, labels, names):
        sizes = fed.setdefault(share[0].device[-5:], [])
        sizes.append((len(labels), images.nbytes, len(share[1].numpy().tobytes()) // 4, len(share[0].numpy().tobytes())))
        yield share
distributed.shares_of = watched_shares_of
train.main(sys.argv[3:])
json.dump(fed, open("fed.json", "w"))
"""


def train_on_devices(count, images, *flags):
    """Train on virtual devices; returns the finished process."""
    arguments = ["--data-dir", images, "--output", "runs", *QUICK, *flags]
    command = [sys.executable, "-c", TRAIN_ON_DEVICES, PROJECT, count, *arguments]
    finished = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished


def assert_close(one, other, tolerance):
    """Both runs have the same tensors, weights and optimizer, and the same history, to rounding."""
    tensors, expected = newest_tensors(one), newest_tensors(other)
    assert tensors.keys() == expected.keys()
    for name in expected:
        difference = np.linalg.norm(tensors[name].astype(float) - expected[name])
        assert difference <= tolerance * np.linalg.norm(expected[name].astype(float)), name
    for row, right in zip(history_of(one), history_of(other), strict=True):
        assert {name: float(value) for name, value in row.items()} == pytest.approx(
            {name: float(value) for name, value in right.items()}, rel=tolerance
        )


def test_four_devices_take_a_quarter_of_a_batch_each_and_train_what_one_would(images):
    """With augmentation and dropout; the last batch has fewer images than devices."""
    flags = ("--batch-size", 9, "--no-mixed-precision")  # 20 = 9 + 9 + 2 training images
    finished = train_on_devices(4, images, *flags)
    assert "devices    4 in this machine, each takes its share of every batch: CPU:0, CPU:1, CPU:2, CPU:3" in finished.stderr
    fed = json.loads(Path("fed.json").read_text())
    assert len(fed) == 4
    for i, sizes in enumerate(fed.values()):
        for batch_size, batch_bytes, count, size in sizes:
            assert count == max(len(range(i, batch_size, 4)), 1)
            assert size * batch_size == batch_bytes * count
    train(images, *flags)
    assert_close("runs/001", "runs/002", tolerance=1e-4)
