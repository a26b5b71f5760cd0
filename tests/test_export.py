"""Exported networks, and prediction without TensorFlow."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import PROJECT, QUICK, error_of, predictions, run

from classifier import exporting
from classifier.checkpoints import load_network
from classifier.exporting import logits_of
from classifier.files import locked
from classifier.images import load_image
from classifier.inference import load_litert
from classifier.networks import compile_outputs
from classifier.runs import read_metadata


def test_litert_and_tensorflow_give_the_same_probabilities(trained, images):
    by_litert = predictions(trained, images, "--runtime", "litert")
    by_tensorflow = predictions(trained, images, "--runtime", "tensorflow")
    assert len(by_litert) == 24
    for path, answer in by_litert.items():
        assert answer["probabilities"] == pytest.approx(by_tensorflow[path]["probabilities"], abs=1e-5)


def test_prediction_does_not_import_tensorflow(trained, images):
    script = "import sys, predict; predict.main(sys.argv[1:]); assert 'tensorflow' not in sys.modules"
    command = [sys.executable, "-c", script, "--model", trained, images]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == 24


def test_a_litert_file_that_is_damaged_or_stale_is_not_used(run_folder, images):
    photo = images / "cats/cats_1.jpg"
    expected = predictions(run_folder, photo)[str(photo)]["probabilities"]
    file = run_folder / "model.tflite"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    finished = run("predict", "--model", run_folder, photo)
    assert "model.tflite is damaged" in finished.stderr
    assert predictions(run_folder, photo)[str(photo)]["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert "--runtime tensorflow" in error_of(run("predict", "--model", run_folder, "--runtime", "litert", photo, code=1))

    few = shutil.copytree(images, "few", ignore=lambda folder, names: [name for name in names if "_1" in name])
    (Path(few) / "dogs/dogs_1.jpg").write_text("no image")
    made = run("export", "--model", run_folder, "--data-dir", few)  # made anew, it is used again
    assert "probabilities of 18 images" in made.stderr
    assert predictions(run_folder, photo, "--runtime", "litert")
    (best,) = (run_folder / "checkpoints/best").glob("*.index")
    newest, *_ = (run_folder / "checkpoints/newest").glob("*.index")
    shutil.copy(newest, best)
    assert "another checkpoint" in error_of(run("predict", "--model", run_folder, "--runtime", "litert", photo, code=1))


def test_training_further_makes_the_litert_file_anew(run_folder, images):
    first = (run_folder / "model.tflite").read_bytes()
    (run_folder / "model.onnx").write_text("of the weights before")
    further = run("train", "--resume", "--output", "runs", "--epochs", 8)
    assert "  selected" in further.stdout
    assert "made from earlier weights: onnx" in further.stderr
    assert (run_folder / "model.tflite").read_bytes() != first
    photo = images / "dogs/dogs_1.jpg"
    one, other = (predictions("runs", photo, "--runtime", runtime)[str(photo)] for runtime in ("litert", "tensorflow"))
    assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


@pytest.mark.parametrize("name", ["savedmodel", "litert", "litert-int8", "onnx"])
def test_every_format_is_checked_and_kept(run_folder, images, name, monkeypatch):
    if name == "onnx":
        with monkeypatch.context() as fault:
            fault.setitem(sys.modules, "tf2onnx", None)
            missing = run("export", "--model", run_folder, "--format", name, code=2)
        assert "pip install -c requirements-optional.txt tf2onnx" in error_of(missing)
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
    finished = run("export", "--model", run_folder, "--format", name, "--data-dir", images)
    assert finished.stdout == ""
    assert "differ by at most" in finished.stderr
    assert "accuracy" in finished.stderr
    assert not list(run_folder.glob("partial*"))
    pixels = np.stack([load_image(path, 32) for path in sorted(images.rglob("*.jpg"))])
    expected = compile_outputs(load_network(run_folder, read_metadata(run_folder)))(pixels)
    if name == "savedmodel":
        saved = tf.saved_model.load(str(run_folder / "saved_model"))
        got = saved.serve(pixels).numpy()
    elif name == "onnx":
        import onnxruntime

        got = onnxruntime.InferenceSession(str(run_folder / "model.onnx")).run(None, {"pictures": pixels})[0]
    else:
        got = logits_of(load_litert(run_folder / ("model.tflite" if name == "litert" else "model_int8.tflite"))[0](pixels))
    np.testing.assert_allclose(got, expected, atol=0.2 if name == "litert-int8" else 1e-4)


def test_export_with_damaged_settings_is_one_clear_line(run_folder, images):
    card = run_folder / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"settings": {}}))
    assert "settings in" in error_of(run("export", "--model", run_folder, code=3))


def test_a_converter_that_fails_costs_nothing_but_its_file(images, monkeypatch):
    monkeypatch.setitem(exporting.CONVERTERS, "litert", lambda *_: 1 / 0)
    finished = run("train", "--data-dir", images, "--output", "runs", *QUICK)
    assert "no LiteRT file for quick predictions: division by zero" in finished.stderr
    assert predictions("runs", images / "cats/cats_1.jpg")


def test_export_waits_for_no_training(run_folder):
    with locked(run_folder):
        assert "another process is working" in error_of(run("export", "--model", run_folder, code=1))


def test_export_from_a_missing_folder(run_folder):
    finished = run("export", "--model", run_folder, "--data-dir", "nowhere", code=3, process=True)
    assert "no folder nowhere" in error_of(finished)
