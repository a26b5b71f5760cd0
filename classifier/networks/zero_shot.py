"""Zero-shot classification: an ImageNet network predicts the user's classes without any training, by sums of its own."""

import re
from collections.abc import Callable

import keras
import numpy as np

from classifier.base.console import USAGE, UserError, say
from classifier.networks import PRETRAINED_NETWORKS
from classifier.networks.by_name import compile_outputs
from classifier.networks.pretrained import downloads, preprocess

FAMILIES = {  # which of ImageNet's 1,000 classes are of this kind
    "dog": [*range(151, 269)],
    "cat": [*range(281, 286)],
    "wolf": [*range(269, 273)],
    "fox": [*range(277, 281)],
    "bear": [*range(294, 298)],
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)],
    "fish": [*range(7), *range(389, 398)],
    "snake": [*range(52, 69)],
    "spider": [*range(72, 78)],
    "frog": [*range(30, 33)],
    "turtle": [*range(33, 38)],
    "lizard": [*range(38, 49)],
    "butterfly": [*range(321, 327)],
    "beetle": [*range(300, 308)],
    "rabbit": [*range(330, 333)],
    "monkey": [*range(370, 383)],
    "ape": [*range(365, 370)],
}
SINGULARS = [("", ""), ("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe")]  # endings: plural, singular


def load_zero_shot(name: str, classes: list[str]) -> tuple[Callable, int]:
    """(predictor, image_size) of a network of keras.applications with ImageNet's weights: see predictor_by_imagenet().

    Raises UserError where they cannot be downloaded, or a class has no counterpart in ImageNet.
    """
    module, constructor = PRETRAINED_NETWORKS[name].split(".")
    with downloads():
        network = getattr(keras.applications, constructor)(weights="imagenet")
        decoded = getattr(keras.applications, module).decode_predictions(np.eye(1000, dtype=np.float32), top=1)
    size = network.input_shape[1]
    images = keras.Input((size, size, 3), dtype="uint8")
    probabilities = network(preprocess(name, images), training=False)
    labels = [label for ((_, label, _),) in decoded]
    return predictor_by_imagenet(keras.Model(images, probabilities), labels, classes), size


def predictor_by_imagenet(network: keras.Model, labels: list[str], classes: list[str]) -> Callable:
    """A predictor, see predicting.classifier.load_predictor(), from a network with ImageNet's classes. Its OOD scores are 0.

    `network` gives probabilities, (n, 1000), of the classes `labels`. Each of `classes` gets the sum over those that are
    kinds of it; log_softmax() of the logarithms makes these sums add up to 1.
    """
    is_kind = np.zeros((len(labels), len(classes)), np.float32)
    for column, name in enumerate(classes):
        kinds = imagenet_classes(name, labels)
        is_kind[kinds, column] = 1
        more = f" … ({len(kinds)} classes)" if len(kinds) > 3 else ""
        say(f"{name}: {', '.join(labels[i] for i in kinds[:3])}{more}")
    outputs = compile_outputs(network)
    return lambda images: (np.log(np.maximum(outputs(images) @ is_kind, 1e-12)), np.zeros(len(images), np.float32))


def imagenet_classes(name: str, labels: list[str]) -> list[int]:
    """The indices of ImageNet's classes that are kinds of `name`: a family, the class of this name, or those ending in it.

    `dogs` is the family of `dog`, `coffee mugs` is `coffee_mug`, but a `horse_cart` is no horse. Raises UserError if there
    is none.
    """
    words = re.sub(r"[\s_-]+", "_", name.strip().casefold())
    for word in [words.removesuffix(many) + one for many, one in SINGULARS if words.endswith(many)]:
        same = [i for i, label in enumerate(labels) if label.casefold() == word]
        kinds = [i for i, label in enumerate(labels) if label.casefold().endswith(f"_{word}")]
        if found := FAMILIES.get(word) or same or kinds:
            return found
    raise UserError(f"--zero-shot: none of ImageNet's classes is a kind of {name!r}", USAGE)
