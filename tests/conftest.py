"""What all tests share: drawn images, trained runs, and the scripts, run as a user runs them."""

import csv
import fcntl
import functools
import importlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from browser import browser as browser  # a fixture for all tests
from comparing import write_random_weights

PROJECT = Path(__file__).resolve().parent.parent
REAL_DATA = PROJECT.parent / "shared" / "data"
HANGING = 1800  # seconds after which a process is taken to hang: far more than the slowest takes on the slowest machine
pytest.register_assert_rewrite("run_folders")

from classifier.base import console  # noqa: E402

# isort: split
import cv2  # noqa: E402
import numpy as np  # noqa: E402

from experiments.draw_samples import draw  # noqa: E402

PACKAGES = {"sklearn": "scikit-learn", "gradio_client": "gradio"}  # {module: package}, where the names differ
QUICK = ("--image-size", 32, "--epochs", 2, "--batch-size", 8)
DRAWING = cv2.resize(draw("dog", np.random.default_rng(5)), (90, 70), interpolation=cv2.INTER_AREA)
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real images in {REAL_DATA}")


def start(script, *arguments, **options):
    """Start a script as a user does; returns the process."""
    what = ["-m", script] if "." in script else [str(PROJECT / f"{script}.py")]
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


@functools.cache
def drawn(name, seed, size):
    """The bytes of a JPEG file of a small drawing; of a class that is neither cats nor dogs, of stripes."""
    rng = np.random.default_rng(seed)
    if name in ("cats", "dogs"):
        image = cv2.resize(draw(name[:-1], rng), (size, size), interpolation=cv2.INTER_AREA)
    else:
        stripes = np.arange(size)[:, None, None] // rng.integers(2, 6) % 2
        image = np.broadcast_to(stripes * rng.integers(60, 256, 3), (size, size, 3)).astype(np.uint8)
    return encoded(".jpg", image)


def draw_images(folder, per_class=12, classes=("cats", "dogs"), size=48):
    """Class folders with small drawings in them."""
    for position, name in enumerate(classes):
        Path(folder, name).mkdir(parents=True, exist_ok=True)
        for k in range(per_class):
            Path(folder, name, f"{name}_{k}.jpg").write_bytes(drawn(name, (position, k), size))
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
def made_once(tmp_path_factory, worker_id):
    """Call made_once(name, make) for a folder that all processes share; the first one that asks fills it: make(folder)."""
    here = tmp_path_factory.getbasetemp()
    shared = here if worker_id == "master" else here.parent

    def folder_of(name, make):
        folder, done = shared / name, shared / f"{name}.done"
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what another process failed to make
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def train_once(made_once):
    """Call train_once(name, *flags) for the folder of a run on what the fixture `images` draws, which is not to be changed.

    What it printed is beside it, in stdout.txt and stderr.txt; the images are in ../images.
    """

    def run_of(name, *flags):
        def make(folder):
            finished = train(draw_images(folder / "images"), *flags, "--output", folder / "runs")
            (folder / "runs/stdout.txt").write_text(finished.stdout)
            (folder / "runs/stderr.txt").write_text(finished.stderr)

        return made_once(name, make) / "runs" / "001"

    return run_of


@pytest.fixture(scope="session")
def trained(train_once):
    """The folder of a run of the default network that nothing disturbed. Not to be changed."""
    return train_once("trained")


@pytest.fixture(scope="session")
def weights(made_once):
    """A file of random weights for mobilenet, as Keras writes them."""
    name = "mobilenet.weights.h5"
    return made_once("weights", lambda folder: write_random_weights(folder / name)) / name


@pytest.fixture(scope="session")
def pretrained(train_once, weights):
    """The folder of a run of a head on pretrained features, which stops early. Not to be changed."""
    return train_once("pretrained", "--network", "mobilenet", "--weights", weights, "--epochs", 60, "--patience", 1)


@pytest.fixture
def no_litert(monkeypatch):
    """Train without the conversion for LiteRT, which is half of a small training; the shared runs have it."""
    monkeypatch.setattr("classifier.export.converters.export_for_prediction", lambda *_: None)


@pytest.fixture
def run_folder(trained, in_tmp_path):
    """A copy of the trained run to change, runs/001."""
    return Path(shutil.copytree(trained, "runs/001"))


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Every test works in a folder of its own, not in the project's."""
    monkeypatch.chdir(tmp_path)
    assert not os.path.exists("runs")


def pytest_terminal_summary(terminalreporter):
    """Say in one line what was skipped, and how to have it."""
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])]
    missing = [re.match(r"could not import '(\w+)", reason) for reason in reasons]
    packages = sorted({PACKAGES.get(match[1], match[1].replace("_", "-")) for match in missing if match})
    others = sorted({reason for reason, match in zip(reasons, missing, strict=True) if not match})
    if packages:
        install = f"pip install -r requirements.txt -c requirements-optional.txt {' '.join(packages)}"
        others.insert(0, f"optional packages are missing: {install}")
    if others:
        terminalreporter.write_line(f"skipped {len(reasons)} tests: {'; '.join(others)}")
