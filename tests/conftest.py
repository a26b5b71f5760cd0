"""What all tests share: drawn images, and the scripts, run as a user runs them."""

import csv
import importlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import browser as browser  # a fixture for all tests
from comparing import write_random_weights

PROJECT = Path(__file__).resolve().parent.parent
REAL_DATA = PROJECT.parent / "shared" / "data"
HANGING = 1800  # seconds after which a process is taken to hang: far more than the slowest takes on the slowest machine
sys.path.insert(0, str(PROJECT))
pytest.register_assert_rewrite("run_folders")

from classifier.base import console  # noqa: E402

# isort: split
import cv2  # noqa: E402
import numpy as np  # noqa: E402

from experiments.draw_samples import draw  # noqa: E402

QUICK = ("--image-size", 32, "--epochs", 2, "--batch-size", 8)
DRAWING = cv2.resize(draw("dog", np.random.default_rng(5)), (90, 70), interpolation=cv2.INTER_AREA)
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real images in {REAL_DATA}")


def start(script, *arguments, **options):
    """Start a script as a user does; returns the process."""
    what = ["-m", script] if script.startswith("experiments.") else [str(PROJECT / f"{script}.py")]
    command = [sys.executable, *what, *map(str, arguments)]
    if what[0] == "-m":
        options["env"] = options.get("env", os.environ) | {"PYTHONPATH": str(PROJECT)}
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, encoding="utf-8", errors="surrogateescape", **options)


def call(script, *arguments, text=""):
    """Run a script's main() in this process, where TensorFlow is imported already; returns it like a finished process."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", newline="") for name in ("stdout", "stderr")}
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(text))))
        try:
            code = console.exit_code_of(importlib.import_module(script).main, [str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code
    for stream in streams.values():
        stream.seek(0)
    return subprocess.CompletedProcess([script, *arguments], code, *(stream.read() for stream in streams.values()))


def run(script, *arguments, code=0, text="", process=False, **options):
    """Run a script to its end and check its exit code and that nothing crashed; returns it like a finished process.

    It is a process of its own if `process`, or if it needs one: for `options`, see start().
    """
    if process or options:
        assert not text, "a process gets no text here"
        started = start(script, *arguments, **options)
        stdout, stderr = started.communicate(timeout=HANGING)
        finished = subprocess.CompletedProcess(started.args, started.returncode, stdout, stderr)
    else:
        finished = call(script, *arguments, text=text)
    assert "Traceback" not in finished.stderr, finished.stderr
    assert finished.returncode == code, f"exit code {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
    return finished


@pytest.fixture
def scripts_in_this_process(monkeypatch):
    """Scripts that a script starts are run in this process."""
    start_process = subprocess.run

    def run_here(command, *arguments, **options):
        if command[:2] == [sys.executable, "-m"]:
            return call(*command[2:])
        if command[0] == sys.executable and Path(command[1]).parent == PROJECT:
            return call(Path(command[1]).stem, *command[2:])
        return start_process(command, *arguments, **options)

    monkeypatch.setattr(subprocess, "run", run_here)


def train(images, *flags, **options):
    """Train on a folder of images, QUICK where the flags say nothing else, in a new run folder in runs; see run()."""
    return run("train", "--data-dir", images, "--output", "runs", *QUICK, *flags, **options)


def error_of(finished):
    """The one line of error on standard error."""
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, finished.stderr
    return lines[0]


def predictions(model, *paths, code=0, **options):
    """What predict.py says of the paths: {path: its JSON object}."""
    predicted = json.loads(run("predict", "--model", model, "--format", "json", *paths, code=code, **options).stdout)
    return {prediction["path"]: prediction for prediction in predicted}


def rows_of(table):
    """The rows of a CSV file, a dictionary each."""
    with open(table, newline="") as file:
        return list(csv.DictReader(file))


def wait_until(process, condition):
    """Wait until the condition holds, while the process is running."""
    end = time.monotonic() + HANGING
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def encoded(suffix, image=DRAWING, *parameters):
    """The bytes of a file of an RGB (or grey) array; the suffix says in which format."""
    return cv2.imencode(suffix, image[:, :, ::-1] if image.ndim == 3 else image, parameters)[1].tobytes()


def exif(orientation):
    """An Exif segment for a JPEG that says which side is up."""
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff


def save(path, image=DRAWING):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(path.suffix, image))
    return path


def draw_images(folder, per_class=12, classes=("cats", "dogs"), size=48):
    """Class folders with small drawings in them; a class that is neither cats nor dogs is stripes."""
    for name in classes:
        for k in range(per_class):
            rng = np.random.default_rng([classes.index(name), k])
            if name in ("cats", "dogs"):
                image = cv2.resize(draw(name[:-1], rng), (size, size), interpolation=cv2.INTER_AREA)
            else:
                stripes = np.arange(size)[:, None, None] // rng.integers(2, 6) % 2
                image = np.broadcast_to(stripes * rng.integers(60, 256, 3), (size, size, 3)).astype(np.uint8)
            save(Path(folder, name, f"{name}_{k}.jpg"), image)
    return Path(folder)


@pytest.fixture
def images(tmp_path):
    """A folder with two classes of twelve drawings."""
    return draw_images(tmp_path / "images")


@pytest.fixture
def photo(images):
    """One of the images."""
    return images / "dogs" / "dogs_1.jpg"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run that nothing disturbed, made once, on what the fixture `images` draws. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    finished = train(draw_images(folder / "images"), "--output", folder / "runs")
    (folder / "runs/stderr.txt").write_text(finished.stderr)
    return folder / "runs" / "001"


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of weights as Keras writes them."""
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    write_random_weights(path)
    return path


@pytest.fixture
def run_folder(trained, in_tmp_path):
    """A copy of the trained run to change, runs/001."""
    return Path(shutil.copytree(trained, "runs/001"))


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Every test works in a folder of its own, not in the project's."""
    monkeypatch.chdir(tmp_path)
    assert not os.path.exists("runs")
