"""Threads: of a Classifier that several threads use at once, every answer is the one that it gives to one thread."""

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path

from classifier import Classifier
from tests.reliability import Result, count
from tests.reliability.trainings import Trainings

CALLS = 10_000


def check(folder: Path, short: bool, seed: int) -> Iterator[Result]:
    """Ask for one image a call, from one thread and from four."""
    trainings, calls = Trainings(folder), CALLS // 20 if short else CALLS
    images = sorted(trainings.images.rglob("*.png"))
    for runtime in ("litert", "tensorflow"):
        classifier = Classifier(trainings.undisturbed("cnn"), runtime)
        expected = {path: next(classifier.predict([path])) for path in images}

        def problem(number, classifier=classifier, expected=expected):
            path = images[(seed + number) % len(images)]
            (answer,) = classifier.predict([path])
            return None if answer == expected[path] else f"{answer}, not {expected[path]}"

        for threads in (1, 4):
            start = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(threads) as pool:
                problems = list(pool.map(problem, range(calls)))
            rate = calls / (time.perf_counter() - start)
            yield count(f"calls from {threads} threads, {runtime}: {rate:,.0f} a second", problems, folder / "none")
