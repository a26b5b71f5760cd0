"""Pretrained backbones: the networks of keras.applications by name, their weights, and a new head on top of each."""

import contextlib
import dataclasses
import hashlib
import os
import sys
from pathlib import Path

from console import NO_DATA, USAGE, UserError, describe, progress, put_in_place, say

BACKBONES = {  # name: module and class in keras.applications
    "convnext_tiny": "convnext.ConvNeXtTiny", "convnext_small": "convnext.ConvNeXtSmall",
    "convnext_base": "convnext.ConvNeXtBase", "convnext_large": "convnext.ConvNeXtLarge",
    "convnext_xlarge": "convnext.ConvNeXtXLarge",
    "densenet121": "densenet.DenseNet121", "densenet169": "densenet.DenseNet169", "densenet201": "densenet.DenseNet201",
    **{f"efficientnet_b{n}": f"efficientnet.EfficientNetB{n}" for n in range(8)},
    **{f"efficientnet_v2_b{n}": f"efficientnet_v2.EfficientNetV2B{n}" for n in range(4)},
    **{f"efficientnet_v2_{n.lower()}": f"efficientnet_v2.EfficientNetV2{n}" for n in "SML"},
    "inception_resnet_v2": "inception_resnet_v2.InceptionResNetV2", "inception_v3": "inception_v3.InceptionV3",
    "mobilenet": "mobilenet.MobileNet", "mobilenet_v2": "mobilenet_v2.MobileNetV2",
    "mobilenet_v3_small": "mobilenet_v3.MobileNetV3Small", "mobilenet_v3_large": "mobilenet_v3.MobileNetV3Large",
    "nasnet_mobile": "nasnet.NASNetMobile", "nasnet_large": "nasnet.NASNetLarge",
    **{f"resnet{n}": f"resnet.ResNet{n}" for n in (50, 101, 152)},
    **{f"resnet{n}_v2": f"resnet_v2.ResNet{n}V2" for n in (50, 101, 152)},
    "vgg16": "vgg16.VGG16", "vgg19": "vgg19.VGG19", "xception": "xception.Xception",
}  # fmt: skip
FEATURES_VERSION = 2  # raise it when a backbone comes to give other features


def create_backbone_network(name, image_size, num_classes, dropout=0.0):
    """A network of keras.applications with its own preprocessing before it and a new head behind it.

    (n, image_size, image_size, 3) uint8 RGB → (n, num_classes) logits. Its weights are random. The backbone is the layer
    "backbone", (n, side, side, 3) → (n, features).
    """
    import keras

    constructor = BACKBONES[name].split(".")[1]
    try:
        backbone = getattr(keras.applications, constructor)(
            include_top=False, weights=None, input_shape=(image_size, image_size, 3), pooling="avg"
        )
        backbone.name = "backbone"  # an argument would not do: some of them look up their sizes by it
        pictures = keras.Input((image_size, image_size, 3), dtype="uint8", name="pictures")
        features = backbone(normalize(name, pictures))
    except ValueError as error:
        raise UserError(f"--image-size {image_size} does not suit {name}: {str(error).splitlines()[0]}") from None
    head = keras.layers.Dropout(dropout, name="drop")(features)
    logits = keras.layers.Dense(num_classes, kernel_initializer="zeros", name="fc")(head)
    return keras.Model(pictures, logits, name=name)


def normalize(name, pictures):
    """What a backbone takes: (n, side, side, 3) uint8 RGB → the same in float32.

    That is what preprocess() gives, but for the first EfficientNets: they normalize with statistics from their weights' file
    only where Keras loads it while it builds them. So they are normalized here; load_weights() leaves the statistics out.
    """
    import numpy as np

    pixels = preprocess(name, pictures)
    if BACKBONES[name].startswith("efficientnet."):
        mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet's RGB from 0 to 1
        pixels = (pixels - 255 * mean) / deviation
    return pixels


def preprocess(name, pictures):
    """What keras.applications wants before the network of this name: (n, side, side, 3) uint8 RGB → the same in float32."""
    import keras

    module = BACKBONES[name].split(".")[0]
    return getattr(keras.applications, module).preprocess_input(keras.ops.cast(pictures, "float32"))


def with_middle_maps(network):
    """A network that create_backbone_network() made, with two outputs: means of maps, (n, maps), and the logits.

    These maps are in the middle of the backbone: the last ones that are about twice the size of its very last.
    """
    import keras

    backbone = network.get_layer("backbone")
    maps = [layer.output for layer in backbone.layers if len(layer.output.shape) == 4]
    middle = [tensor for tensor in maps if tensor.shape[1] > 1.5 * maps[-1].shape[1]][-1]
    means = keras.layers.GlobalAveragePooling2D()(middle)
    both = keras.Model(backbone.input, (means, backbone.output), name="backbone_with_maps")
    means, features = both(normalize(network.name, network.input))
    return keras.Model(network.input, (means, network.get_layer("fc")(features)))


def split_at_features(network):
    """The two parts of a network that create_backbone_network() made: pictures → features, and features → logits."""
    import keras

    features = network.get_layer("drop").input
    inputs = keras.Input(features.shape[1:], name="features")
    return (
        keras.Model(network.input, features, name="features_of_pictures"),
        keras.Model(inputs, network.get_layer("fc")(network.get_layer("drop")(inputs)), name="head"),
    )


def unfreeze(network, layers):
    """Let the last layers of the backbone learn, and freeze the others: `layers` is a layer's name, or how many.

    Batch normalization does not learn, which in Keras means inference mode, too: it keeps the statistics of the pictures
    that the backbone was trained with.
    """
    import keras

    backbone = network.get_layer("backbone")
    names = [layer.name for layer in backbone.layers]
    if layers.isdecimal():
        first = max(len(names) - int(layers), 0)
    elif layers in names:
        first = names.index(layers)
    else:
        last = ", ".join(names[-12:])
        raise UserError(f"--fine-tune: {network.name} has no layer {layers!r}; its last ones are {last}", USAGE)
    for i, layer in enumerate(backbone.layers):
        layer.trainable = i >= first and not isinstance(layer, keras.layers.BatchNormalization)


def normalize_by_recent_steps(network):
    """Let the statistics of batch normalization follow the last ten steps or so, for a backbone with random weights.

    keras.applications has them follow up to a thousand steps, as suits ImageNet: a run not much longer than that would end
    with statistics from its beginning.
    """
    import keras

    for layer in network.get_layer("backbone").layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9


def extract_features(sets, features_of, cache_dir):
    """TrainSets that give features, (k, features) float32, for pixels: each picture goes through the network once.

    They are kept in the folder `cache_dir` for later runs; where it cannot be written, in memory.
    """
    import cv2
    import keras
    import numpy as np

    from dataset import CACHE_VERSION, DataSet, fitting_batch
    from model import compile_outputs

    compute, sides = compile_outputs(features_of), (sets.train, sets.valid)
    versions = FEATURES_VERSION, CACHE_VERSION, keras.__version__, cv2.__version__
    key = hashlib.blake2b(f"{sets.fingerprint} {features_of.input_shape} {versions}".encode(), digest_size=12)
    for weights in features_of.get_weights():
        key.update(weights)
    path = Path(cache_dir, f"{key.hexdigest()}.features")
    partial = path.with_suffix(f".partial-{os.getpid()}")
    shape = (sum(map(len, sides)), features_of.output_shape[1])

    def chunks():
        with progress("features of pictures", shape[0]) as advance:
            for side in sides:
                for pixels, _ in side.batches(fitting_batch(features_of.input_shape[1])):
                    yield compute(pixels)
                    advance(len(pixels))

    try:
        if not path.exists() or path.stat().st_size != 4 * shape[0] * shape[1]:
            os.makedirs(cache_dir, exist_ok=True)
            with open(partial, "wb") as file:
                for chunk in chunks():
                    file.write(chunk)
            put_in_place(partial, path)
        os.utime(path)
        features = np.memmap(path, np.float32, "r", shape=shape)
    except OSError as error:
        say(f"no cache of features ({describe(error)}): they stay in memory")
        features = np.concatenate(list(chunks()))
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    rows = np.split(np.arange(shape[0]), [len(sets.train)])
    train, valid = (
        DataSet(side.paths, side.labels, lambda positions, rows=part: features[rows[positions]], 4 * shape[1])
        for side, part in zip(sides, rows, strict=True)
    )
    return dataclasses.replace(sets, train=train, valid=valid)


def load_weights(network, weights):
    """Give a backbone its weights: "imagenet" (Keras downloads them once), "none" (random ones), or a .h5 file.

    Raises UserError where there is no connection, or the file does not fit.
    """
    import keras
    import numpy as np

    if weights == "none":
        return
    backbone = network.get_layer("backbone")
    if weights == "imagenet":
        constructor = getattr(keras.applications, BACKBONES[network.name].split(".")[1])
        try:
            # Of one size, whatever that of the pictures is: Keras has weights for few others, and any size can use these.
            with contextlib.redirect_stdout(sys.stderr):  # it says what it downloads
                pretrained = constructor(include_top=False, weights="imagenet", input_shape=(224, 224, 3), pooling="avg")
        except Exception as error:  # get_file() raises a bare Exception
            raise UserError(no_download(error)) from None
        backbone.set_weights(pretrained.get_weights())
    else:
        _refuse_links(Path(weights))
        try:
            backbone.load_weights(weights)
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"{weights} does not fit {network.name}: {str(error).splitlines()[0]}", NO_DATA) from None
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:  # see normalize()
            layer.set_weights([np.zeros(3), np.ones(3), np.zeros(())])
            layer.finalize_state()


def no_download(error):
    """What to do where Keras cannot download a file."""
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    reason = str(error).splitlines()[0]
    return f"cannot download what {home} lacks ({reason}): put that file there, or train with --weights FILE"


def _refuse_links(path):
    """A HDF5 file may name other files of this machine to read from: refuse one that does, or that is none."""
    import h5py

    def check(group):
        for name in group:
            if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                raise UserError(f"{path} refers to other files: it is not used", NO_DATA)
            if isinstance(group[name], h5py.Group):
                check(group[name])
            elif group[name].external or group[name].is_virtual:
                raise UserError(f"{path} refers to other files: it is not used", NO_DATA)

    try:
        with h5py.File(path, "r") as file:
            check(file)
    except (OSError, KeyError) as error:
        raise UserError(f"cannot read the weights {path}: {error}", NO_DATA) from None
