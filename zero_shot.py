"""Zero-shot: what an ImageNet network says of the user's classes without any training, by adding up its own."""

import contextlib
import re
import sys

import numpy as np

from backbones import BACKBONES, no_download, preprocess
from console import USAGE, UserError, say

FAMILIES = {  # of ImageNet's 1,000 classes, those that are kinds of: first and last index
    "dog": [(151, 268)], "cat": [(281, 285)], "wolf": [(269, 272)], "fox": [(277, 280)], "bear": [(294, 297)],
    "bird": [(7, 24), (80, 100), (127, 146)], "fish": [(0, 6), (389, 397)], "snake": [(52, 68)], "spider": [(72, 77)],
    "frog": [(30, 32)], "turtle": [(33, 37)], "lizard": [(38, 48)], "butterfly": [(321, 326)], "beetle": [(300, 307)],
    "rabbit": [(330, 332)], "monkey": [(370, 382)], "ape": [(365, 369)],
}  # fmt: skip

PLURALS = [("", ""), ("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe")]  # endings, and those of one


def load_zero_shot(name, classes):
    """(judge, image_size) of a network of keras.applications with ImageNet's weights: see judge_by_imagenet().

    Raises UserError where they cannot be downloaded, or a class is none of ImageNet's.
    """
    import keras

    module_name, constructor = BACKBONES[name].split(".")
    module = getattr(keras.applications, module_name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it says what it downloads
            network = getattr(keras.applications, constructor)(weights="imagenet")
            labels = [row[0][1] for row in module.decode_predictions(np.eye(1000, dtype=np.float32), top=1)]
    except Exception as error:  # get_file() raises a bare Exception
        raise UserError(no_download(error)) from None
    size = network.input_shape[1]
    pictures = keras.Input((size, size, 3), dtype="uint8")
    probabilities = network(preprocess(name, pictures), training=False)
    return judge_by_imagenet(keras.Model(pictures, probabilities), labels, classes), size


def judge_by_imagenet(network, labels, classes):
    """`judge(pictures)` as inference.load_judge() gives it, from a network with ImageNet's classes.

    `network` gives probabilities, (n, 1000), of the classes `labels`. Each of `classes` has the sum of those that are kinds
    of it; together these are 1.
    """
    from model import compile_outputs

    kinds = [imagenet_classes(name, labels) for name in classes]
    for name, members in zip(classes, kinds, strict=True):
        shown = ", ".join(labels[i] for i in members[:3]) + (f" … ({len(members)} kinds)" if len(members) > 3 else "")
        say(f"{name}: {shown}")
    is_kind = np.stack([np.isin(np.arange(len(labels)), members) for members in kinds], axis=1)  # (1000, classes)
    outputs = compile_outputs(network)

    def judge(pictures):
        sums = outputs(pictures) @ is_kind.astype(np.float32)  # (n, classes)
        return np.log(np.maximum(sums, 1e-12)), np.zeros(len(pictures), np.float32)

    return judge


def imagenet_classes(name, labels):
    """The indices of ImageNet's classes that are kinds of `name`: a family's, that of this name, or those that end with it.

    `dogs` are dogs as `dog` is, `coffee mugs` are `coffee_mug`, but a `horse_cart` is no horse. Raises UserError where
    there is none.
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
