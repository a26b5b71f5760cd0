"""Several devices, and several machines, train what one would."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from comparing import distance
from conftest import PROJECT, QUICK, train

from classifier.base import console
from classifier.cluster import workers

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
def watched_shares_of(images, labels, names):
    for share in shares_of(images, labels, names):
        sizes = fed.setdefault(share[0].device[-5:], [])
        sizes.append((len(labels), images.nbytes, len(share[1].numpy().tobytes()) // 4, len(share[0].numpy().tobytes())))
        yield share
devices.shares_of = watched_shares_of
train.main(sys.argv[3:])
assert devices.create_strategy() is devices.create_strategy()  # or phases would mix up their gradients
json.dump(fed, open("fed.json", "w"))
"""


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


def test_what_tf_config_and_slurm_say_of_the_workers(monkeypatch):
    config = {"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert workers.cluster() == (["a:1", "b:1", "c:1"], 2)
    for wrong in ("{", "[]", json.dumps(config | {"task": {"type": "ps", "index": 0}}), json.dumps(config | {"task": {}})):
        monkeypatch.setenv("TF_CONFIG", wrong)
        with pytest.raises(console.UserError, match="TF_CONFIG"):
            workers.cluster()
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert workers.cluster() == ([""], 0)
    monkeypatch.delenv("TF_CONFIG")

    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    with pytest.raises(console.UserError, match="Slurm"):
        workers.cluster()
    step = {"STEP_NODELIST": "n[9-10]", "STEP_TASKS_PER_NODE": "1,2"}
    for name, value in (step | {"PROCID": "2", "LOCALID": "1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "n10")
    addresses, index = workers.cluster()
    assert sorted(addresses) == ["n10:8888", "n10:8889", "n9:8888"]
    assert addresses[index] == "n10:8889"
