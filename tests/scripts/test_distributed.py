"""Several devices train what one would. Of several machines the reliability harness tries it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from comparing import distance
from conftest import PROJECT, QUICK, train

FLAGS = ("--batch-size", 9, "--no-mixed-precision")  # of 20 training images: batches of 9, 9 and 2

TRAIN_ON_DEVICES = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]  # virtual CPUs stand for GPUs: the same strategy, the same lines of code
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[2]))
import train
from classifier.cluster import devices
fed, shares_of = {}, devices.shares_of
def watched_shares_of(columns, names):
    images = columns[0]
    for share in shares_of(columns, names):
        sizes = fed.setdefault(share[0].device[-5:], [])
        sizes.append((len(images), images.nbytes, len(share[0].numpy()), len(share[0].numpy().tobytes())))
        yield share
devices.shares_of = watched_shares_of
train.main(sys.argv[3:])
assert devices.create_strategy() is devices.create_strategy()  # or phases would mix up their gradients
json.dump(fed, open("fed.json", "w"))
"""


@pytest.mark.usefixtures("no_litert")
def test_four_devices_take_a_quarter_of_a_batch_each_and_train_what_one_would(images):
    """With augmentation and dropout; the last batch has fewer images than devices."""
    command = [sys.executable, "-c", TRAIN_ON_DEVICES, PROJECT, 4, "--data-dir", images, "--output", "runs", *QUICK, *FLAGS]
    finished = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "devices    4 in this machine, each takes its share of every batch: CPU:0, CPU:1, CPU:2, CPU:3" in finished.stderr
    fed = json.loads(Path("fed.json").read_text())
    assert len(fed) == 4
    for i, sizes in enumerate(fed.values()):
        for batch_size, batch_bytes, count, size in sizes:
            assert count == max(len(range(i, batch_size, 4)), 1)
            assert size * batch_size == batch_bytes * count
    train(images, *FLAGS)
    assert distance(Path("runs/001"), Path("runs/002")).is_rounding
