"""Together: two processes at once on one run folder and one cache; nothing is lost, and nothing is half of each."""

import shutil
import time

import numpy as np

from classifier.base.console import DONE, FAILED, say
from tools.reliability import Result
from tools.reliability.damage import same_answers
from tools.reliability.trainings import Trainings, call, difference, finish, sound, start

BUSY = "another process is working in"
MORE = ("train", "--epochs", 5, "--resume")


def check(folder, short, seed):
    """Run pairs of scripts at once, the second after a random part of a second. Yields Results."""
    rng, trainings = np.random.default_rng(seed), Trainings(folder)
    for what, pair in list(PAIRS.items())[:: 3 if short else 1]:
        count, failed = (1 if short else 13), 0
        trial = pair(folder, trainings)
        for number in range(count):
            output = folder / f"{what}, {number}"
            problem = trial(output, rng.uniform(0, 1))
            if problem:
                failed += 1
                say(f"{what}: {problem}")
            else:
                shutil.rmtree(output)
        yield Result(f"at once: {what}", count, failed)


def two_trainings(folder, trainings):
    """Into one folder of runs, with one cache that neither has yet."""

    def trial(output, seconds):
        problem = problem_of_pair(("train", *trainings.flags("cnn"), "--output", output), seconds, may_be_refused=False)
        runs = sorted(output.glob("0*"))
        if len(runs) != 2:
            return problem or f"{len(runs)} runs"
        return problem or difference(runs[0], trainings.undisturbed("cnn")) or difference(runs[1], runs[0])

    return trial


def two_resumptions(folder, trainings):
    """Of one run, for more epochs."""
    expected = resumed(folder, trainings)

    def trial(output, seconds):
        shutil.copytree(trainings.undisturbed("cnn").parent, output)
        return problem_of_pair((*MORE, output / "001"), seconds) or difference(output / "001", expected)

    return trial


def resumed(folder, trainings):
    """The folder of a run that was resumed for MORE epochs with nothing beside it."""
    output = folder / "resumed"
    if not output.exists():
        shutil.copytree(trainings.undisturbed("cnn").parent, output)
        sound(call(*MORE, output / "001"))
    return output / "001"


def two_exports(folder, trainings):
    """Of one run, in one format."""
    whole = trainings.undisturbed("cnn")

    def trial(output, seconds):
        shutil.copytree(whole, output / "001")
        (output / "001/model.tflite").unlink()
        return problem_of_pair(("export", "--model", output / "001"), seconds) or difference(output / "001", whole)

    return trial


def training_and_predictions(folder, trainings):
    """Of one run that is resumed: no prediction meanwhile may fail, and the last one must be that of the resumed run."""
    expected = resumed(folder, trainings)
    predict = ("predict", "--format", "json", trainings.images, "--model")
    after = sound(call(*predict, expected))

    def trial(output, seconds):
        shutil.copytree(trainings.undisturbed("cnn").parent, output)
        training = start(*MORE, output / "001")
        time.sleep(seconds)
        while training.poll() is None:
            predicted = finish(start(*predict, output / "001"))
            if predicted.returncode:
                finish(training)
                return f"predict.py: {predicted.stderr.strip()[-300:]}"
        trained, last = finish(training), call(*predict, output / "001")
        if trained.returncode or last.returncode:
            return (trained.stderr + last.stderr).strip()[-300:]
        return difference(output / "001", expected) or same_answers(last, after)

    return trial


PAIRS = {
    "two trainings": two_trainings,
    "two resumptions of a run": two_resumptions,
    "two exports of a run": two_exports,
    "a training and predictions of a run": training_and_predictions,
}


def problem_of_pair(script, seconds, may_be_refused=True):
    """Start the same script twice; what is wrong with how the two ended. One may be refused because the other is working."""
    first = start(*script)
    time.sleep(seconds)
    ended = [finish(process) for process in (start(*script), first)]
    for one in ended:
        refused = one.returncode == FAILED and BUSY in one.stderr and may_be_refused
        if one.returncode != DONE and not refused:
            return f"exit code {one.returncode}: {one.stderr.strip()[-300:]}"
    return None if any(one.returncode == DONE for one in ended) else "both were refused"
