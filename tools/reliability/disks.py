"""Disks: changes of files fail while a training runs; it goes on, or says why not, and can be resumed once there is room."""

import errno
import shutil

import numpy as np

from classifier.console import FAILED, NO_DATA, say
from classifier.runs import LITERT, find_run
from tests import faults
from tools.reliability import Result
from tools.reliability.trainings import Trainings, difference, finish, sound, start

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
PLACES = (".cache/", "checkpoints/", "history", "model.json", "tflite")  # parts of paths; all else is "other files"


def check(folder, short, seed):
    """Let changes of files fail, once and from then on, in each place that a training writes to. Yields Results."""
    rng, trainings = np.random.default_rng(seed), Trainings(folder)
    trainings.undisturbed("cnn")
    output = folder / "runs"
    flags = ("train", *trainings.flags("cnn"), "--output", output)
    sound(finish(start(*flags, env=faults.environment(output, log=folder / "log"))))
    places = {}
    for number, change in enumerate(faults.read_log(folder / "log"), 1):
        places.setdefault(place_of(change), []).append(number)
    shutil.rmtree(output)
    for place, numbers in places.items():
        trials = [(error, lasting) for error in ERRORS for lasting in (False, True)]
        if short:
            trials = [trials[rng.integers(len(trials))]]
        failed = 0
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


def place_of(change):
    """Which of PLACES a change is in."""
    path = change.other or change.path
    return next((place for place in PLACES if place in path), "other files")


def problem_after(flags, output, expected, faulty):
    """What is wrong with a training in the environment `faulty`, or with it after it was resumed, in words, or None."""
    finished = finish(start(*flags, env=faulty))
    errors = [line for line in finished.stderr.splitlines() if "error:" in line]
    if finished.returncode not in (0, FAILED) or "Traceback" in finished.stderr or len(errors) != bool(finished.returncode):
        return f"exit code {finished.returncode}: {finished.stderr.strip()[-500:]}"
    if finished.returncode or not (output / "001" / LITERT).exists():  # it went on without an export, and said so
        resumed = finish(start("train", "--resume", "--output", output))
        if resumed.returncode == NO_DATA and not any(output.glob("*/checkpoints/newest/ckpt-*.index")):
            resumed = finish(start(*flags))
        if resumed.returncode:
            return f"resumed: exit code {resumed.returncode}: {resumed.stderr.strip()[-500:]}"
    return difference(find_run(output), expected)
