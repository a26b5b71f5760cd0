"""Pretrained networks: keras.applications by name, with preprocessing before them, weights, and a new head."""

import contextlib
import os
import sys
from pathlib import Path

import keras
import numpy as np

from classifier.base.console import NO_DATA, USAGE, UserError
from classifier.networks.layers import Dropout
from classifier.training.settings import PRETRAINED_NETWORKS

FEATURE_SCALES = 3


def create_pretrained_network(name, image_size, num_classes, dropout=0.0, scales=FEATURE_SCALES):
    """A network of keras.applications, the layer "backbone", with its own preprocessing before it and a new head after it.

    (n, image_size, image_size, 3) uint8 RGB → (n, num_classes) logits. Its weights are random: see load_weights().

    The features are the means of its last maps, and of the last maps of the `scales - 1` sizes before: what tells the
    user's classes apart may be smaller than what ImageNet is about. The head standardizes them: see standardize().
    With one scale, as in earlier versions, it does not.
    """
    try:
        backbone = _application(name, weights=None, input_shape=(image_size, image_size, 3))
        images = keras.Input((image_size, image_size, 3), dtype="uint8", name="images")
        if scales > 1:
            means = [
                keras.layers.GlobalAveragePooling2D(name=f"mean_{i}")(maps)
                for i, maps in enumerate(_maps_before_the_last(backbone, scales - 1))
            ]
            backbone = keras.Model(backbone.input, keras.layers.Concatenate(name="mean_all")([*means, backbone.output]))
        backbone.name = "backbone"  # not by an argument: some of them look up their sizes by their name
        features = backbone(normalize(name, images))
    except ValueError as error:
        raise UserError(f"--image-size {image_size} does not fit {name}: {str(error).splitlines()[0]}") from None
    if scales > 1:
        features = keras.layers.BatchNormalization(
            center=False, scale=False, epsilon=1e-7, trainable=False, name="standardize"
        )(features)
    head = Dropout(dropout, name="drop")(features)
    logits = keras.layers.Dense(num_classes, kernel_initializer="zeros", name="fc")(head)
    return keras.Model(images, logits, name=name)


def _application(name, **options):
    """A network of keras.applications without its head: images → (n, features)."""
    constructor = PRETRAINED_NETWORKS[name].split(".")[1]
    return getattr(keras.applications, constructor)(include_top=False, pooling="avg", **options)


def _maps_before_the_last(backbone, count):
    """The last maps of each of the `count` sizes before that of its final maps, the largest first."""
    maps = [layer.output for layer in backbone.layers if len(layer.output.shape) == 4]
    chosen = maps[-1:]
    for tensor in reversed(maps):
        if tensor.shape[1] > 1.5 * chosen[0].shape[1] and len(chosen) <= count:
            chosen.insert(0, tensor)
    return chosen[:-1]


def standardize(networks, features):
    """Set the mean and the variance by which the heads of these networks standardize features, to those of a DataSet."""
    sums = sum(np.stack([batch, batch**2]).sum(axis=1, dtype=np.float64) for batch, _ in features.batches(1024))
    mean, mean_square = sums / len(features)
    variance = np.maximum(mean_square - mean**2, 0)
    for network in networks:
        layer = network.get_layer("standardize")
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance + 1e-3 * variance.mean())  # or a constant feature would dominate


def normalize(name, images):
    """The input of a backbone: (n, side, side, 3) uint8 RGB → the same in float32.

    It is the result of preprocess(), except for the first EfficientNets. These have a layer that normalizes with statistics
    from the file of weights, but only if Keras loads that file while it builds them. So their input is normalized here, and
    load_weights() resets the statistics.
    """
    pixels = preprocess(name, images)
    if PRETRAINED_NETWORKS[name].startswith("efficientnet."):
        mean, deviation = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # of ImageNet's RGB from 0 to 1
        pixels = (pixels - 255 * mean) / deviation
    return pixels


def preprocess(name, images):
    """The preprocessing of keras.applications for a network: (n, side, side, 3) uint8 RGB → the same in float32."""
    module = PRETRAINED_NETWORKS[name].split(".")[0]
    return getattr(keras.applications, module).preprocess_input(keras.ops.cast(images, "float32"))


def middle_maps(network):
    """Feature maps of a pretrained network, (n, height, width, maps), and its logits.

    These maps are in the middle of the backbone: the last ones of about twice the side of its final maps.
    """
    backbone = network.get_layer("backbone")
    middle = _maps_before_the_last(backbone, 1)[0]
    both = keras.Model(backbone.input, (middle, backbone.output), name="backbone_with_maps")
    maps, features = both(normalize(network.name, network.input))
    return maps, head_of(network)(features)


def split_at_features(network):
    """The two parts of a pretrained network: the feature extractor, images → features, and the head, features → logits."""
    return keras.Model(network.input, features_of(network), name="feature_extractor"), head_of(network)


def split_at_maps(network):
    """The two parts of a pretrained network: images → the list of maps whose means are the features, and these → logits."""
    backbone = network.get_layer("backbone")
    pooling = [layer for layer in backbone.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D)]
    means = sorted((layer for layer in pooling if layer.name.startswith("mean_")), key=lambda layer: layer.name)
    last = [layer for layer in pooling if layer not in means][-1]  # others are in squeeze-and-excitation blocks
    maps = [_before_padding(backbone, layer.input) for layer in (*means, last)]
    images_to_maps = keras.Model(backbone.input, maps)(normalize(network.name, network.input))
    logits = head_of(network)(keras.Model(maps, backbone.output)(maps))
    return keras.Model(network.input, images_to_maps), keras.Model(maps, logits)


def maps_of_last_sizes(backbone, count):
    """The last maps of each of the last `count` sizes of maps in a backbone, the largest first, as tensors."""
    maps = [layer.output for layer in backbone.layers if len(layer.output.shape) == 4]
    return [_before_padding(backbone, tensor) for tensor in (*_maps_before_the_last(backbone, count - 1), maps[-1])]


def _before_padding(backbone, maps):
    """The maps, a tensor, without padding, which would shift what is shown if it is on two of the four sides."""
    padding = [layer for layer in backbone.layers if layer.output is maps and isinstance(layer, keras.layers.ZeroPadding2D)]
    return padding[0].input if padding else maps


def features_of(network):
    """The tensor of features in a pretrained network, (n, features): the output of its backbone."""
    return _head_layers(network)[0].input


def head_of(network):
    """The head of a pretrained network alone: features → logits."""
    inputs = outputs = keras.Input(features_of(network).shape[1:], name="features")
    for layer in _head_layers(network):
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name="head")


def _head_layers(network):
    return [layer for layer in network.layers if layer.name in ("standardize", "drop", "fc")]


def first_layer_of_last_sizes(network, count):
    """The name of the first layer whose maps have one of the last `count` sizes: --fine-tune from there on."""
    backbone = network.get_layer("backbone")
    *_, before = [layer for layer in backbone.layers if layer.output is _maps_before_the_last(backbone, count)[0]]
    return backbone.layers[backbone.layers.index(before) + 1].name


def unfreeze(network, layers):
    """Unfreeze the last layers of the backbone and freeze the others: `layers` is the first one's name, or a number.

    Batch normalization stays frozen, which in Keras means inference mode, too: it keeps the statistics that the backbone
    was trained with. Raises UserError for an unknown name.
    """
    backbone = network.get_layer("backbone")
    layers_of_application = [layer for layer in backbone.layers if not layer.name.startswith("mean_")]
    names = [layer.name for layer in layers_of_application]
    if layers.isdecimal():
        first = max(len(names) - int(layers), 0)
    elif layers in names:
        first = names.index(layers)
    else:
        last = ", ".join(names[-12:])
        raise UserError(f"--fine-tune: {network.name} has no layer {layers!r}; its last ones are {last}", USAGE)
    for i, layer in enumerate(layers_of_application):
        layer.trainable = i >= first and not isinstance(layer, keras.layers.BatchNormalization)


def normalize_by_recent_steps(network, several_devices):
    """Average the statistics of batch normalization over about ten steps, for a backbone with random weights.

    keras.applications averages over up to a thousand steps, which suits ImageNet. A shorter run would end with
    statistics from its beginning. They are those of whole batches on `several_devices`, too.
    """
    for layer in network.get_layer("backbone").layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum, layer.synchronized = 0.9, several_devices


def load_weights(network, weights):
    """Load the weights of a backbone: "imagenet" (Keras downloads them once), "none" (keeps random ones), or a .h5 file.

    Keras refuses a file that links to other files of this machine (safe_get_h5_group and safe_get_h5_dataset in
    keras/src/saving/saving_lib.py). Raises UserError for such a file, for one that does not fit, and without a connection.
    """
    if weights == "none":
        return
    backbone = network.get_layer("backbone")
    if weights == "imagenet":
        try:
            # The weights are the same for every size, but Keras has them for few sizes.
            with contextlib.redirect_stdout(sys.stderr):  # Keras reports its download there
                pretrained = _application(network.name, weights="imagenet", input_shape=(224, 224, 3))
        except Exception as error:  # get_file() raises a bare Exception
            raise UserError(f"{no_download(error)}, or train with --weights FILE") from None
    else:
        pretrained = _application(network.name, weights=None, input_shape=backbone.input_shape[1:])
        if not str(weights).endswith((".h5", ".hdf5")):  # Keras would read its other formats, too
            raise UserError(f"cannot read the weights {weights}: neither imagenet, none, nor a .h5 file", NO_DATA)
        try:
            pretrained.load_weights(weights)
        except OSError as error:
            raise UserError(f"cannot read the weights {weights}: {error}", NO_DATA) from None
        except (ValueError, KeyError) as error:
            reason = " ".join(list(filter(None, str(error).splitlines()))[:2])
            raise UserError(f"{weights} does not fit {network.name}: {reason}", NO_DATA) from None
    backbone.set_weights(pretrained.get_weights())  # its own layers have none
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:  # see normalize()
            layer.set_weights([np.zeros(3), np.ones(3), np.zeros(())])
            layer.finalize_state()


def no_download(error):
    """The message where Keras cannot download a file: what to do."""
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    reason = str(error).splitlines()[0]
    return f"cannot download what {home} lacks ({reason}): put that file there"
