"""Disks: changes of files fail while a script runs; it goes on, or says why not, and can be resumed once there is room."""

import errno
import shutil
import subprocess
import sys

import numpy as np

from classifier.base.console import FAILED, NO_DATA, PROJECT, say
from classifier.runs.folder import LITERT, find_run
from tests import faults
from tools.reliability import Result
from tools.reliability.damage import answers, same_answers
from tools.reliability.trainings import Trainings, difference, finish, sound, start

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
PLACES = (".cache/", "checkpoints/", "history", "model.json", "tflite")  # parts of paths; all else is "other files"


def check(folder, short, seed):
    """Let changes of files fail, once and from then on, wherever a script writes. Yields Results."""
    rng, trainings = np.random.default_rng(seed), Trainings(folder)
    trainings.undisturbed("cnn")
    yield from fail_while_training(folder, trainings, short, rng)
    yield from fail_in_other_scripts(folder, trainings, short, rng)
    yield from remount(folder, trainings, short, rng)


def fail_while_training(folder, trainings, short, rng):
    """Of changes in each place that a training writes to."""
    output = folder / "runs"
    flags = ("train", *trainings.flags("cnn"), "--output", output)
    sound(finish(start(*flags, env=faults.environment(output, log=folder / "log"))))
    places = {}
    for number, change in enumerate(faults.read_log(folder / "log"), 1):
        places.setdefault(place_of(change), []).append(number)
    shutil.rmtree(output)
    for place, numbers in some_of(places, 3, short, rng):
        failed, trials = 0, trials_of(short, rng)
        for error, lasting in trials:
            at = int(rng.choice(numbers))
            faulty = faults.environment(output, at=at, error=error, lasting=lasting)
            problem = problem_after(flags, output, trainings.undisturbed("cnn"), faulty)
            if problem:
                failed += 1
                say(f"{errno.errorcode[error]}{' from' if lasting else ' at'} change {at} ({place}): {problem}")
                if output.exists():
                    output.rename(folder / f"{place.strip('/.')} failed {failed}")
            shutil.rmtree(output, ignore_errors=True)
        yield Result(f"a disk that fails while training: {place}", len(trials), failed)


def some_of(things, count, short, rng):
    """The items of a dictionary: all, or in short some of them."""
    items = list(things.items())
    return [items[k] for k in sorted(rng.choice(len(items), count, replace=False))] if short else items


def trials_of(short, rng):
    """[(errno, whether all later changes fail, too)]: each pair, or one of them."""
    trials = [(error, lasting) for error in ERRORS for lasting in (False, True)]
    return [trials[rng.integers(len(trials))]] if short else trials


def fail_in_other_scripts(folder, trainings, short, rng):
    """Of changes that exports and reports make. They must fail in one line, and what the run predicts must stay."""
    output, whole = folder / "other", trainings.undisturbed("cnn").parent
    expected = answers(whole, trainings.images)
    scripts = {
        "exporting to LiteRT": ("export", "--model", output / "001"),
        "exporting a SavedModel": ("export", "--model", output / "001", "--format", "savedmodel"),
        "writing a report": (
            "evaluate",
            trainings.images,
            "--model",
            output / "001",
            "--report",
            output / "r.html",
            "--predictions",
            output / "p.csv",
        ),
    }
    for what, script in some_of(scripts, 1, short, rng):
        shutil.copytree(whole, output)
        sound(finish(start(*script, env=faults.environment(output, log=folder / "log"))))
        changes = len(faults.read_log(folder / "log"))
        (folder / "log").unlink()
        failed, trials = 0, trials_of(short, rng)
        for error, lasting in trials:
            shutil.rmtree(output)
            shutil.copytree(whole, output)
            at = int(rng.integers(1, changes + 1))
            faulty = faults.environment(output, at=at, error=error, lasting=lasting)
            finished = finish(start(*script, env=faulty))
            problem = problem_with_end(finished)
            for got, wanted in zip(answers(output, trainings.images), expected, strict=True):
                problem = problem or (got.stderr if got.returncode else same_answers(got, wanted))
            if problem:
                failed += 1
                say(f"{errno.errorcode[error]}{' from' if lasting else ' at'} change {at} while {what}: {problem}")
        shutil.rmtree(output)
        yield Result(f"a disk that fails while {what}", len(trials), failed)


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
subprocess.run(["cp", "-r", f"{disk}/runs", f"{disk}-kept"], check=True)
print(process.returncode)
print(said, file=sys.stderr)
"""


def remount(folder, trainings, short, rng):
    """Make a real disk read-only while a training writes to it."""
    disk, kept = folder / "mounted", folder / "mounted-kept"
    disk.mkdir()
    failed, count = 0, 1 if short else 10
    for _ in range(count):
        flags = map(str, trainings.flags("cnn"))
        script = [sys.executable, "-c", REMOUNT, PROJECT / "train.py", disk, str(rng.uniform(0, 0.3)), *flags]
        done = subprocess.run(["unshare", "-rm", *script], capture_output=True, text=True)
        if "Operation not permitted" in done.stderr:
            say("nothing can be mounted here: read-only disks are not tried")
            return
        problem = done.stderr if done.returncode else None
        finished = subprocess.CompletedProcess(script, int(done.stdout or 0), "", done.stderr)
        problem = problem or problem_with_end(finished) or difference(find_run(kept), trainings.undisturbed("cnn"))
        shutil.rmtree(kept, ignore_errors=True)
        if problem:
            failed += 1
            say(f"a disk that becomes read-only: {problem}")
    yield Result("a disk that becomes read-only while training", count, failed)


def problem_with_end(finished):
    """What is wrong with how a process ended on a failing disk: it must be done, or fail with one line of error."""
    errors = [line for line in finished.stderr.splitlines() if "error:" in line]
    if finished.returncode not in (0, FAILED) or "Traceback" in finished.stderr or len(errors) != bool(finished.returncode):
        return f"exit code {finished.returncode}: {finished.stderr.strip()[-500:]}"
    return None


def place_of(change):
    """Which of PLACES a change is in."""
    path = change.other or change.path
    return next((place for place in PLACES if place in path), "other files")


def problem_after(flags, output, expected, faulty):
    """What is wrong with a training in the environment `faulty`, or with it after it was resumed, in words, or None."""
    finished = finish(start(*flags, env=faulty))
    if problem := problem_with_end(finished):
        return problem
    if finished.returncode or not (output / "001" / LITERT).exists():  # it went on without an export, and said so
        resumed = finish(start("train", "--resume", "--output", output))
        if resumed.returncode == NO_DATA and not any(output.glob("*/checkpoints/*/ckpt-*.index")):
            resumed = finish(start(*flags))
        if resumed.returncode:
            return f"resumed: exit code {resumed.returncode}: {resumed.stderr.strip()[-500:]}"
    return difference(find_run(output), expected)
