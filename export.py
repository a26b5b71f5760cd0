"""Export a trained network for other programs: python export.py --format onnx"""

import argparse
import contextlib
import importlib.util
import io
import os
import shutil
import warnings
from pathlib import Path

import console
from console import DONE, FAILED, NO_DATA, USAGE, UserError, say
from runs import CARD, LITERT, find_run, locked, read_card, write_card

HERE = Path(__file__).resolve().parent
FORMATS = {  # name: (file, the packages it takes)
    "litert": (LITERT, ["ai_edge_litert"]),
    "litert-int8": ("model_int8.tflite", ["ai_edge_litert"]),
    "onnx": ("model.onnx", ["tf2onnx", "onnxruntime"]),
    "savedmodel": ("saved_model", []),
}
TOLERANCE = 1e-4  # of a probability; int8 is judged by its accuracy
MOST_PICTURES = 1000


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Export a trained network into its run folder, checked against the original on real pictures. "
        "All take (n, size, size, 3) uint8 RGB and give (n, classes) float32 logits; litert, which predict.py "
        "uses, also the novelty of each picture.",
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no usable pictures or a bad run folder, "
        "130 interrupted, 143 terminated",
    )
    add = parser.add_argument
    add("--format", choices=FORMATS, default="litert", help="default: litert")
    add("--model", type=Path, default=HERE / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    add("--data-dir", type=Path, metavar="FOLDER", help="labelled pictures to check with (default: the training's own)")
    return parser.parse_args(argv)


def main(argv=None):
    """Export one format, check it and keep it; returns the exit code."""
    arguments = parse_arguments(argv)
    run = find_run(arguments.model)
    missing = missing_packages(arguments.format)
    if missing:
        requirements = "requirements-export.txt" if arguments.format == "onnx" else "requirements.txt"
        raise UserError(f"{arguments.format} needs {' and '.join(missing)}: pip install -r {requirements}", USAGE)
    with locked(run):  # or a training could write the card meanwhile
        card = read_card(run)
        pictures = labelled_pictures(run, card, arguments.data_dir)
        return DONE if export(run, card, arguments.format, *pictures) else FAILED


def missing_packages(name):
    """The packages that a format takes and that are not installed."""
    return [package for package in FORMATS[name][1] if importlib.util.find_spec(package) is None]


def labelled_pictures(run, card, data_dir=None):
    """Paths and labels of pictures to check an export with: those in a folder, or the validation part of the training."""
    from dataset import find_pictures, read_train_sets

    if data_dir:
        found = find_pictures(data_dir, card["classes"])
        return found.paths, found.labels
    settings = card["settings"]
    try:
        data_dir, part, limit = Path(settings["data_dir"]), settings["validation_split"], settings["limit_per_class"]
    except (KeyError, TypeError):
        raise UserError(f"the settings in {run / CARD} are damaged: restore them, or give --data-dir", NO_DATA) from None
    valid = read_train_sets(data_dir, card["image_size"], card["classes"], part, limit, run.parent / ".cache").valid
    return valid.paths, valid.labels


def export(run, card, name, paths, labels):
    """Convert a run's best network, compare its answers on some of the pictures, say how they differ; keep what agrees.

    Returns whether it was kept. Raises UserError where no picture can be read.
    """
    import numpy as np

    from checkpoints import load_network
    from dataset import decode_batches
    from inference import file_digest, log_probabilities, network_digest
    from model import compile_outputs

    chosen = np.random.default_rng(0).permutation(len(paths))[:MOST_PICTURES]
    paths, labels = [paths[i] for i in chosen], np.asarray(labels)[chosen]
    network = load_network(run, card, novelty=name == "litert")
    target = run / FORMATS[name][0]
    partial = run / f"partial_{os.getpid()}_{target.name}"
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # converters chatter
            warnings.simplefilter("ignore")
            converted = CONVERTERS[name](network, paths, partial)
        original, usable, answers = compile_outputs(network), [], []
        for _, reasons, pixels in decode_batches(paths, card["image_size"]):
            usable += [reason is None for reason in reasons]
            if len(pixels):
                answers.append([np.exp(log_probabilities(logits_of(f(pixels)))) for f in (original, converted)])
        if not answers:
            raise UserError("none of the pictures to check with can be read: give others with --data-dir", NO_DATA)
        expected, got = map(np.concatenate, zip(*answers, strict=True))
        difference = np.abs(expected - got).max()
        before, after = ((scores.argmax(axis=1) == labels[usable]).mean() for scores in (expected, got))
        say(f"{name}: probabilities of {len(expected)} pictures differ by at most {difference:.2g}; "
            f"accuracy {before:.2%} before, {after:.2%} after")  # fmt: skip
        if name != "litert-int8" and difference > TOLERANCE:
            say(f"error: that is more than {TOLERANCE}: {target} is not kept")
            return False
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            shutil.rmtree(target)
        os.replace(partial, target)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    if name == "litert":
        card["litert"] = {"network": network_digest(run, card), "file": file_digest(target)}
        write_card(run, card)
    return True


def logits_of(outputs):
    """The logits alone, of a network that gives them with or without the novelty."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


# Each converter writes a network to `path` and returns `outputs(pixels)` of what it has written. `pictures` are their paths.


def convert_litert(network, pictures, path):
    """Float32 LiteRT."""
    import tensorflow as tf

    from inference import load_litert

    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(network).convert())
    return load_litert(path)[0]


def convert_litert_int8(network, pictures, path):
    """LiteRT with weights and maps in 8 bits, their ranges measured on some of the pictures; a quarter of the size."""
    import tensorflow as tf

    from dataset import decode_batches
    from inference import load_litert

    some = pictures[:200]
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [picture[None]] for _, _, pixels in decode_batches(some, network.input_shape[1]) for picture in pixels
    )
    path.write_bytes(converter.convert())
    return load_litert(path)[0]


def convert_onnx(network, pictures, path):
    """ONNX, run by onnxruntime."""
    import onnxruntime
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8, name="pictures")]
    graph = tf.function(lambda pictures: network(pictures, training=False), input_signature=signature)
    tf2onnx.convert.from_function(graph, input_signature=signature, opset=17, output_path=str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pictures": pixels})[0]


def convert_savedmodel(network, pictures, path):
    """TensorFlow's SavedModel; its signature is called `serve`."""
    import tensorflow as tf

    network.export(str(path), verbose=False)
    served = tf.saved_model.load(str(path))
    return lambda pixels: served.serve(pixels).numpy()


CONVERTERS = {
    "litert": convert_litert,
    "litert-int8": convert_litert_int8,
    "onnx": convert_onnx,
    "savedmodel": convert_savedmodel,
}

if __name__ == "__main__":
    console.run(main)
