"""Exports of a trained network to other formats, each checked against the original."""

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from classifier.base.console import NO_DATA, UserError, say
from classifier.base.files import digest_of, replacing
from classifier.base.metrics import log_softmax
from classifier.data.images import decode_batches, read_file
from classifier.export import EXPORTS, html, missing_packages
from classifier.export.description import describe_onnx, described_litert
from classifier.export.serving import SERVED, write_saved_model
from classifier.networks.by_name import compile_outputs
from classifier.predicting.litert import litert_problem, load_litert
from classifier.runs.checkpoints import load_network
from classifier.runs.folder import Run

TOLERANCE = 1e-4  # of a probability; int8 is checked by its accuracy
MOST_IMAGES = 1000


def export_for_prediction(run: Run, valid) -> None:
    """Write the LiteRT file of a run, with which predict.py starts faster; without it the predictions are the same.

    `valid` is the DataSet to check it with. A failure is reported, no more: the network is trained and saved.
    """
    if missing_packages("litert"):
        say("no LiteRT file for quick predictions: pip install ai-edge-litert, then run export.py")
    elif litert_problem(run):
        stale = [name for name, (file, _) in EXPORTS.items() if name != "litert" and (run.path / file).exists()]
        if stale:
            say(f"warning: made from earlier weights: {', '.join(stale)}; run export.py again")
        try:
            export(run, "litert", valid.paths, valid.labels)
        except Exception as error:  # converters raise exceptions of many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]  # some are pages
            say(f"warning: no LiteRT file for quick predictions: {reason}")


def export(run: Run, name: str, paths: Sequence, labels: ArrayLike, target: Path | None = None) -> None:
    """Convert a run's network, compare the predictions for some of the images, report how they differ; keep what agrees.

    `target` is the file or folder to write, if not the format's own in the run folder. Raises UserError if the predictions
    differ too much, or if no image can be read.
    """
    record, target = run.record, target or run.path / EXPORTS[name][0]
    packages = html.read_packages(run.cache) if name == "html" else {}
    chosen = np.random.default_rng(0).permutation(len(paths))[:MOST_IMAGES]
    paths, labels = [paths[i] for i in chosen], np.asarray(labels)[chosen]
    keras.utils.clear_session()  # or the names of Keras' own layers, which are in the file, depend on what came before
    network = load_network(run, with_ood=name in ("litert", "html", "savedmodel"))
    decode = functools.partial(decode_batches, image_size=record.image_size, fit=record.fit)
    sample = [lambda: decode(paths[:200])] if name in ("litert-int8", "savedmodel") else []
    try:
        with replacing(target) as partial:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # converters print much
                warnings.simplefilter("ignore")
                converted = CONVERTERS[name](network, record, partial, *sample)
            with tf.device("CPU:0"):  # a GPU may round products to TF32, ten times as much as TOLERANCE
                difference = compare(name, compile_outputs(network), converted, decode(paths), labels)
            if name != "litert-int8" and not difference <= TOLERANCE:  # also rejects NaN
                raise UserError(f"{target.name} is not kept: its probabilities differ by more than {TOLERANCE}")
            if name == "html":
                page = html.page_of(run, packages, partial.read_bytes())
                partial.write_text(page, encoding="utf-8")
                say(f"html: {len(page) / 1e6:.1f} MB: open {target} in a browser")
    except tf.errors.OpError as error:  # its message is a page
        raise UserError(f"cannot write {target}: {error.message.strip().splitlines()[-1]}") from None
    if name == "litert":
        run.update(litert={"network": run.network_digest(), "file": digest_of(target.read_bytes())})


def compare(name: str, original: Callable, converted: Callable, batches: Iterable, labels: np.ndarray) -> float:
    """Report the accuracy of both networks on some images; returns the largest difference of a probability.

    `batches`: see decode_batches(). `labels` are those of all their images, (n,).
    """
    usable, probabilities = [], []
    for _, reasons, images in batches:
        usable += [reason is None for reason in reasons]
        if len(images):
            probabilities.append([np.exp(log_softmax(logits_of(outputs(images)))) for outputs in (original, converted)])
    if not probabilities:
        raise UserError("none of the images to check with can be read: give others with --data-dir", NO_DATA)
    expected, got = map(np.concatenate, zip(*probabilities, strict=True))
    difference = np.abs(expected - got).max()
    before, after = ((scores.argmax(axis=1) == labels[usable]).mean() for scores in (expected, got))
    say(
        f"{name}: probabilities of {len(expected)} images differ by at most {difference:.2g}; "
        f"accuracy {before:.2%} before, {after:.2%} after"
    )
    return difference


def logits_of(outputs: np.ndarray | tuple) -> np.ndarray:
    """The logits alone, of a network with or without OOD scores."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


# Each converter writes a network to `path`, with what `record` says of it, and returns `outputs(images)` of the written
# file. `sample()` gives some images: see decode_batches().


def convert_litert(network, record, path, sample=None):
    """LiteRT in float32, or with weights and feature maps in 8 bits, whose ranges are measured on a sample."""
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    if sample:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for _, _, images in sample() for image in images)
    path.write_bytes(described_litert(converter.convert(), record))
    return load_litert(path)[0]


def convert_html(network, record, path):
    """LiteRT for one image at a time, all that LiteRT.js can run; export() then makes the page that holds it."""
    image = keras.Input(batch_shape=(1, *network.input_shape[1:]), dtype="uint8")
    outputs = convert_litert(keras.Model(image, network(image)), record, path)
    return lambda images: np.concatenate([logits_of(outputs(image[None])) for image in images])


def convert_onnx(network, record, path):
    """ONNX, run by onnxruntime."""
    import onnxruntime
    import tf2onnx

    signature = [tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8, name="images")]
    graph = tf.function(lambda images: network(images, training=False), input_signature=signature)
    model, _ = tf2onnx.convert.from_function(graph, input_signature=signature, opset=17)
    describe_onnx(model, record)
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def convert_savedmodel(network, record, path, sample):
    """TensorFlow's SavedModel, for serving; also what it answers to the bytes of files is compared."""
    write_saved_model(network, record, path)
    saved = tf.saved_model.load(str(path))
    from_files, from_images = (saved.signatures[f"predict_{kind}"] for kind in ("files", "images"))
    difference, scored, refused = 0.0, 0, 0
    for paths, reasons, images in sample():
        usable = (path for path, reason in zip(paths, reasons, strict=True) if reason is None)
        for data, image in zip(map(read_file, usable), images, strict=True):
            if not data.startswith(SERVED):
                continue
            try:
                got = from_files(image_bytes=tf.constant([data]))["probabilities"]
            except tf.errors.OpError:  # its decoders are not quite those of OpenCV
                refused += 1
                continue
            expected = from_images(images=tf.constant(image[None]))["probabilities"]
            difference = max(difference, float(np.abs(got - expected).max()))
            scored += 1
    say(
        f"savedmodel: from the bytes of {scored} JPEG and PNG files, probabilities differ by at most {difference:.2g}"
        f"{f'; it refuses {refused} others' if refused else ''}"
    )
    return lambda images: saved.serve(images).numpy()


CONVERTERS: dict[str, Callable] = {
    "litert": convert_litert,
    "litert-int8": convert_litert,
    "html": convert_html,
    "onnx": convert_onnx,
    "savedmodel": convert_savedmodel,
}
