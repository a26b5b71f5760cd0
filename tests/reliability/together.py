"""Together: two processes at once on one run folder and one cache; nothing is lost, and nothing is half of each."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from classifier.base.console import DONE, FAILED
from tests.comparing import difference
from tests.reliability import Result, count
from tests.reliability.damage import other_answer
from tests.reliability.trainings import Trainings, call, end_of, finish, sound, start

BUSY = "another process is working in"
MORE = ("train", "--epochs", 5, "--resume")


def check(folder: Path, short: bool, seed: int) -> Iterator[Result]:
    """Run pairs of scripts at once, the second after a random part of a second."""
    rng, trainings, output = np.random.default_rng(seed), Trainings(folder), folder / "together"
    for pair in (training_and_predictions,) if short else PAIRS:
        problems = (pair(trainings, output, rng.uniform(0, 1)) for _ in range(1 if short else 13))
        yield count(f"at once: {pair.__name__.replace('_', ' ')}", problems, output)


def two_trainings(trainings, output: Path, seconds: float) -> str | None:
    """Into one folder of runs, with one cache that neither has yet."""
    problem = problem_of_pair(("train", *trainings.flags("cnn"), "--output", output), seconds, may_be_refused=False)
    runs = sorted(output.glob("0*"))
    if len(runs) != 2:
        return problem or f"{len(runs)} runs"
    return problem or difference(runs[0], trainings.undisturbed("cnn")) or difference(runs[1], runs[0])


def two_resumptions_of_a_run(trainings, output: Path, seconds: float) -> str | None:
    """For more epochs."""
    shutil.copytree(trainings.undisturbed("cnn").parent, output)
    return problem_of_pair((*MORE, output / "001"), seconds) or difference(output / "001", resumed(trainings))


def two_exports_of_a_run(trainings, output: Path, seconds: float) -> str | None:
    """In one format."""
    shutil.copytree(trainings.undisturbed("cnn"), output / "001")
    (output / "001/model.tflite").unlink()
    problem = problem_of_pair(("export", "--model", output / "001"), seconds)
    return problem or difference(output / "001", trainings.undisturbed("cnn"))


def training_and_predictions(trainings, output: Path, seconds: float) -> str | None:
    """Of one run that is resumed: no prediction meanwhile may fail, and the last one must be that of the resumed run."""
    expected = resumed(trainings)
    predict = ("predict", "--format", "json", trainings.images, "--model")
    shutil.copytree(trainings.undisturbed("cnn").parent, output)
    training = start(*MORE, output / "001")
    time.sleep(seconds)
    while training.poll() is None:
        predicted = finish(start(*predict, output / "001"))
        if predicted.returncode:
            finish(training)
            return f"predict.py: {end_of(predicted)}"
    trained, last = finish(training), call(*predict, output / "001")
    if trained.returncode:
        return end_of(trained)
    return difference(output / "001", expected) or other_answer(last, sound(call(*predict, expected)))


PAIRS = (two_trainings, two_resumptions_of_a_run, two_exports_of_a_run, training_and_predictions)


def resumed(trainings) -> Path:
    """The folder of a run that was resumed for MORE epochs with nothing beside it."""
    output = trainings.folder / "resumed"
    if not output.exists():
        shutil.copytree(trainings.undisturbed("cnn").parent, output)
        sound(call(*MORE, output / "001"))
    return output / "001"


def problem_of_pair(script: tuple, seconds: float, may_be_refused: bool = True) -> str | None:
    """Start the same script twice; what is wrong with how the two ended. One may be refused because the other is working."""
    first = start(*script)
    time.sleep(seconds)
    ended = [finish(process) for process in (start(*script), first)]
    for one in ended:
        refused = one.returncode == FAILED and BUSY in one.stderr and may_be_refused
        if one.returncode != DONE and not refused:
            return end_of(one)
    return None if any(one.returncode == DONE for one in ended) else "both were refused"
