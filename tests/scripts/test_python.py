"""Classifier as programs use it: in threads, in processes, with images of many kinds, beside files of their own."""

import concurrent.futures
import io
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
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


def test_images_of_every_kind_that_programs_have(trained, photo):
    pillow_image = pytest.importorskip("PIL.Image")
    classifier, data = Classifier(trained), photo.read_bytes()
    pixels = np.asarray(pillow_image.open(photo).convert("RGB"))
    clear = pillow_image.fromarray(np.dstack([np.full_like(pixels, 77), np.zeros(pixels.shape[:2], np.uint8)]))
    white = np.full_like(pixels, 255)
    files = [photo, str(photo), data, bytearray(data), memoryview(data), io.BytesIO(data), open(photo, "rb")]  # noqa: SIM115
    arrays = [pixels, pixels[:, :, ::-1][:, :, ::-1], pillow_image.open(photo)]
    answers = [answer._replace(path=None) for answer in classifier.predict([*files, *arrays, white, clear])]
    assert answers == [answers[0]] * 7 + [answers[7]] * 3 + [answers[-1]] * 2
    assert answers[0].probability == pytest.approx(answers[7].probability, abs=1e-3)
    assert next(classifier.predict([b"no image"])).reason == "not an image of a known kind"
    assert len(list(classifier.predict(np.stack([pixels, pixels])))) == 2

    for wrong in (open(photo, encoding="latin-1"), pixels.astype(float).tolist(), None, 7):  # noqa: SIM115
        with pytest.raises(ValueError, match='an image is a path, bytes, a file opened with "rb", .* not '):
            next(classifier.predict([wrong]))
    for grey in (pixels[:, :, 0], pixels / 255.0):
        with pytest.raises(ValueError, match="uint8 RGB, not "):
            next(classifier.predict([grey]))
    for alone in (str(photo), photo, data, pixels, io.BytesIO(data), pillow_image.open(photo), None):
        with pytest.raises(ValueError, match="a list of images is needed"):
            next(classifier.predict(alone))


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


@pytest.mark.parametrize("script", ["dataset", "predict", "train"])
def test_an_isolated_python_finds_our_modules(script):
    subprocess.run([sys.executable, "-I", PROJECT / f"{script}.py", "--help"], stdout=subprocess.DEVNULL, check=True)


def test_a_missing_library_of_the_system_is_one_line(photo):
    Path("cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file', name='cv2')")
    command = [sys.executable, PROJECT / "predict.py", photo]
    finished = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True)
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: libGL.so.1")
    assert line.endswith("pip install --force-reinstall opencv-python-headless")
