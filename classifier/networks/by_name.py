"""Networks by name, their outputs as fast functions, and their features."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import keras
import numpy as np
import tensorflow as tf

from classifier.base.console import PROJECT, UserError, describe, progress, say
from classifier.base.files import digest_of
from classifier.data.cache import DECODING_VERSION, rows_of_all
from classifier.data.images import inference_batch_size
from classifier.networks import NETWORKS, PRETRAINED_NETWORKS
from classifier.networks.out_of_distribution import LogMeans, signed_logarithms
from classifier.networks.pretrained import backbone_outputs, create_pretrained_network, maps_of_last_sizes, split_at_features

FEATURES_VERSION = 1  # raise it when a pretrained network comes to give other features

keras.config.set_floatx("float32")  # not the settings of ~/.keras/keras.json
keras.config.set_image_data_format("channels_last")
tf.get_logger().setLevel("ERROR")  # it would print a page about each checkpoint that does not fit

# By its path, not by its name: a program that uses this package may have a model.py of its own.
_spec = importlib.util.spec_from_file_location("classifier.model", PROJECT / "model.py")
model = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(model)


def create_network(name: str, image_size: int, num_classes: int, dropout: float = 0.0) -> keras.Model:
    """A network by name: (n, image_size, image_size, 3) uint8 RGB → (n, num_classes) logits."""
    if name in PRETRAINED_NETWORKS:
        return create_pretrained_network(name, image_size, num_classes, dropout)
    return getattr(model, NETWORKS[name][0])(image_size, num_classes, dropout)


def compile_outputs(network: keras.Model) -> Callable:
    """A fast function from images to logits: (n, image_size, image_size, 3) uint8 → (n, classes) float32 arrays.

    Of a part of a network, or one with several outputs, likewise from its input to its outputs.
    """
    signature = tf.TensorSpec(network.input_shape, network.inputs[0].dtype)
    graph = tf.function(lambda images: network(images, training=False), input_signature=[signature])

    def outputs(images):
        if len(images) == 0:  # TensorFlow's convolutions refuse an empty batch
            return tf.nest.map_structure(lambda output: np.empty((0, *output.shape[1:]), np.float32), network.output)
        with enough_memory():
            return tf.nest.map_structure(lambda output: output.numpy(), graph(tf.constant(images)))

    return outputs


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Turn the errors of a machine with too little memory into a line with advice."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise UserError("not enough memory: train with a smaller --batch-size or --image-size") from None


def with_features(network: keras.Model, kind: str) -> keras.Model:
    """A network with two outputs: features, (n, features), for out-of-distribution scores, and its logits.

    Features of kind "last" are logarithms of those that the last layer takes: best for a frozen pretrained network, which
    knows a thousand classes. Layers that were trained on the user's classes tell little else apart. So features of kind
    "maps" are the LogMeans of the maps that NETWORKS names, or of those in the middle of a pretrained network.
    """
    if kind == "last":
        return keras.Model(network.input, (signed_logarithms(last_features(network)), network.output))
    if network.name in PRETRAINED_NETWORKS:
        backbone = network.get_layer("backbone")
        maps, features = backbone_outputs(network, [maps_of_last_sizes(backbone, 2)[0], backbone.output])
        return keras.Model(network.input, (LogMeans()(maps), split_at_features(network)[1](features)))
    means = [LogMeans()(network.get_layer(name).output) for name in NETWORKS[network.name][1]]
    return keras.Model(network.input, (keras.ops.concatenate(means, axis=1), network.output))


def last_features(network: keras.Model) -> keras.KerasTensor:
    """The tensor of features that the last layers of a network take, (n, features)."""
    return network.get_layer("standardize" if network.name in PRETRAINED_NETWORKS else network.layers[-1].name).input


def extract_features(images, feature_extractor: keras.Model, cache_dir: Path, fit: str = "squash"):
    """The features of a DataSet: (features, rows), (m, features) float32 and (n,), for each image its row of them.

    Each different image goes through once; of several workers, each computes its part. The features are kept in the folder
    `cache_dir` for later runs, or in memory where it cannot be written. `fit` is how the images became squares.
    """
    compute, size = compile_outputs(feature_extractor), feature_extractor.input_shape[1]
    digests, positions, rows = np.unique(images.digests, return_index=True, return_inverse=True)
    versions = FEATURES_VERSION, DECODING_VERSION, keras.__version__, cv2.__version__
    key = f"{size} {fit} {versions} {digests.tolist()}".encode()
    path = Path(cache_dir, f"{digest_of(key, *feature_extractor.get_weights(), size=12)}.features")

    def make(part, write):
        with progress("extracting features", len(part)) as advance:
            for batch, _ in images.take(np.array(part, int)).batches(inference_batch_size(size)):
                write(compute(batch))
                advance(len(batch))

    try:
        features, _ = rows_of_all(path, feature_extractor.output_shape[1:], np.float32, positions.tolist(), make)
    except OSError as error:
        say(f"no cache of features ({describe(error)}): they stay in memory")
        parts: list[np.ndarray] = []
        make(positions.tolist(), parts.append)
        features = np.concatenate(parts)
    return features, rows
