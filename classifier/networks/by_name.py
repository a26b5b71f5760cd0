"""Networks by name, their outputs as fast functions, and their features."""

import contextlib
from pathlib import Path

import cv2
import keras
import numpy as np
import tensorflow as tf

from classifier.base.console import NO_DATA, UserError, describe, progress, say
from classifier.base.files import digest_of
from classifier.data.cache import DECODING_VERSION, rows_of_all
from classifier.data.images import inference_batch_size
from classifier.networks import PRETRAINED_NETWORKS
from classifier.networks.out_of_distribution import LogMeans, SignedLogarithms
from classifier.networks.pretrained import create_pretrained_network, features_of, middle_maps
from model import create_cnn, create_resnet

NETWORKS = {"cnn": create_cnn, "resnet": create_resnet}
# The layers whose maps tell images of one kind from another: see with_features().
FEATURE_MAPS = {"conv1_pool", "conv2_pool", "conv3_pool", "stem_relu", "stage1_block2_relu", "stage2_block2_relu"}
FEATURES_VERSION = 3  # raise it when a pretrained network comes to give other features

keras.config.set_floatx("float32")  # not the settings of ~/.keras/keras.json
keras.config.set_image_data_format("channels_last")
tf.get_logger().setLevel("ERROR")  # it would print a page about each checkpoint that does not fit


def create_network(name, image_size, num_classes, dropout=0.0):
    """A network by name: (n, image_size, image_size, 3) uint8 RGB → (n, num_classes) logits.

    Raises UserError for a name that this version does not have.
    """
    if name in PRETRAINED_NETWORKS:
        return create_pretrained_network(name, image_size, num_classes, dropout)
    if name not in NETWORKS:
        known = ", ".join([*NETWORKS, *PRETRAINED_NETWORKS])
        raise UserError(f"this version has no network {name!r}, only {known}", NO_DATA)
    return NETWORKS[name](image_size, num_classes, dropout)


def compile_outputs(network):
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
def enough_memory():
    """Turn the errors of a machine with too little memory into a line with advice."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise UserError("not enough memory: train with a smaller --batch-size or --image-size") from None


def with_features(network, kind):
    """A network with two outputs: features, (n, features), for out-of-distribution scores, and its logits.

    Features of kind "last" are logarithms of those that the head takes: best for a frozen pretrained network, which
    knows a thousand classes. Layers that were trained on the user's classes tell little else apart. So features of kind
    "maps" are the LogMeans of the feature maps in FEATURE_MAPS, or of those in the middle of a pretrained network.
    """
    if kind == "last":
        return keras.Model(network.input, (SignedLogarithms()(last_features(network)), network.output))
    if network.name in PRETRAINED_NETWORKS:
        *maps, logits = middle_maps(network)
    else:
        maps, logits = [layer.output for layer in network.layers if layer.name in FEATURE_MAPS], network.output
    means = LogMeans()
    return keras.Model(network.input, (keras.ops.concatenate([means(each) for each in maps], axis=1), logits))


def last_features(network):
    """The tensor of features that the last layers of a network take, (n, features)."""
    return features_of(network) if network.name in PRETRAINED_NETWORKS else network.layers[-1].input


def extract_features(images, feature_extractor, cache_dir, fit="squash"):
    """The features of a DataSet: (features, rows), (m, features) float32 and (n,), for each image its row of them.

    Each different image goes through once.
    They are kept in the folder `cache_dir` for later runs, whatever their split; where it cannot be written, in memory.
    Of several workers, each computes its part.
    `fit` is how the images became squares.
    """
    compute, size = compile_outputs(feature_extractor), feature_extractor.input_shape[1]
    num_features = feature_extractor.output_shape[1]
    position_of = dict(zip(reversed(images.digests), reversed(range(len(images))), strict=True))
    digests = sorted(position_of)
    versions = FEATURES_VERSION, DECODING_VERSION, keras.__version__, cv2.__version__
    key = f"{size} {fit} {num_features} {versions} {digests}".encode()
    path = Path(cache_dir, f"{digest_of(key, *feature_extractor.get_weights(), size=12)}.features")

    def make(part, write):
        different = images.take(np.array([position_of[digest] for digest in part], int))
        with progress("extracting features", len(different)) as advance:
            for batch, _ in different.batches(inference_batch_size(size)):
                write(compute(batch))
                advance(len(batch))

    try:
        features, _ = rows_of_all(path, (num_features,), np.float32, digests, make)
    except OSError as error:
        say(f"no cache of features ({describe(error)}): they stay in memory")
        parts = []
        make(digests, parts.append)
        features = np.concatenate(parts)
    row_of = {digest: row for row, digest in enumerate(digests)}
    return features, np.array([row_of[digest] for digest in images.digests])
