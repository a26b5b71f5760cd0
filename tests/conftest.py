"""What all tests share: drawn pictures, and the scripts, run as a user runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parent.parent
REAL_DATA = PROJECT.parent / "shared" / "data"
sys.path.insert(0, str(PROJECT))

from draw_samples import draw  # noqa: E402

needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real pictures in {REAL_DATA}")


def start(script, *arguments, change=None, **options):
    """Start a script as a user does; returns the process. `change` is Python to run first: a fault that users may meet."""
    file = [str(PROJECT / f"{script}.py")]
    if change:
        path = f"import sys; sys.path.insert(0, {str(PROJECT)!r})"
        file = ["-c", f"{path}\n{change}\nimport console, {script}\nconsole.run({script}.main)"]
    command = [sys.executable, *file, *map(str, arguments)]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, encoding="utf-8", errors="surrogateescape", **options)


def run(script, *arguments, code=0, text=None, **options):
    """Run a script to its end, check its exit code and that nothing crashed; returns the finished process."""
    process = start(script, *arguments, **options, **({} if text is None else {"stdin": subprocess.PIPE}))
    stdout, stderr = process.communicate(text, timeout=180)
    assert "Traceback" not in stderr, stderr
    assert process.returncode == code, f"exit code {process.returncode}\n{stdout}\n{stderr}"
    return subprocess.CompletedProcess(process.args, code, stdout, stderr)


def error_of(finished):
    """The one line of error on standard error."""
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, finished.stderr
    return lines[0]


def predictions(model, *paths, code=0, **options):
    """What predict.py says of the paths: {path: its JSON object}."""
    answers = json.loads(run("predict", "--model", model, "--format", "json", *paths, code=code, **options).stdout)
    return {answer["path"]: answer for answer in answers}


def save(path, picture):
    """Write an RGB (or grey) array; the suffix says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = picture[:, :, ::-1] if picture.ndim == 3 else picture
    path.write_bytes(cv2.imencode(path.suffix, bgr)[1].tobytes())
    return path


def draw_pictures(folder, per_class=12, classes=("cats", "dogs"), size=48):
    """Class folders with small drawings in them; a class that is neither cats nor dogs is stripes."""
    for name in classes:
        for k in range(per_class):
            rng = np.random.default_rng([classes.index(name), k])
            if name in ("cats", "dogs"):
                picture = cv2.resize(draw(name[:-1], rng), (size, size), interpolation=cv2.INTER_AREA)
            else:
                stripes = np.arange(size)[:, None, None] // rng.integers(2, 6) % 2
                picture = np.broadcast_to(stripes * rng.integers(60, 256, 3), (size, size, 3)).astype(np.uint8)
            save(Path(folder, name, f"{name}_{k}.jpg"), picture)
    return Path(folder)


QUICK = ("--image-size", 32, "--epochs", 2, "--batch-size", 8)


@pytest.fixture
def pictures(tmp_path):
    """A folder with two classes of twelve drawings."""
    return draw_pictures(tmp_path / "pictures")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run that nothing disturbed, made once, on what the fixture `pictures` draws. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    finished = run("train", "--data-dir", draw_pictures(folder / "pictures"), "--output", folder / "runs", *QUICK)
    (folder / "runs/stderr.txt").write_text(finished.stderr)
    return folder / "runs" / "001"


@pytest.fixture
def run_folder(trained, in_tmp_path):
    """A copy of the trained run to change, runs/001."""
    return Path(shutil.copytree(trained, "runs/001"))


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Every test works in a folder of its own, not in the project's."""
    monkeypatch.chdir(tmp_path)
    assert not os.path.exists("runs")
