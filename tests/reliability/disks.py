"""Disks: changes of files fail while a script runs; it goes on, or says why not, and can be resumed once there is room."""

import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from classifier.base.console import PROJECT, say
from tests.comparing import difference
from tests.reliability import Result, count, faults
from tests.reliability.damage import answers, problem_with_answers
from tests.reliability.trainings import Trainings, changes_of, finish, problem_when_resumed, problem_with_end, start

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
PLACES = (".cache/", "checkpoints/", "history", "model.json", "tflite")  # parts of paths; all else is "other files"


def check(folder: Path, short: bool, seed: int) -> Iterator[Result]:
    """Let changes of files fail, once and from then on, wherever a script writes."""
    rng, trainings, output = np.random.default_rng(seed), Trainings(folder), folder / "runs"
    train = ("train", *trainings.flags("cnn"), "--output", output)
    places: dict[str, list[int]] = {}
    for number, change in enumerate(changes_of(train, output), 1):
        path = change.other or change.path
        places.setdefault(next((place for place in PLACES if place in path), "other files"), []).append(number)
    shutil.rmtree(output)
    for place in rng.permutation(list(places))[: 1 if short else None]:
        problems = (fail_training(trainings, output, fault) for fault in faults_at(places[place], short, rng))
        yield count(f"a disk that fails while training: {place}", problems, output)

    model = ("--model", output / "001")
    written = ("--report", output / "r.html", "--predictions", output / "p.csv")
    scripts = {
        "exporting to LiteRT": ("export", *model),
        "exporting a SavedModel": ("export", *model, "--format", "savedmodel"),
        "writing a report": ("evaluate", trainings.images, *model, *written),
    }
    for what in rng.permutation(list(scripts))[: 1 if short else None]:
        yield count(f"a disk that fails while {what}", fail_script(trainings, output, scripts[what], short, rng), output)

    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        say("nothing can be mounted here: read-only disks are not tried")
        return
    problems = (remount(trainings, folder / "mounted", rng.uniform(0, 0.3)) for _ in range(1 if short else 10))
    yield count("a disk that becomes read-only while training", problems, folder / "mounted")


def faults_at(numbers, short: bool, rng: np.random.Generator) -> list[dict]:
    """Faults at some of these changes, for faults.environment(): each error, once and lasting; in short one of them."""
    chosen = [{"error": error, "lasting": lasting} for error in ERRORS for lasting in (False, True)]
    chosen = [chosen[rng.integers(len(chosen))]] if short else chosen
    return [fault | {"at": int(rng.choice(numbers))} for fault in chosen]


def fail_training(trainings, output: Path, fault: dict) -> str | None:
    """Train on a failing disk, then resume. Returns what is wrong, in words, or None."""
    flags, expected = trainings.flags("cnn"), trainings.undisturbed("cnn")
    finished = finish(start("train", *flags, "--output", output, env=faults.environment(output, **fault)))
    problem = problem_with_end(finished)
    if not problem and (finished.returncode or not (output / "001/model.tflite").exists()):  # no export: that was said
        problem = problem_when_resumed(flags, output, expected)
    problem = problem or difference(max(output.glob("0*")), expected)
    return problem and f"{fault}: {problem}"


def fail_script(trainings, output: Path, script: tuple, short: bool, rng: np.random.Generator) -> Iterator[str | None]:
    """Run a script on a failing disk: it must be done or fail in one line, and what the run predicts must stay."""
    whole = trainings.undisturbed("cnn").parent
    expected = answers(whole, trainings.images)
    shutil.copytree(whole, output)
    changes = len(changes_of(script, output))
    shutil.rmtree(output)
    for fault in faults_at(range(1, changes + 1), short, rng):
        shutil.copytree(whole, output)
        finished = finish(start(*script, env=faults.environment(output, **fault)))
        problem = problem_with_end(finished) or problem_with_answers(output, trainings.images, expected)
        yield problem and f"{fault}: {problem}"


REMOUNT = """
import os, pathlib, subprocess, sys, time
train, disk, seconds, *flags = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True)
process = subprocess.Popen([sys.executable, train, *flags, "--output", f"{disk}/runs"], stdout=subprocess.DEVNULL,
                           stderr=subprocess.PIPE, text=True)
while process.poll() is None and not list(pathlib.Path(disk).glob("runs/001/checkpoints/training/*.index")):
    time.sleep(0.01)
time.sleep(float(seconds))
while process.poll() is None and subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True).returncode:
    pass  # not while a file is open for writing
_, said = process.communicate()
subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
if process.returncode:
    subprocess.run([sys.executable, train, "--resume", "--output", f"{disk}/runs"], check=True, capture_output=True)
subprocess.run(["cp", "-r", f"{disk}/runs", f"{disk}/../kept"], check=True)
print(process.returncode)
print(said, file=sys.stderr)
"""


def remount(trainings, disk: Path, seconds: float) -> str | None:
    """Make a real disk read-only while a training writes to it, then resume. Returns what is wrong, in words, or None."""
    disk.mkdir()
    kept = disk.with_name("kept")
    shutil.rmtree(kept, ignore_errors=True)
    script = [sys.executable, "-c", REMOUNT, PROJECT / "train.py", disk, seconds, *trainings.flags("cnn")]
    done = subprocess.run(["unshare", "-rm", *map(str, script)], capture_output=True, text=True)
    if done.returncode:
        return done.stderr
    ended = subprocess.CompletedProcess(script, int(done.stdout), "", done.stderr)
    return problem_with_end(ended) or difference(max(kept.glob("0*")), trainings.undisturbed("cnn"))
