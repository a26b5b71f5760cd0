"""Run folders, weights and names from strangers: nothing is run, nothing outside is touched, nothing fills the memory."""

import csv
import io
import json
import os
import pty
import resource
import shutil
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import error_of, run, save, start, train
from run_folders import change_metadata, metadata_of, newest_checkpoint
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from classifier.base.console import printable
from classifier.base.files import digest_of

STEERING = "\x1b]0;owned\x07\x1b[2Jx\u202egpj"  # it would change a terminal's title, clear it, and write backwards
FORMULA = '=HYPERLINK("x")'


def problem_with(run_folder, photo, *flags, memory=1 << 30):
    """What predict.py says of a run folder that it must refuse; it may not take more memory than this, in bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = run("predict", "--model", run_folder, photo, *flags, code=3)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < memory
    assert not refused.stdout
    return error_of(refused)


HOSTILE_RECORDS = {  # changes of model.json, and what is said
    "image size": ({"settings": {"image_size": 2048}}, "none is large enough"),  # 2 GB of weights
    "classes": ({"classes": [str(number) for number in range(1_000_000)]}, "none is large enough"),
    "path": ({"settings": {"network": "../../../etc/passwd"}}, "model.json is damaged"),
    "code": ({"settings": {"network": "__import__('os').abort()"}}, "model.json is damaged"),
    "NaN": ({"temperature": float("nan")}, "model.json is damaged"),
    "bool": ({"settings": {"image_size": True}}, "model.json is damaged"),
    "no settings": ({"settings": []}, "model.json is damaged"),
    "unknown setting": ({"settings": {"evil": 1}}, "model.json is damaged"),
    "lists": ({"classes": [["a"], ["b"]]}, "model.json is damaged"),
    "dictionary": ({"classes": {"a": 0, "b": 1}}, "model.json is damaged"),
    "format": ({"format": 2}, "another format"),
}


@pytest.mark.parametrize("kind", HOSTILE_RECORDS)
def test_a_record_that_asks_for_too_much_or_for_other_places(run_folder, photo, kind):
    changes, problem = HOSTILE_RECORDS[kind]
    change_metadata(run_folder, **changes)
    assert problem in problem_with(run_folder, photo, "--runtime", "tensorflow", memory=200 << 20)


def test_a_record_that_is_deep_or_endless(run_folder, photo):
    text = json.dumps(metadata_of(run_folder))
    (run_folder / "model.json").write_text(text[:-1] + ', "x": ' + "[" * 50_000 + "]" * 50_000 + "}")
    assert "model.json is damaged" in problem_with(run_folder, photo)
    with open(run_folder / "model.json", "w") as file:
        file.truncate(1 << 40)  # a terabyte that takes no place on the disk
    assert "too large" in problem_with(run_folder, photo)


def test_classes_with_paths_for_names_are_sorted_into_the_folder_that_was_named(run_folder, photo, tmp_path):
    change_metadata(run_folder, classes=["../../../outside", str(tmp_path / "absolute")])
    before = {path for path in tmp_path.rglob("*") if "sorted" not in path.parts}
    run("predict", "--model", run_folder, "--copy-to", "sorted", photo)
    assert {path for path in tmp_path.rglob("*") if "sorted" not in path.parts} == before
    assert len(list(Path("sorted").rglob("*.jpg"))) == 1


@pytest.mark.parametrize("name", ["history.csv", ".lock", "model.tflite", "checkpoints/training"])
def test_links_out_of_a_run_folder_and_what_is_no_file_are_refused(run_folder, photo, name):
    """Else resuming would write to where they lead, and a pipe would be read for ever."""
    outside = Path("outside")
    shutil.copytree(run_folder / name, outside) if (run_folder / name).is_dir() else outside.write_text("precious")
    shutil.move(run_folder / name, "aside")
    (run_folder / name).symlink_to(outside.absolute())
    before = outside.stat()
    resume = ("train", "--resume", run_folder, "--epochs", 3)
    for script in (("predict", "--model", run_folder, photo), resume, ("export", "--model", run_folder)):
        assert "is a link out of its run folder" in error_of(run(*script, code=3))
    (run_folder / name).unlink()
    os.mkfifo(run_folder / name)
    assert "is not an ordinary file" in error_of(run("predict", "--model", run_folder, photo, code=3))
    assert outside.stat()[:8] == before[:8]
    (run_folder / name).unlink()
    shutil.move("aside", run_folder / "aside")
    (run_folder / name).symlink_to("../aside" if "/" in name else "aside")  # within the folder
    run("predict", "--model", run_folder, photo)


def test_tensors_that_are_other_missing_too_many_not_numbers_or_claim_too_much(run_folder, photo):
    prefix = str(newest_checkpoint(run_folder, "selected"))
    reader = tf.train.load_checkpoint(prefix)
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    kernel = next(name for name in tensors if tensors[name].shape[1:] == (128,))
    shutil.rmtree(run_folder / "checkpoints/training")
    (run_folder / "model.tflite").unlink()

    def write(**changes):
        """Write the tensors with changes; of one that is an int, a single row, as if it had so many."""
        changed = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
        slices = ["" for _ in changed]
        for number, (name, tensor) in enumerate(changed.items()):
            if isinstance(tensor, int):
                slices[number], changed[name] = f"{tensor} 128 0,1:-", tensors[name][:1]
        tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=list(changed),
            shape_and_slices=slices,
            tensors=[tf.constant(tensor) for tensor in changed.values()],
        )
        change_metadata(run_folder, selected_digest=digest_of(Path(f"{prefix}.index").read_bytes()))

    damaged = tensors[kernel].T, tensors[kernel].astype(np.int32), 10**12, 10**7  # the last one is 5 GB
    for changes in ({kernel: tensor} for tensor in (None, *damaged)):
        write(**changes)
        assert "no sound checkpoint" in problem_with(run_folder, photo, memory=400 << 20)
    last = next(name for name in tensors if tensors[name].shape == (2,))
    write(**{last: np.full_like(tensors[last], np.nan)})
    assert "infinite or NaN" in problem_with(run_folder, photo)
    write(others=np.zeros(10, np.float32))
    run("predict", "--model", run_folder, photo)  # and nothing else is read


def with_litert(run_folder, data):
    """Put a LiteRT file into a run, with all that belongs to it."""
    (run_folder / "model.tflite").write_bytes(data)
    change_metadata(run_folder, litert={"file": digest_of(data)})


def test_litert_files_that_are_not_of_our_kind(run_folder, photo):
    original = (run_folder / "model.tflite").read_bytes()

    def changed(change):
        model = flatbuffer_utils.convert_bytearray_to_object(bytearray(original))
        change(model, model.subgraphs[0])
        return bytes(flatbuffer_utils.convert_object_to_bytearray(model))

    def operator(code, name=None):
        def change(model, _):
            model.operatorCodes[0].builtinCode, model.operatorCodes[0].deprecatedBuiltinCode = code, min(code, 127)
            model.operatorCodes[0].customCode = name

        return change

    def shape(*sizes):
        def change(_, graph):
            graph.tensors[graph.inputs[0]].shape, graph.tensors[graph.inputs[0]].shapeSignature = np.int32(sizes), None

        return change

    changes = {
        "unresolved custom op: Evil": operator(schema.BuiltinOperator.CUSTOM, b"Evil"),
        "Select TensorFlow op": operator(schema.BuiltinOperator.CUSTOM, b"FlexReadFile"),
        "out of range": operator(9999),
        "does not fit": shape(1, 30_000, 30_000, 3),
        "cannot be used": shape(1, -5, 2**31 - 1, 3),
        "inconsistent model": lambda _, graph: setattr(graph.operators[1], "inputs", np.int32([10**6, 2, 3])),
        "buffer": lambda _, graph: setattr(graph.tensors[3], "buffer", 10**6),
        "index out of range": lambda _, graph: setattr(graph, "outputs", np.int32([10**5])),
    }
    for problem, change in changes.items():
        with_litert(run_folder, changed(change))
        said = problem_with(run_folder, photo, memory=100 << 20)
        assert problem in said or "cannot be used" in said, (problem, said)

    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.uint8)])
    def huge(images):
        return tf.reduce_mean(tf.tile(tf.cast(images, tf.float32), [1, 400, 400, 1]), [1, 2])[:, :2]  # 2 GB an image

    converter = tf.lite.TFLiteConverter.from_concrete_functions([huge.get_concrete_function()], huge)
    with_litert(run_folder, converter.convert())
    assert "too much memory" in problem_with(run_folder, photo, memory=100 << 20)
    with_litert(run_folder, b"no flatbuffer")
    assert "cannot be used" in problem_with(run_folder, photo)


def refusal(images, weights):
    """What train.py says of weights that it must refuse."""
    said = error_of(train(images, "--network", "mobilenet", "--weights", weights, code=3))
    assert not list(Path("runs").glob("0*"))
    return said


def test_weights_that_are_a_model_with_code_are_not_built(images, weights):
    """CVE-2025-1550, -8747, -9906, -12058 and CVE-2026-1462 are of .keras archives, CVE-2025-9905 of whole models in .h5."""
    marker = Path("was here").absolute()
    name = str(marker)
    leave_mark = lambda inputs: (os.open(name, os.O_CREAT), inputs)[1]  # noqa: E731
    model = keras.Sequential([keras.Input((1,)), keras.layers.Lambda(leave_mark)])
    marker.unlink()  # it was built
    for file, problem in (("model.keras", "neither imagenet, none, nor a .h5 file"), ("model.h5", "does not fit")):
        model.save(file)
        assert problem in refusal(images, file)
    shutil.copy("model.keras", "model.weights.h5")
    assert "cannot read the weights" in refusal(images, "model.weights.h5")
    call = {"class_name": "function", "module": "builtins", "config": "eval", "registered_name": "function"}
    source = {"function": call, "arguments": {"source": f"__import__('pathlib').Path({name!r}).touch()"}}
    layer = {
        "class_name": "Lambda",
        "module": "keras.layers",
        "registered_name": "Lambda",
        "config": {"name": "evil", **source},
    }
    config = {
        "class_name": "Sequential",
        "module": "keras",
        "registered_name": None,
        "config": {"name": "m", "layers": [layer]},
    }
    shutil.copy(weights, "evil.h5")
    with h5py.File("evil.h5", "r+") as file:
        file.attrs["model_config"], file.attrs["keras_version"] = json.dumps(config), "2.15.0"
        file.create_group("model_weights").attrs["layer_names"] = [b"conv1"]
    assert "does not fit" in refusal(images, "evil.h5")
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["ExternalLink", "SoftLink", "external Dataset", "virtual Dataset"])
def test_weights_that_refer_to_other_files_are_refused(images, weights, kind):
    """CVE-2026-1669. Keras refuses them: see load_weights()."""
    shutil.copy(weights, "links.weights.h5")
    with h5py.File("links.weights.h5", "r+") as file:
        name = "layers/conv2d/vars/0"
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        if kind == "ExternalLink":
            file[name] = h5py.ExternalLink(str(weights), name)
        elif kind == "SoftLink":
            file[name] = h5py.SoftLink("/layers/conv2d_1/vars/0")
        elif kind == "external Dataset":
            file.create_dataset(name, shape, dtype, external="/etc/passwd")
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(str(weights), name, shape, dtype)
            file.create_virtual_dataset(name, layout)
    assert f"Not allowed: H5 file with {kind}" in refusal(images, "links.weights.h5")


def test_weights_that_claim_terabytes_are_refused(images, weights):
    """CVE-2026-0897."""
    shutil.copy(weights, "claims.weights.h5")
    with h5py.File("claims.weights.h5", "r+") as file:
        name = "layers/conv2d/vars/0"
        del file[name]
        file.create_dataset(name, (10**6, 10**6), np.float32, chunks=(1000, 1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "does not fit" in refusal(images, "claims.weights.h5")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1 << 30


def test_names_cannot_steer_a_terminal_or_a_spreadsheet(images, photo):
    """Those of classes and of files, wherever they are printed or written."""
    os.rename(images / "cats", images / f"cats{STEERING}")
    os.rename(images / "dogs", images / FORMULA)
    bad = save(images / FORMULA / f"bad{STEERING}\n.jpg")
    bad.write_bytes(b"no image")
    photo = save(Path(f"-{STEERING}\n.jpg"))
    trained = train(images)
    model = next(Path("runs").glob("0*"))
    scripts = [
        trained,
        run("predict", "--model", model, f"./{photo}", bad, code=1),
        run("evaluate", images, "--model", model, "--predictions", "predictions.csv", "--report", "report.html"),
        run("dataset", images, "--html", "images.html"),
        run("explain", "--model", model, f"./{photo}", "--output", "explained"),
    ]
    assert "cats\\x1b]0;owned\\x07\\x1b[2Jx\\u202egpj" in trained.stderr
    for finished in scripts:
        for character in (finished.stdout + finished.stderr).replace("\n", ""):
            assert printable(character) == character, finished
    assert len(scripts[1].stdout.splitlines()) == 1
    for page in ("report.html", "images.html"):
        assert "\x1b" not in Path(page).read_text()

    predicted = run("predict", "--model", model, f"./{photo}", "--format", "csv").stdout
    header, row = csv.reader(io.StringIO(predicted))
    assert header == ["path", "class", "probability", f"'{FORMULA}", f"cats{STEERING}"]
    assert row[0] == f"./{photo}"  # what it is called, for other programs
    for text in (predicted, Path("predictions.csv").read_text(), (model / "skipped.csv").read_text()):
        assert not any(cell.startswith(("=", "-", "+", "@")) for line in csv.reader(io.StringIO(text)) for cell in line)

    leader, follower = pty.openpty()
    process = start("predict", "--model", model, f"./{photo}", "--format", "csv", stdout=follower)
    os.close(follower)
    shown = b""
    while part := os.read(leader, 10_000) if process.poll() is None else b"":
        shown += part
        if shown.count(b"\n") == 2:
            break
    process.communicate()
    assert b"\\x1b]0;owned" in shown
    assert b"\x1b" not in shown


def test_odd_surroundings(images, tmp_path):
    """A notebook's MPLBACKEND, no home, no folder for temporary files, and an old disk with names that are no UTF-8."""
    variables = {"MPLBACKEND": "module://matplotlib_inline.backend_of_a_notebook", "LANG": "C", "PYTHONUTF8": "0"}
    variables |= dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR"), str(tmp_path / "missing"))
    output = Path(os.fsdecode(b"b\xfccher"))
    os.rename(images / "dogs", images / os.fsdecode(b"h\xfcndchen"))
    photo = next(images.glob("h*/dogs_1.jpg"))
    trained = train(images, "--epochs", 1, "--output", output, env=os.environ | variables)
    assert not [line for line in trained.stderr.splitlines() if "atplotlib" in line]
    assert (output / "001/curves.png").exists()
    for runtime in ("litert", "tensorflow"):
        run("predict", "--model", output, "--runtime", runtime, photo)
    with open("/dev/full", "w") as full:  # a disk without space
        assert "No space left" in error_of(run("predict", "--model", output, photo, code=1, stdout=full))
