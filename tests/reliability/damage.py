"""Damage: files of a run and of the cache are damaged or swapped; nothing is predicted or trained with them unnoticed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from classifier.base.console import DONE, FAILED, NO_DATA
from tests.comparing import difference
from tests.reliability import Result, count
from tests.reliability.trainings import Trainings, call, problem_with_end, sound

NO_EFFECT = {"curves.png", "first_batch.png", "skipped.csv", ".lock"}  # nothing reads them


def check(folder: Path, short: bool, seed: int) -> Iterator[Result]:
    """Damage one file at a time, then predict and resume.

    Each time there must be the answer of the undamaged run, or one line of error and an exit code.
    """
    rng, trainings = np.random.default_rng(seed), Trainings(folder)
    for kind in ("cnn",) if short else ("cnn", "head"):
        sound(call("train", *trainings.flags(kind), "--seed", 1, "--output", folder / "other"))
        problems = damage_files(trainings, kind, folder, 6 if short else 200, rng)
        yield count(f"a damaged file in a run or its cache ({kind}): predict, resume", problems, folder / "damaged")
        shutil.rmtree(folder / "other")


def damage_files(trainings, kind: str, folder: Path, trials: int, rng: np.random.Generator) -> Iterator[str | None]:
    """Damage a file in each trial, in a random way."""
    whole = trainings.undisturbed(kind).parent
    expected = answers(whole, trainings.images)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.name not in NO_EFFECT)
    places = np.linspace(0, len(files), trials, endpoint=False).astype(int) if trials < len(files) else range(trials)
    for place in places:
        file, harm = files[place % len(files)], rng.choice(list(HARMS))
        shutil.copytree(whole, folder / "damaged")
        HARMS[harm](folder / "damaged" / file, folder / "other" / file, rng)
        problem = problem_of(folder / "damaged", trainings.images, expected, whole / "001")
        yield problem and f"{harm} {file}: {problem}"


def flip(path: Path, other: Path, rng: np.random.Generator) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def swap(path: Path, other: Path, rng: np.random.Generator) -> None:
    """Put another run's file in its place; change one bit where that has none, or the same."""
    if other.exists() and other.read_bytes() != path.read_bytes():
        shutil.copy(other, path)
    else:
        flip(path, other, rng)


HARMS: dict[str, Callable[[Path, Path, np.random.Generator], object]] = {
    "truncate": lambda path, other, rng: os.truncate(path, rng.integers(path.stat().st_size)),
    "flip": flip,
    "empty": lambda path, other, rng: path.write_bytes(b""),
    "delete": lambda path, other, rng: path.unlink(),
    "swap": swap,
}


def answers(output: Path, images: Path) -> list:
    """What predict.py answers, through LiteRT if it can, and through TensorFlow: two finished processes."""
    predict = ("predict", "--model", output / "001", "--format", "json", images, "--runtime")
    return [call(*predict, runtime) for runtime in ("auto", "tensorflow")]


def problem_of(output: Path, images: Path, expected: list, whole: Path) -> str | None:
    """What is wrong with what the scripts make of a damaged run, in words; None if nothing is."""
    for got, wanted in zip(answers(output, images), expected, strict=True):
        problem = problem_with_end(got, (FAILED, NO_DATA)) or (got.returncode == DONE and other_answer(got, wanted))
        if problem:
            return f"predict --runtime {got.args[-1]}: {problem}"
    got = call("train", "--resume", output / "001")
    problem = problem_with_end(got, (FAILED, NO_DATA))
    if not problem and got.returncode == DONE and "instead" not in got.stderr:  # else selected weights are lost: it is said
        problem = difference(output / "001", whole)
    return problem and f"train --resume: {problem}"


def other_answer(got, wanted) -> str | None:
    """What is wrong with an answer: it must be the same but for rounding, or say what is used instead."""
    if got.returncode:
        return got.stderr
    if "instead" in got.stderr or "no image will be unknown" in got.stderr:
        return None
    values = [tf.nest.flatten(json.loads(answer.stdout)) for answer in (got, wanted)]  # in the order of names
    figures = [np.array([value for value in each if isinstance(value, (int, float))], float) for each in values]
    return None if figures[0].shape == figures[1].shape and np.allclose(*figures, atol=1e-3) else "another answer, unsaid"


def problem_with_answers(output: Path, images: Path, expected: list) -> str | None:
    """What is wrong with what predict.py answers, if it must answer the same as expected."""
    pairs = zip(answers(output, images), expected, strict=True)
    return next(filter(None, (other_answer(*pair) for pair in pairs)), None)
