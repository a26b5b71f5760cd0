"""Damage: files of a run and of the cache are damaged or swapped; nothing is predicted or trained with them unnoticed."""

import json
import os
import shutil

import numpy as np

from classifier.base.console import DONE, FAILED, NO_DATA, say
from tools.reliability import Result
from tools.reliability.trainings import Trainings, call, difference, sound

NO_EFFECT = {"curves.png", "first_batch.png", "skipped.csv", ".lock"}  # nothing reads them


def check(folder, short, seed):
    """Damage one file at a time, then predict and resume. Yields Results.

    Each time there must be the answer of the undamaged run, or one line of error and an exit code.
    """
    rng, trainings = np.random.default_rng(seed), Trainings(folder)
    for kind in ("cnn",) if short else ("cnn", "head"):
        whole = folder / f"whole {kind}"
        for output, more in ((whole, []), (folder / "other", ["--seed", 1])):
            sound(call("train", *trainings.flags(kind), *more, "--output", output))
        expected = answers(whole, trainings.images)
        files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.name not in NO_EFFECT)
        failed, count = 0, 15 if short else 200
        for number in range(count):
            file, damaged = files[number % len(files)], folder / "damaged"
            shutil.copytree(whole, damaged)
            harm = HARMS[rng.integers(len(HARMS))]
            if not harm(damaged / file, folder / "other" / file, rng):
                harm = flip
                flip(damaged / file, None, rng)
            problem = problem_of(damaged, trainings.images, expected, whole / "001")
            if problem:
                failed += 1
                say(f"{kind}: {harm.__name__} {file}: {problem}")
                damaged.rename(folder / f"damaged {kind} {number}")
            shutil.rmtree(damaged, ignore_errors=True)
        shutil.rmtree(folder / "other")
        yield Result(f"a damaged file in a run or its cache ({kind}): predict, resume", count, failed)


def truncate(path, other, rng):
    """Cut a file at a random place."""
    os.truncate(path, rng.integers(path.stat().st_size))
    return True


def flip(path, other, rng):
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    return True


def empty(path, other, rng):
    """Leave nothing of a file but its name."""
    path.write_bytes(b"")
    return True


def delete(path, other, rng):
    """Remove a file."""
    path.unlink()
    return True


def swap(path, other, rng):
    """Put another run's file in its place, if that has one."""
    if not other.exists() or other.read_bytes() == path.read_bytes():
        return False
    shutil.copy(other, path)
    return True


HARMS = (truncate, flip, empty, delete, swap)


def answers(output, images):
    """What predict.py answers, through LiteRT if it can, and through TensorFlow: two finished processes."""
    predict = ("predict", "--model", output / "001", "--format", "json", images, "--runtime")
    return [call(*predict, runtime) for runtime in ("auto", "tensorflow")]


def problem_of(output, images, expected, whole):
    """What is wrong with what the scripts make of a damaged run, in words; None if nothing is."""
    for got, wanted in zip(answers(output, images), expected, strict=True):
        problem = problem_with(got, lambda got=got, wanted=wanted: same_answers(got, wanted))
        if problem:
            return f"predict --runtime {got.args[-1]}: {problem}"
    got = call("train", "--resume", output / "001")
    if "instead" in got.stderr:  # the selected weights are lost, which is said, and the newest predict
        return problem_with(got, lambda: None)
    problem = problem_with(got, lambda: difference(output / "001", whole))
    return problem and f"train --resume: {problem}"


def problem_with(finished, compare):
    """What is wrong with a finished process: it must fail with one line of error, or do what `compare()` finds right."""
    if finished.returncode == DONE:
        return compare()
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    if finished.returncode in (FAILED, NO_DATA) and len(errors) == 1:
        return None
    return f"exit code {finished.returncode}: {finished.stderr.strip()[-300:]}"


def same_answers(got, wanted):
    """None if two answers are the same but for rounding, or what they were made with is said to be another checkpoint."""
    if "instead" in got.stderr or "no image will be unknown" in got.stderr:  # it is said
        return None
    got, wanted = (np.array(list(numbers_in(json.loads(answer.stdout)))) for answer in (got, wanted))
    return None if got.shape == wanted.shape and np.allclose(got, wanted, atol=1e-3) else "another answer, unsaid"


def numbers_in(data):
    """All numbers in JSON data, in order."""
    if isinstance(data, dict):
        data = [data[name] for name in sorted(data)]
    if isinstance(data, list):
        for value in data:
            yield from numbers_in(value)
    elif isinstance(data, (int, float)):
        yield float(data)
