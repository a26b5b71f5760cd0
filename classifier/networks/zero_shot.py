"""Zero-shot classification: an ImageNet network predicts the user's classes without any training, by sums of its own."""

import contextlib
import re
import sys

import keras
import numpy as np

from classifier.base.console import USAGE, UserError, say
from classifier.networks import PRETRAINED_NETWORKS
from classifier.networks.by_name import compile_outputs
from classifier.networks.pretrained import no_download, preprocess

FAMILIES = {  # which of ImageNet's 1,000 classes are of this kind: first and last index
    "dog": [(151, 268)],
    "cat": [(281, 285)],
    "wolf": [(269, 272)],
    "fox": [(277, 280)],
    "bear": [(294, 297)],
    "bird": [(7, 24), (80, 100), (127, 146)],
    "fish": [(0, 6), (389, 397)],
    "snake": [(52, 68)],
    "spider": [(72, 77)],
    "frog": [(30, 32)],
    "turtle": [(33, 37)],
    "lizard": [(38, 48)],
    "butterfly": [(321, 326)],
    "beetle": [(300, 307)],
    "rabbit": [(330, 332)],
    "monkey": [(370, 382)],
    "ape": [(365, 369)],
}

PLURALS = [("", ""), ("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe")]  # endings: plural, singular


def load_zero_shot(name, classes):
    """(predictor, image_size) of a network of keras.applications with ImageNet's weights: see predictor_by_imagenet().

    Raises UserError where they cannot be downloaded, or a class has no counterpart in ImageNet.
    """
    module_name, constructor = PRETRAINED_NETWORKS[name].split(".")
    module = getattr(keras.applications, module_name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras reports its download there
            network = getattr(keras.applications, constructor)(weights="imagenet")
            labels = [row[0][1] for row in module.decode_predictions(np.eye(1000, dtype=np.float32), top=1)]
    except Exception as error:  # get_file() raises a bare Exception
        raise UserError(no_download(error)) from None
    size = network.input_shape[1]
    images = keras.Input((size, size, 3), dtype="uint8")
    probabilities = network(preprocess(name, images), training=False)
    return predictor_by_imagenet(keras.Model(images, probabilities), labels, classes), size


def predictor_by_imagenet(network, labels, classes):
    """A predictor, see inference.load_predictor(), from a network with ImageNet's classes. Its OOD scores are 0.

    `network` gives probabilities, (n, 1000), of the classes `labels`. Each of `classes` gets the sum over those that are
    kinds of it; log_softmax() of the logarithms makes these sums add up to 1.
    """
    kinds = [imagenet_classes(name, labels) for name in classes]
    for name, members in zip(classes, kinds, strict=True):
        shown = ", ".join(labels[i] for i in members[:3]) + (f" … ({len(members)} classes)" if len(members) > 3 else "")
        say(f"{name}: {shown}")
    is_kind = np.stack([np.isin(np.arange(len(labels)), members) for members in kinds], axis=1)  # (1000, classes)
    outputs = compile_outputs(network)

    def predictor(images):
        sums = outputs(images) @ is_kind.astype(np.float32)  # (n, classes)
        return np.log(np.maximum(sums, 1e-12)), np.zeros(len(images), np.float32)

    return predictor


def imagenet_classes(name, labels):
    """The indices of ImageNet's classes that are kinds of `name`: a family, the class of this name, or those ending in it.

    `dogs` is the family of `dog`, `coffee mugs` is `coffee_mug`, but a `horse_cart` is no horse. Raises UserError if there
    is none.
    """
    folded = [label.casefold() for label in labels]
    words = re.sub(r"[\s_-]+", "_", name.strip().casefold())
    for word in [words.removesuffix(many) + one for many, one in PLURALS if words.endswith(many)]:
        if word in FAMILIES:
            return [i for first, last in FAMILIES[word] for i in range(first, last + 1)]
        for kinds in ({word}, {label for label in folded if label.endswith(f"_{word}")}):
            if found := [i for i, label in enumerate(folded) if label in kinds]:
                return found
    raise UserError(f"--zero-shot: none of ImageNet's classes is a kind of {name!r}", USAGE)
