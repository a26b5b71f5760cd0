"""Classifier as programs use it: in threads, in processes, with images of many kinds, beside files of their own."""

import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

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


def test_a_program_may_have_modules_of_our_names(trained, photo):
    for name in ("model", "dataset", "train", "tests", "experiments"):
        Path(f"{name}.py").write_text(f"mine = {name!r}")
    Path("app.py").write_text(f"""
import sys
sys.path.append({str(PROJECT)!r})
from classifier import Classifier
(answer,) = Classifier({str(trained)!r}, "tensorflow").predict([{str(photo)!r}])
import dataset, experiments, model, tests, train
print(answer.reason, dataset.mine, experiments.mine, model.mine, tests.mine, train.mine)
""")
    finished = subprocess.run([sys.executable, "app.py"], stdout=subprocess.PIPE, text=True)
    assert finished.stdout == "None dataset experiments model tests train\n"


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
