"""Ways: files of every form get one answer from predict.py, Classifier, a SavedModel, an HTML page and the demo page."""

import contextlib
import io
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import gradio_client
import tensorflow as tf

from classifier import Classifier
from classifier.base.console import PROJECT
from classifier.base.prefetch import in_chunks
from classifier.export.serving import SERVED
from tests.browser import answers_of, launched, open_page
from tests.formats import cases
from tests.reliability import Result, count
from tests.reliability.trainings import finish, sound, start

MOST = 1e-3  # that a probability may differ
IMAGES = PROJECT / "training_data"
NO_BROWSER = (".tif", ".heic", ".ppm", ".pgm", ".pbm")  # Chromium reads none of these
Answers = list[dict[str, float] | str]  # for each file {class: probability}, or why it was refused


def check(folder: Path, short: bool, seed: int) -> Iterator[Result]:
    """Ask each way for all files, and compare with predict.py: the probabilities, and which files are refused."""
    sound(finish(start("train", "--data-dir", IMAGES, "--epochs", 3, "--seed", seed, "--output", folder / "runs")))
    run, files = folder / "runs" / "001", write_files(folder / "files")[:: 9 if short else 1]
    expected = by_predict(run, files)
    for way in (by_classifier, by_saved_model, by_html, by_demo):
        triples = list(zip(files, way(run, files), expected, strict=True))
        distances = [distance(*pair) for _, *pair in triples if not any(isinstance(answer, str) for answer in pair)]
        what = f"{way.__name__[3:]}: {len(distances)} of {len(files)} files answered, probabilities differ by at most "
        yield count(f"{what}{max(distances):.1g}", (problem_with(way, *triple) for triple in triples), folder / "none")


def write_files(folder: Path) -> list[Path]:
    """Write files of every form, damaged and renamed ones of every format, and photos of their own size; returns them."""
    files = {f"{number} {case.name}": case.data for number, case in enumerate(cases())}
    tiffs = [name for name in files if name.endswith(".tif")]
    files = {name: data for name, data in files.items() if name not in tiffs or name in tiffs[::9]}  # most are such
    for suffix, data in {Path(name).suffix: data for name, data in files.items()}.items():
        files |= {f"half{suffix}": data[: len(data) // 2], f"renamed {suffix}{'.png' if suffix == '.jpg' else '.jpg'}": data}
    files |= {path.name: path.read_bytes() for path in sorted((PROJECT / "testing_data").rglob("*.jpg"))[::9]}
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def problem_with(way, path: Path, answer, expected) -> str | None:
    """What is wrong with an answer, in words, or None."""
    refused, other = isinstance(answer, str), isinstance(expected, str)
    if refused and other:
        return None
    if way is by_saved_model and (other and path.name.startswith("renamed")):  # it knows no names
        return None
    if refused or other:
        start = path.read_bytes()[:9]
        taken = start.startswith(SERVED) if way is by_saved_model else path.suffix not in NO_BROWSER or way is not by_html
        return f"{path}: {answer}, not {expected}" if taken or other else None
    return f"{path} differs by {distance(answer, expected):.2g}" if distance(answer, expected) > MOST else None


def distance(answer: dict[str, float], expected: dict[str, float]) -> float:
    """The largest difference of a probability."""
    return max(abs(answer[name] - probability) for name, probability in expected.items())


def by_predict(run: Path, files: list[Path]) -> Answers:
    """The answers of predict.py."""
    answers = json.loads(finish(start("predict", "--model", run, "--format", "json", *files)).stdout)
    return [answer.get("error") or answer["probabilities"] for answer in answers]


def by_classifier(run: Path, files: list[Path]) -> Answers:
    """The answers of Classifier, which here runs TensorFlow."""
    with contextlib.redirect_stderr(io.StringIO()):  # the reasons
        return [answer.reason or answer.probabilities for answer in Classifier(run, "tensorflow").predict(files)]


def by_saved_model(run: Path, files: list[Path]) -> Answers:
    """The answers of the signature predict_files of an exported SavedModel."""
    sound(finish(start("export", "--format", "savedmodel", "--model", run, "--data-dir", IMAGES)))
    predict, answers = tf.saved_model.load(run / "saved_model").signatures["predict_files"], []
    for path in files:
        try:
            said = {name: value[0].numpy() for name, value in predict(image_bytes=tf.constant([path.read_bytes()])).items()}
            answers.append(dict(zip(map(bytes.decode, said["classes"]), said["probabilities"], strict=True)))
        except tf.errors.InvalidArgumentError as error:
            answers.append(str(error))
    return answers


def by_html(run: Path, files: list[Path]) -> Answers:
    """The answers of an exported page in Chromium. The tests keep the two packages from npm that it needs."""
    for package in (PROJECT / "runs" / ".cache").glob("*.tgz"):
        shutil.copy(package, run.parent / ".cache")
    sound(finish(start("export", "--format", "html", "--model", run, "--data-dir", IMAGES)))
    with launched() as browser, open_page(browser, (run / "model.html").as_uri(), offline=True) as page:
        page.set_default_timeout(600_000)
        shown = answers_of(page, files)
    return [shown[path.name][1] or shown[path.name][2][-1] for path in files]


def by_demo(run: Path, files: list[Path]) -> Answers:
    """The answers of the demo page, as a program asks for them."""
    with socket.create_server(("127.0.0.1", 0)) as attempt:
        port = attempt.getsockname()[1]
    process, answers = start("demo", "--model", run, "--port", port, stderr=subprocess.DEVNULL), []
    try:
        next(line for line in process.stdout if line.startswith("open http"))
        with contextlib.closing(gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False)) as client:
            for some in in_chunks(files, 20):
                answers += client.predict([gradio_client.handle_file(path) for path in some], api_name="/predict")
    finally:
        process.terminate()
        process.wait()
    return [answer.get("error") or answer["probabilities"] for answer in answers]
