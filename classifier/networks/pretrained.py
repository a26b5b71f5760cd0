"""Pretrained networks: keras.applications by name, with preprocessing before them, weights, and a new head."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import keras
import numpy as np
from keras.src.utils import file_utils

from classifier.base.console import NO_DATA, USAGE, UserError
from classifier.networks import PRETRAINED_NETWORKS
from classifier.networks.layers import Dropout

FEATURE_SIZES = 3  # of maps whose means are the features


def create_pretrained_network(name: str, image_size: int, num_classes: int, dropout: float = 0.0) -> keras.Model:
    """A network of keras.applications, the layer "backbone", with its own preprocessing before it and a new head after it.

    (n, image_size, image_size, 3) uint8 RGB → (n, num_classes) logits. Its weights are random: see load_weights(). The
    features are the means of the last maps of three sizes: what tells the user's classes apart may be smaller than what
    ImageNet is about. The head standardizes them: see standardize().
    """
    try:
        application = _application(name, weights=None, input_shape=(image_size, image_size, 3))
        maps = maps_of_last_sizes(application, FEATURE_SIZES)[:-1]
        means = [keras.layers.GlobalAveragePooling2D(name=f"mean_{i}")(each) for i, each in enumerate(maps)]
        outputs = keras.layers.Concatenate(name="mean_all")([*means, application.output])
        backbone = keras.Model(application.input, outputs)
        _set_statistics(backbone)
        backbone.name = "backbone"  # not by an argument: some of them look up their sizes by their name
        images = keras.Input((image_size, image_size, 3), dtype="uint8", name="images")
        features = backbone(preprocess(name, images))
    except ValueError as error:
        raise UserError(f"--image-size {image_size} does not fit {name}: {str(error).splitlines()[0]}") from None
    options = {"center": False, "scale": False, "epsilon": 1e-7, "trainable": False}
    features = keras.layers.BatchNormalization(**options, name="standardize")(features)
    features = Dropout(dropout, name="drop")(features)
    logits = keras.layers.Dense(num_classes, kernel_initializer="zeros", name="fc")(features)
    return keras.Model(images, logits, name=name)


def _application(name, **options):
    """A network of keras.applications without its head: images → (n, features)."""
    constructor = PRETRAINED_NETWORKS[name].split(".")[1]
    return getattr(keras.applications, constructor)(include_top=False, pooling="avg", **options)


def _set_statistics(backbone):
    """Let the first EfficientNets normalize as with ImageNet's weights: Keras adds a layer for that where it loads these."""
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # of ImageNet's RGB from 0 to 1
            layer.set_weights([mean, deviation**2, np.zeros(())])
            layer.finalize_state()


def maps_of_last_sizes(backbone: keras.Model, count: int) -> list[keras.KerasTensor]:
    """The last maps, (n, height, width, channels), of each of the last `count` sizes of maps, the largest first."""
    maps = [layer.output for layer in backbone.layers if len(layer.output.shape) == 4]
    chosen = maps[-1:]
    for tensor in reversed(maps):
        if tensor.shape[1] > 1.5 * chosen[0].shape[1] and len(chosen) < count:
            chosen.insert(0, tensor)
    return chosen


def without_padding(backbone: keras.Model, maps: list[keras.KerasTensor]) -> list[keras.KerasTensor]:
    """The same maps before padding on two of the four sides, which would shift what is shown."""
    padding = {id(layer.output): layer for layer in backbone.layers if isinstance(layer, keras.layers.ZeroPadding2D)}
    return [padding[id(tensor)].input if id(tensor) in padding else tensor for tensor in maps]


def standardize(networks: tuple[keras.Model, ...], features) -> None:
    """Set the mean and the variance by which the heads of these networks standardize features, to those of a DataSet."""
    sums = sum(np.stack([batch, batch**2]).sum(axis=1, dtype=np.float64) for batch, _ in features.batches(1024))
    mean, mean_square = sums / len(features)
    variance = np.maximum(mean_square - mean**2, 0)
    for network in networks:
        layer = network.get_layer("standardize")
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance + 1e-3 * variance.mean())  # or a constant feature would dominate


def preprocess(name: str, images: keras.KerasTensor) -> keras.KerasTensor:
    """(n, side, side, 3) uint8 RGB → the same in float32, as the network of keras.applications takes it."""
    module = PRETRAINED_NETWORKS[name].split(".")[0]
    return getattr(keras.applications, module).preprocess_input(keras.ops.cast(images, "float32"))


def backbone_outputs(network: keras.Model, tensors: list[keras.KerasTensor]) -> list[keras.KerasTensor]:
    """Tensors inside the backbone of a pretrained network as tensors that depend on the network's input."""
    backbone = network.get_layer("backbone")
    return keras.Model(backbone.input, tensors, name="backbone_inside")(preprocess(network.name, network.input))


def split_at_maps(network: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The two parts of a pretrained network: images → the list of maps whose means are the features, and these → logits."""
    backbone = network.get_layer("backbone")
    pooling = [layer for layer in backbone.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D)]
    last = [layer.input for layer in pooling if not layer.name.startswith("mean_")][-1]  # of a ConvNeXt no layer's output
    maps = without_padding(backbone, [*maps_of_last_sizes(backbone, FEATURE_SIZES)[:-1], last])
    logits = split_at_features(network)[1](keras.Model(maps, backbone.output)(maps))
    return keras.Model(network.input, backbone_outputs(network, maps)), keras.Model(maps, logits)


def split_at_features(network: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The two parts of a pretrained network: the feature extractor, images → features, and the head, features → logits."""
    features = network.get_layer("standardize").input  # (n, features)
    return keras.Model(network.input, features, name="feature_extractor"), keras.Model(features, network.output, name="head")


def first_layer_of_last_sizes(network: keras.Model, count: int) -> str:
    """The name of the first layer whose maps have one of the last `count` sizes: --fine-tune from there on."""
    backbone = network.get_layer("backbone")
    *_, before = [layer for layer in backbone.layers if layer.output is maps_of_last_sizes(backbone, count + 1)[0]]
    return backbone.layers[backbone.layers.index(before) + 1].name


def unfreeze(network: keras.Model, layers: str) -> None:
    """Unfreeze the last layers of the backbone and freeze the others: `layers` is the first one's name, or a number.

    Batch normalization stays frozen, which in Keras means inference mode, too: it keeps the statistics that the backbone
    was trained with. Raises UserError for an unknown name.
    """
    of_application = [layer for layer in network.get_layer("backbone").layers if not layer.name.startswith("mean_")]
    names = [layer.name for layer in of_application]
    if not layers.isdecimal() and layers not in names:
        last = ", ".join(names[-12:])
        raise UserError(f"--fine-tune: {network.name} has no layer {layers!r}; its last ones are {last}", USAGE)
    first = len(names) - int(layers) if layers.isdecimal() else names.index(layers)
    for i, layer in enumerate(of_application):
        layer.trainable = i >= first and not isinstance(layer, keras.layers.BatchNormalization)


def normalize_by_recent_steps(network: keras.Model, several_devices: bool) -> None:
    """Average the statistics of batch normalization over about ten steps, for a backbone with random weights.

    keras.applications averages over up to a thousand: a short run would end with statistics from its beginning. They are
    those of whole batches on `several_devices`, too.
    """
    for layer in network.get_layer("backbone").layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum, layer.synchronized = 0.9, several_devices


def load_weights(network: keras.Model, weights: str) -> None:
    """Load the weights of a backbone: "imagenet" (Keras downloads them once), "none" (keeps random ones), or a .h5 file.

    Keras refuses a file that links to other files of this machine (safe_get_h5_group and safe_get_h5_dataset in
    keras/src/saving/saving_lib.py). Raises UserError for such a file, for one that does not fit, and without a connection.
    """
    if weights == "none":
        return
    backbone = network.get_layer("backbone")
    if weights == "imagenet":
        with downloads(", or train with --weights FILE"):  # for every size the same, but Keras has them for few sizes
            application = _application(network.name, weights="imagenet", input_shape=(224, 224, 3))
    else:
        if not str(weights).endswith((".h5", ".hdf5")):  # Keras would read its other formats, too
            raise UserError(f"cannot read the weights {weights}: neither imagenet, none, nor a .h5 file", NO_DATA)
        application = _application(network.name, weights=None, input_shape=backbone.input_shape[1:])
        try:
            application.load_weights(weights)
        except OSError as error:
            reason = error if os.path.exists(weights) else "there is no such file"  # h5py says it in its own words
            raise UserError(f"cannot read the weights {weights}: {reason}", NO_DATA) from None
        except (ValueError, KeyError) as error:
            reason = " ".join(list(filter(None, str(error).splitlines()))[:2])
            raise UserError(f"{weights} does not fit {network.name}: {reason}", NO_DATA) from None
    backbone.set_weights(application.get_weights())  # its own layers have none
    _set_statistics(backbone)


@contextlib.contextmanager
def downloads(advice: str = "") -> Iterator[None]:
    """A context in which Keras downloads what it lacks. Raises UserError where it cannot, with more advice if given.

    Keras looks only into folders that it can write to: what is in $KERAS_HOME, or else ~/.keras, is found here.
    """
    home = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")) / "models"
    get_file = file_utils.get_file

    def find_or_download(fname, origin, file_hash=None, **options):
        path = home / fname
        with contextlib.suppress(OSError):
            if path.is_file() and (not file_hash or file_utils.validate_file(path, file_hash)):
                return str(path)
        try:
            return get_file(fname, origin, file_hash=file_hash, **options)
        except Exception as error:  # get_file() raises a bare Exception
            state = "damaged" if path.exists() else "missing"
            reason = str(error).rpartition(" -- ")[2]
            problem = f"{path} is {state}, and {origin} cannot be downloaded ({reason})"
            raise UserError(f"{problem}: put that file there{advice}") from None

    with contextlib.redirect_stdout(sys.stderr), mock.patch.object(file_utils, "get_file", find_or_download):
        yield
