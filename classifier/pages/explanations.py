"""Explanations: which parts of an image speak for a class, as a heat map.

All networks here compute the logits from feature maps through a few last layers. HiResCAM (Draelos and Carin, "Use HiResCAM
instead of Grad-CAM for faithful explanations of convolutional neural networks", 2020) multiplies each value of the maps by
the gradient of the class's logit there. Where pooling and one fully connected layer follow, as in the resnet and in
pretrained networks, these products and a constant add up to the logit: the map shows what the network adds up. (A ConvNeXt
normalizes the means: there it shows what raises them relative to the others.) The cnn has two fully connected layers; there
the constant depends on which units of the first are active for the image.

Grad-CAM (Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via gradient-based localization", 2017) takes
the mean of each map's gradients instead. After pooling, that is the same. The cnn has other weights at each position, which
the mean mixes up.
"""

import cv2
import keras
import numpy as np
import tensorflow as tf

from classifier.data.images import padded_area
from classifier.networks import PRETRAINED_NETWORKS
from classifier.networks.by_name import compile_outputs
from classifier.networks.pretrained import split_at_maps
from classifier.runs.checkpoints import load_trained_network


class Explainer:
    """Heat maps for the predictions of a run; `method` is "hirescam" or "gradcam"."""

    def __init__(self, run, network=None, method="hirescam"):
        """`network` is that of the run, see load_trained_network(); if None, it is restored, or UserError raised."""
        self.method = method
        maps, self._last_layers = _split(network or load_trained_network(run))
        self._maps = compile_outputs(maps)

    def explain(self, image, class_index=None):
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

    def contributions(self, image, class_index=None):
        """What each position of the feature maps adds to the score of a class: (class_index, [(height, width) float32, …]).

        The score is the logit less the mean of all logits: what is added to all of them alike changes no probability. The
        list has one for each of the feature maps that the last layers take, of several sizes.
        """
        maps = [tf.constant(each) for each in tf.nest.flatten(self._maps(image[None]))]  # (1, height, width, channels)
        with tf.GradientTape() as tape:
            tape.watch(maps)
            (logits,) = self._last_layers(maps, training=False)
            if class_index is None:
                class_index = int(tf.argmax(logits))
            score = logits[class_index] - tf.reduce_mean(logits)
        gradients = tape.gradient(score, maps)
        if self.method == "gradcam":
            gradients = [tf.reduce_mean(each, axis=(1, 2), keepdims=True) for each in gradients]
        products = [values * weights for values, weights in zip(maps, gradients, strict=True)]
        return class_index, [tf.reduce_sum(each, axis=3).numpy()[0] for each in products]


def _split(network):
    """The two parts of a network: images → [feature maps, …], those from which the last layers compute, and these layers."""
    if network.name in PRETRAINED_NETWORKS:
        return split_at_maps(network)
    maps = [[layer.output for layer in network.layers if len(layer.output.shape) == 4][-1]]
    return keras.Model(network.input, maps), keras.Model(maps, network.output)


def overlay(image, heat):
    """A heat map, (height, width) from 0 to 1, over an image, (height, width, 3) uint8 RGB: the same shape as the image.

    The image is grey, so that all colour is heat. The colours are "inferno": their lightness grows with the heat, which
    colour-blind people see, and grey printers show.
    """
    colours = cv2.applyColorMap((255 * heat).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
    return (0.4 * grey + 0.6 * colours).round().astype(np.uint8)


def in_shape(heat, shape, fit):
    """A heat map of a square, (size, size), for the whole image that became this square: (height, width), the `shape`.

    `fit` says how it became one: see images.fit_square(). What was cut off has no heat.
    """
    height, width = shape
    if fit == "crop":
        side = min(shape)
        whole = np.zeros(shape, np.float32)
        top, left = (height - side) // 2, (width - side) // 2
        whole[top : top + side, left : left + side] = cv2.resize(heat, (side, side), interpolation=cv2.INTER_LINEAR)
        return whole
    if fit == "pad":
        top, left, inner_height, inner_width = padded_area(shape, len(heat))
        heat = heat[top : top + inner_height, left : left + inner_width]
    return cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
