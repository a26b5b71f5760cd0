"""How the processes of a training on several machines find each other, and what they say when one is missing."""

import json
import socket

import pytest

from classifier.base import console
from classifier.cluster import workers


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


def test_workers_wait_for_each_other_and_name_who_is_missing(monkeypatch, capsys):
    here, other = (socket.create_server(("localhost", 0)) for _ in range(2))
    ports = [listening.getsockname()[1] for listening in (here, other)]
    here.close()  # for the one that waits
    for name, value in {
        "addresses": [f"localhost:{port}" for port in ports],
        "count": 2,
        "SECONDS_TO_CONNECT": 1,
        "SECONDS_TO_BE_SILENT": 0,
    }.items():
        monkeypatch.setattr(workers, name, value)
    workers._wait_for_others()
    assert not capsys.readouterr().err
    other.close()
    monkeypatch.setattr(console, "is_silent", True)  # the process in a shell of a cluster may be another than the chief
    with pytest.raises(console.UserError, match=rf"^worker 1 \(localhost:{ports[1]}\) did not come within 1 seconds$"):
        workers._wait_for_others()
    awaited, advice = capsys.readouterr().err.splitlines()
    assert awaited == f"waiting for 1 of 2 workers, which SLURM_STEP_NUM_TASKS names: worker 1 (localhost:{ports[1]})"
    assert advice.endswith("env -u SLURM_STEP_NUM_TASKS python train.py …")
    with socket.create_server(("", ports[0])), pytest.raises(console.UserError, match="cannot listen at localhost"):
        workers._wait_for_others()


def test_an_error_of_tensorflow_is_told_in_words(monkeypatch):
    for name, value in {"addresses": ["a:1", "b:1", "c:1"], "index": 1, "count": 3}.items():
        monkeypatch.setattr(workers, name, value)
    told = "Graph execution error:\n\nCollective ops is aborted by: Error reported from /job:worker/task:2: "
    assert workers._what_happened(f"{told}worker 2 (c:1): no image\nRestart") == "worker 2 (c:1): no image"
    for message, who in {
        "from /job:worker/replica:0/task:1: peer /job:worker/replica:0/task:2 is gone": "worker 2 (c:1)",
        "connection closed": "another worker",
    }.items():
        assert workers._what_happened(message).startswith(f"{who} stopped or does not answer: ")


def test_what_differs_between_workers_is_named(monkeypatch):
    here = {"dogs/1.jpg": "9 bytes of class 1", "dogs/3.jpg": "7 bytes of class 1"}
    there = {"dogs/1.jpg": "9 bytes of class 1"}
    monkeypatch.setattr(workers, "addresses", ["a:1", "b:1"])
    monkeypatch.setattr(workers, "gather", lambda values: [values, {"images": there}])
    differ = r"^worker 0 \(a:1\) and worker 1 \(b:1\) differ in images: dogs/3.jpg is 7 bytes of class 1, and missing$"
    with pytest.raises(console.UserError, match=differ):
        workers.compare(images=here)
