"""Zero-shot: what an ImageNet network says of the user's classes without any training, by adding up its own."""

import contextlib
import re
import sys

import numpy as np

from backbones import BACKBONES, no_download, preprocess
from console import USAGE, UserError

FAMILIES = {  # of ImageNet's 1,000 classes, those that are kinds of: first and last index
    "dog": [(151, 268)], "cat": [(281, 285)], "wolf": [(269, 272)], "fox": [(277, 280)], "bear": [(294, 297)],
    "bird": [(7, 24), (80, 100), (127, 146)], "fish": [(0, 6), (389, 397)], "snake": [(52, 68)], "spider": [(72, 77)],
    "frog": [(30, 32)], "turtle": [(33, 37)], "lizard": [(38, 48)], "butterfly": [(321, 326)], "beetle": [(300, 307)],
    "rabbit": [(330, 332)], "monkey": [(370, 382)], "ape": [(365, 369)],
}  # fmt: skip


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

    members = np.stack([np.isin(np.arange(len(labels)), imagenet_classes(name, labels)) for name in classes], axis=1)
    outputs = compile_outputs(network)

    def judge(pictures):
        sums = outputs(pictures) @ members.astype(np.float32)  # (n, classes)
        return np.log(np.maximum(sums, 1e-12)), np.zeros(len(pictures), np.float32)

    return judge


def imagenet_classes(name, labels):
    """The indices of ImageNet's classes that are kinds of `name`: a family's, or those with it in their name.

    `dogs` are dogs as `dog` is, and `coffee mugs` are `coffee_mug`. Raises UserError where there is none.
    """
    words = re.sub(r"[\s_-]+", "_", name.strip().casefold())
    for word in (words, words.removesuffix("s"), words.removesuffix("es")):
        if word in FAMILIES:
            return [i for first, last in FAMILIES[word] for i in range(first, last + 1)]
        found = [i for i, label in enumerate(labels) if f"_{word}_" in f"_{label.casefold()}_"]
        if found:
            return found
    raise UserError(f"--zero-shot: none of ImageNet's classes is a kind of {name!r}", USAGE)
