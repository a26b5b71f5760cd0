"""Explanations: which parts of an image speak for a class, as a heat map.

All networks here compute the logits from feature maps through a few last layers. HiResCAM (Draelos and Carin, "Use HiResCAM
instead of Grad-CAM for faithful explanations of convolutional neural networks", 2020) multiplies each value of the maps by
the gradient of the class's logit there. Where pooling and one fully connected layer follow, as in the resnet and in
pretrained networks, these products and a constant add up to the logit. (A ConvNeXt normalizes the means: there they show
what raises them relative to the others.) The cnn has two fully connected layers; there the constant depends on which units
of the first are active for the image. Grad-CAM takes the mean gradient of each map, which is wrong for the cnn's layers:
they have other weights at each position.
"""

import cv2
import keras
import numpy as np
import tensorflow as tf

from classifier.data.images import load_image, load_in_shape, padded_area
from classifier.networks import PRETRAINED_NETWORKS
from classifier.networks.by_name import compile_outputs
from classifier.networks.pretrained import split_at_maps
from classifier.runs.checkpoints import load_trained_network
from classifier.runs.folder import Run


class Explainer:
    """Heat maps for the predictions of a run."""

    def __init__(self, run: Run, network: keras.Model | None = None):
        """`network` is that of the run, see load_trained_network(); if None, it is restored, or UserError raised."""
        self._run, network = run, network or load_trained_network(run)
        if network.name in PRETRAINED_NETWORKS:
            maps, self._last_layers = split_at_maps(network)
        else:
            last = [[layer.output for layer in network.layers if len(layer.output.shape) == 4][-1]]
            maps, self._last_layers = keras.Model(network.input, last), keras.Model(last, network.output)
        self._maps = compile_outputs(maps)

    def explain(self, image: np.ndarray, class_index: int | None = None) -> tuple[int, np.ndarray]:
        """What speaks for a class in an image, (size, size, 3) uint8 RGB as the network takes it: (class_index, heat).

        `class_index` is the predicted class if None is given. `heat` is (size, size) float32: 1 where most speaks for the
        class, 0 where nothing does.
        """
        class_index, contributions = self.contributions(image, class_index)
        height, width = image.shape[:2]
        # Each position stands for the area that it covers: of a coarse map, its contribution is spread over more pixels.
        heat = sum(cv2.resize(part * part.size, (width, height), interpolation=cv2.INTER_CUBIC) for part in contributions)
        heat = np.maximum(heat, 0)
        return class_index, heat / max(heat.max(), 1e-12)

    def contributions(self, image: np.ndarray, class_index: int | None = None) -> tuple[int, list[np.ndarray]]:
        """What each position of the feature maps adds to the score of a class: (class_index, [(height, width) float32, …]).

        The score is the logit less the mean of all logits: what is added to all of them alike changes no probability. The
        list has one for each of the feature maps that the last layers take, of several sizes.
        """
        maps = [tf.constant(each) for each in tf.nest.flatten(self._maps(image[None]))]  # (1, height, width, channels)
        with tf.GradientTape() as tape:
            tape.watch(maps)
            (logits,) = self._last_layers(maps, training=False)
            chosen = int(tf.argmax(logits)) if class_index is None else class_index
            score = logits[chosen] - tf.reduce_mean(logits)
        gradients = tape.gradient(score, maps)
        return chosen, [tf.reduce_sum(m * g, axis=3).numpy()[0] for m, g in zip(maps, gradients, strict=True)]

    def explain_file(self, path, side: int, class_index: int | None = None) -> tuple[np.ndarray, np.ndarray, str]:
        """What speaks for a class in an image file: (the whole photo, the same under its heat map, what it shows).

        These are (height, width, 3) uint8 RGB, the longer side of `side` pixels, and words. Raises BadImageError.
        """
        record = self._run.record
        class_index, heat = self.explain(load_image(path, record.image_size, record.fit), class_index)
        photo = load_in_shape(path, side)
        words = f"{'what' if heat.any() else 'nothing'} speaks for {record.classes[class_index]}"
        return photo, overlay(photo, in_shape(heat, photo.shape[:2], record.fit)), words


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A heat map, (height, width) from 0 to 1, over an image, (height, width, 3) uint8 RGB: the same shape as the image.

    The image is grey, so that all colour is heat. The colours are "inferno": their lightness grows with the heat, which
    colour-blind people see, and grey printers show.
    """
    colours = cv2.applyColorMap((255 * heat).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
    return (0.4 * grey + 0.6 * colours).round().astype(np.uint8)


def in_shape(heat: np.ndarray, shape: tuple[int, int], fit: str) -> np.ndarray:
    """A heat map of a square, (size, size), for the whole image that became this square: (height, width), the `shape`.

    `fit` says how it became one: see images.fit_square(). What was cut off has no heat.
    """
    height, width = shape
    top = left = 0
    if fit == "crop":
        height = width = min(shape)
        top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    elif fit == "pad":
        inner_top, inner_left, inner_height, inner_width = padded_area(shape, len(heat))
        heat = heat[inner_top : inner_top + inner_height, inner_left : inner_left + inner_width]
    whole = np.zeros(shape, np.float32)
    whole[top : top + height, left : left + width] = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    return whole
