"""The benchmark runs, in its shortest form, so that it never rots."""

import csv
import subprocess
from pathlib import Path

from conftest import run

from classifier import cpu
from tools import benchmark


def test_a_short_benchmark(images, scripts_in_this_process):
    short = ("--rounds", 1, "--steps", 2, "--epochs", 2, "--batch-sizes", 4)
    (images / "cats/more").mkdir()
    (images / "cats/cats_1.jpg").rename(images / "cats/more/cats_2.jpg")  # names are the same in subfolders
    finished = run("tools.benchmark", "--data-dir", images, *short, "--output", "results")
    (file,) = Path("results").glob(f"bench-*-{cpu.instruction_set()}-*-24images.csv")
    with open(file, newline="") as table:
        rows = list(csv.DictReader(table))
    assert {row["CPU"] for row in rows} == {cpu.name()}
    assert {row["who"] for row in rows} >= {"this machine", "this project", "Keras fit", "Keras fit, cached"}
    for what in ("step, batch 4", "first epoch from files", "later epochs from files", "float32 matrix product",
                 "predicting files"):  # fmt: skip
        assert any(row["what"].startswith(what) and float(row["median"]) > 0 for row in rows)
        assert what in finished.stdout


def test_keras_is_measured_as_installed_and_with_onednn(monkeypatch):
    """On a CPU on which TensorFlow leaves it off."""
    monkeypatch.setattr(cpu, "has_onednn_as_installed", lambda: False)
    switches = []

    def noting(command, env, **options):
        switches.append(env["TF_ENABLE_ONEDNN_OPTS"])
        return subprocess.CompletedProcess(command, 0, "{}", "")

    monkeypatch.setattr(subprocess, "run", noting)
    arguments = benchmark.parse_arguments([])
    for who in ("Keras fit", "Keras fit, oneDNN on"):
        assert benchmark.measure("steps", who, arguments, "nowhere") == {}
    assert switches == ["0", "1"]
