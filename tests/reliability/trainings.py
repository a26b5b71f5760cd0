"""What the checks train: small runs of every kind, in this process or in one of their own."""

import contextlib
import importlib
import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from classifier.base import console
from classifier.base.console import FAILED, NO_DATA, PROJECT, UserError
from experiments.draw_samples import draw
from tests.comparing import difference, write_random_weights
from tests.reliability import faults

SMALL = ("--image-size", 32, "--batch-size", 8)
KINDS = {
    "cnn": (*SMALL, "--epochs", 3),
    "resnet": (*SMALL, "--network", "resnet", "--epochs", 2),
    "head": (*SMALL, "--network", "mobilenet", "--epochs", 3),
    "fine-tuning": (*SMALL, "--network", "mobilenet", "--epochs", 2, "--fine-tune", "conv_pw_11", "--fine-tune-epochs", 2),
}


class Trainings:
    """Trainings of each of KINDS on drawings in `folder`, and for each kind a run that nothing disturbs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.images = draw_images(folder / "images")

    def flags(self, kind: str) -> list:
        """The flags of train.py for a kind, all but --output."""
        flags = ["--data-dir", self.images, *KINDS[kind]]
        if "mobilenet" in flags:
            weights = self.folder / "mobilenet.weights.h5"
            if not weights.exists():
                write_random_weights(weights)
            flags += ["--weights", weights]
        return flags

    def undisturbed(self, kind: str) -> Path:
        """The folder of a run that nothing disturbs."""
        output = self.folder / f"undisturbed {kind}"
        if not output.exists():
            sound(call("train", *self.flags(kind), "--output", output))
        return output / "001"


def draw_images(folder: Path, per_class: int = 12) -> Path:
    """Class folders of small drawings."""
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            drawing = draw(name[:-1], np.random.default_rng([len(name), number]))
            cv2.imwrite(str(folder / name / f"{number}.png"), cv2.resize(drawing, (48, 48), interpolation=cv2.INTER_AREA))
    return folder


def call(script: str, *arguments) -> subprocess.CompletedProcess:
    """Run a script's main() in this process, where TensorFlow is imported already; returns it like a finished process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = console.exit_code_of(importlib.import_module(script).main, [str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code
        except Exception as error:  # a traceback for the user
            code = f"{type(error).__name__}: {error}"
    return subprocess.CompletedProcess([script, *map(str, arguments)], code, out.getvalue(), err.getvalue())


def start(script: str, *arguments, **options) -> subprocess.Popen:
    """Start a script in a process of its own, as a user does."""
    command = [sys.executable, str(PROJECT / f"{script}.py"), *map(str, arguments)]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, **options)


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    """Wait for a process that was started; returns it as subprocess.run() does."""
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sound(finished: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    """The finished process; raises UserError if it failed: then the checks can show nothing."""
    if finished.returncode:
        raise UserError(f"{' '.join(map(str, finished.args))}: {end_of(finished)}")
    return finished


def end_of(finished: subprocess.CompletedProcess) -> str:
    """How a process ended, in words."""
    return f"exit code {finished.returncode}: {finished.stderr.strip()[-500:]}"


def problem_with_end(finished: subprocess.CompletedProcess, codes=(FAILED,)) -> str | None:
    """What is wrong with how a process ended: it must be done, or fail with one of the codes and one line of error."""
    errors = [line for line in finished.stderr.splitlines() if "error:" in line]
    if finished.returncode not in (0, *codes) or "Traceback" in finished.stderr:
        return end_of(finished)
    return end_of(finished) if finished.returncode and len(errors) != 1 else None


def is_saved(output: Path) -> bool:
    """Whether a training in `output` has saved a checkpoint."""
    return any(output.glob("*/checkpoints/*/ckpt-*.index"))


def problem_when_resumed(flags: list, output: Path, expected: Path, may_be_lost: bool | None = None) -> str | None:
    """What is wrong with a training after it was resumed, in words, or None; `expected` is the run that nothing disturbed.

    If it `may_be_lost` (None: if no checkpoint was saved yet), it is begun again where it cannot be resumed.
    """
    finished = call("train", "--resume", "--output", output)
    if finished.returncode == NO_DATA and (not is_saved(output) if may_be_lost is None else may_be_lost):
        finished = call("train", *flags, "--output", output)
    return f"resumed: {end_of(finished)}" if finished.returncode else difference(max(output.glob("0*")), expected)


def changes_of(script: tuple, folder: Path) -> list[faults.Change]:
    """All changes of files in a folder that a script makes."""
    log = folder.with_name("log")
    sound(finish(start(*script, env=faults.environment(folder, log=log))))
    changes = faults.read_log(log)
    log.unlink()
    return changes
