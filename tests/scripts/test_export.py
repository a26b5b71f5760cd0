"""Exported networks, and prediction without TensorFlow."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.schema_py_generated import Model
from conftest import PROJECT, error_of, predictions, run, save, train
from flatbuffers import encode
from flatbuffers.number_types import UOffsetTFlags
from flatbuffers.table import Table
from run_folders import assert_runtimes_agree, damage, metadata_of, newest_checkpoint

from classifier.base.files import locked
from classifier.data.images import load_image
from classifier.export import converters as exporting


def test_litert_gives_the_same_probabilities_without_tensorflow(trained, images):
    by_litert, _ = assert_runtimes_agree(trained, images)
    assert len(by_litert) == 24
    script = "import sys, predict; predict.main(sys.argv[1:]); assert 'tensorflow' not in sys.modules"
    command = [sys.executable, "-c", script, "--model", trained, images]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == 24


def test_a_litert_file_that_is_damaged_or_stale_is_not_used(run_folder, images, photo):
    by_litert = ("predict", "--model", run_folder, "--runtime", "litert", photo)
    expected = predictions(run_folder, photo)[str(photo)]["probabilities"]
    damage(run_folder / "model.tflite")
    assert "model.tflite is damaged" in run("predict", "--model", run_folder, photo).stderr
    assert predictions(run_folder, photo)[str(photo)]["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert "--runtime tensorflow" in error_of(run(*by_litert, code=1))
    (run_folder / "model.tflite").unlink()
    (run_folder / "model.tflite").mkdir()  # it cannot be read
    assert "model.tflite is damaged" in run("predict", "--model", run_folder, photo).stderr

    few = shutil.copytree(images, "few", ignore=lambda folder, names: [name for name in names if "_1" in name])
    Path(few, "dogs/dogs_1.jpg").write_text("no image")
    made = run("export", "--model", run_folder, "--data-dir", few)  # exported again, it is used again
    assert "probabilities of 18 images" in made.stderr
    assert run(*by_litert).stdout
    newest, selected = (newest_checkpoint(run_folder, folder) for folder in ("training", "selected"))
    shutil.copy(f"{newest}.index", f"{selected}.index")
    assert "another checkpoint" in error_of(run(*by_litert, code=1))


def test_training_further_makes_the_litert_file_again(run_folder, images, photo):
    first = (run_folder / "model.tflite").read_bytes()
    (run_folder / "model.onnx").write_text("of the weights before")
    further = run("train", "--resume", "--output", "runs", "--data-dir", images, "--epochs", 8)
    assert "  selected" in further.stdout
    assert "made from earlier weights: onnx" in further.stderr
    assert (run_folder / "model.tflite").read_bytes() != first
    assert_runtimes_agree("runs", photo)


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
    expected = predictions(run_folder, images, "--runtime", "tensorflow")
    pixels = np.stack([load_image(path, 32) for path in expected])
    if name == "savedmodel":
        saved = tf.saved_model.load(str(run_folder / "saved_model"))
        got = saved.serve(pixels).numpy()
        assert "bytes of 24 JPEG and PNG files" in finished.stderr
        assert_served_like_predictions(saved.signatures, run_folder, images)
    elif name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(run_folder / "model.onnx"))
        got = session.run(None, {"images": pixels})[0]
        assert_described(session.get_modelmeta().custom_metadata_map, run_folder)
    else:
        file = run_folder / ("model.tflite" if name == "litert" else "model_int8.tflite")
        outputs = Interpreter(str(file)).get_signature_runner()(images=pixels).values()
        (got,) = [output for output in outputs if output.ndim == 2]  # not the OOD scores
        with zipfile.ZipFile(file) as archive:
            assert archive.read("labels.txt") == b"cats\ndogs\n"
            assert_described(json.loads(archive.read("description.json")), run_folder)
        assert labels_files_of(file) == ([[], ["labels.txt"]] if name == "litert" else [["labels.txt"]])
    probabilities = [[answer["probabilities"][name] for name in ("cats", "dogs")] for answer in expected.values()]
    np.testing.assert_allclose(tf.nn.softmax(got), probabilities, atol=0.05 if name == "litert-int8" else 1e-5)


def assert_described(description, run_folder):
    """The description in an exported file is that of the run; in ONNX, all but text is JSON."""
    metadata = metadata_of(run_folder)
    expected = {name: metadata[name] for name in ("classes", "temperature")}
    expected["image_size"] = metadata["settings"]["image_size"]
    expected["ood_threshold"] = metadata["ood"]["threshold"]
    values = {name: description[name] for name in expected}
    assert {name: json.loads(value) if isinstance(value, str) else value for name, value in values.items()} == expected
    assert "RGB" in description["input"]


def labels_files_of(file):
    """The names of the files with labels for each output of a LiteRT file, as other programs find them."""
    model = Model.GetRootAs(file.read_bytes())
    entries = {model.Metadata(i).Name(): model.Buffers(model.Metadata(i).Buffer()) for i in range(model.MetadataLength())}
    data = entries[b"TFLITE_METADATA"].DataAsNumpy().tobytes()
    assert data[4:8] == b"M001"

    def tables(table, number):
        """Those in the vector that is a field of a table."""
        offset = table.Offset(4 + 2 * number)
        count = table.VectorLen(offset) if offset else 0
        return [Table(data, table.Indirect(table.Vector(offset) + 4 * i)) for i in range(count)]

    (graph,) = tables(Table(data, encode.Get(UOffsetTFlags.packer_type, data, 0)), 3)
    outputs = tables(graph, 3)
    return [[each.String(each.Pos + each.Offset(4)).decode() for each in tables(output, 6)] for output in outputs]


def assert_served_like_predictions(signatures, run_folder, images):
    """The request that TensorFlow Serving gets, decoded as it does, is answered like predict.py does."""
    noise = save(Path("noise.png"), np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8))
    paths = [*sorted(images.rglob("*.jpg"))[::5], noise]
    answer = signatures["predict_files"]
    (name,) = answer.structured_input_signature[1]  # with one input, an instance of a request is its value
    data = [path.read_bytes() for path in paths]
    answers = {key: value.numpy() for key, value in answer(**{name: tf.constant(data)}).items()}
    for row, expected in enumerate(predictions(run_folder, *paths).values()):
        assert answers["class"][row].decode() == expected["class"]
        assert [each.decode() for each in answers["classes"][row]] == list(expected["probabilities"])
        assert answers["probabilities"][row] == pytest.approx(list(expected["probabilities"].values()), abs=1e-5)
        assert answers["probability"][row] == pytest.approx(expected["probability"], abs=1e-5)
        assert answers["ood_score"][row] == pytest.approx(expected["ood_score"], abs=2e-4)
    assert b"unknown" in answers["class"]
    assert {b"cats", b"dogs"} & set(answers["class"])
    decoded = signatures["predict_images"](images=np.stack([load_image(path, 32) for path in paths]))
    np.testing.assert_allclose(decoded["probabilities"], answers["probabilities"], atol=1e-5)
    assert signatures["serving_default"].structured_input_signature[1].keys() == {"images"}


def test_a_converter_that_fails_costs_nothing_but_its_file(images, photo, monkeypatch):
    monkeypatch.setitem(exporting.CONVERTERS, "litert", lambda *_: 1 / 0)
    assert "no LiteRT file for quick predictions: division by zero" in train(images, "--epochs", 1).stderr
    assert predictions("runs", photo)


def test_what_cannot_be_exported_is_one_clear_line(run_folder):
    export = ("export", "--model", run_folder)
    with locked(run_folder):  # as by a training: the export does not wait for it
        assert "another process is working" in error_of(run(*export, code=1))
    assert "no folder nowhere" in error_of(run(*export, "--data-dir", "nowhere", code=3))
