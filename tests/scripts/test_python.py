"""Classifier as programs use it: in threads, in processes, with images of many kinds, beside files of their own."""

import concurrent.futures
import multiprocessing
import os

import pytest

from classifier import Classifier
from classifier.base.console import UserError


@pytest.mark.parametrize("runtime", ["litert", "tensorflow"])
def test_threads_and_processes_share_a_classifier(trained, images, runtime):
    classifier, paths = Classifier(trained, runtime), sorted(images.rglob("*.jpg"))
    answer = lambda path: next(classifier.predict([path]))  # noqa: E731
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, paths * 10)) == list(map(answer, paths)) * 10
    together = list(classifier.predict(paths))
    in_turn = zip(classifier.predict(paths), classifier.predict(paths[::-1]), strict=True)
    assert list(in_turn) == list(zip(together, classifier.predict(paths[::-1]), strict=True))


def forked(classifier, paths, answers):
    try:
        answers.put(list(classifier.predict(paths)))
    except UserError as error:
        answers.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("runtime", ["litert", "tensorflow"])
def test_a_process_that_is_forked_predicts_or_says_why_not(trained, images, runtime):
    classifier, paths = Classifier(trained, runtime), sorted(images.rglob("*.jpg"))[:3]
    expected, context = list(classifier.predict(paths)), multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=forked, args=(classifier, paths, answers))
    process.start()
    answer = answers.get()
    process.join()
    assert answer == expected if runtime == "litert" else "before this process was forked" in answer
