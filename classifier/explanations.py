"""Explanations: which parts of an image speak for a class, as a heat map.

All networks here compute the logits from feature maps through a few last layers. HiResCAM (Draelos and Carin, "Use HiResCAM
instead of Grad-CAM for faithful explanations of convolutional neural networks", 2020) multiplies each value of the maps by
the gradient of the class's logit there. Where pooling and one fully connected layer follow, as in the resnet and in pretrained
networks, these products and a constant add up to the logit: the map shows exactly what the network adds up. The cnn has two
fully connected layers, so the same holds for those units of the first that are active for this image.

Grad-CAM (Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via gradient-based localization", 2017) takes the
mean of the gradients of each map instead. After pooling, that is the same. The cnn has other weights at every position, which
the mean would mix up.
"""

import cv2
import keras
import numpy as np
import tensorflow as tf

from classifier.checkpoints import load_selected
from classifier.networks import compile_outputs, create_network
from classifier.pretrained import split_at_maps
from classifier.settings import PRETRAINED_NETWORKS


class Explainer:
    """Heat maps for the predictions of a run; `method` is "hirescam" or "gradcam"."""

    def __init__(self, run, metadata, network=None, method="hirescam"):
        """`network` is that of the run, as create_network() makes it, with the selected weights; if None, it is restored.

        Raises UserError where it cannot be restored.
        """
        size, num_classes = metadata["image_size"], len(metadata["classes"])
        if network is None:
            scales = metadata["feature_scales"]
            network = create_network(metadata["network"], size, num_classes, feature_scales=scales)
            load_selected(run, network)
        self.method = method
        feature_maps, self._last_layers = _split(network)
        self._feature_maps = compile_outputs(feature_maps)

    def explain(self, image, class_index=None):
        """What speaks for a class in an image, (size, size, 3) uint8 RGB as the network takes it: (class_index, heat).

        `class_index` is the predicted class if None is given. `heat` is (size, size) float32: 1 where most speaks for the
        class, 0 where nothing does.
        """
        class_index, contributions = self.contributions(image, class_index)
        size = image.shape[:2]
        # A position counts for the area that it covers, so the maps of several sizes become densities before they are added.
        heat = sum(cv2.resize(part * part.size, size[::-1], interpolation=cv2.INTER_CUBIC) for part in contributions)
        heat = np.maximum(heat, 0)
        return class_index, heat / max(heat.max(), 1e-12)

    def contributions(self, image, class_index=None):
        """What each position of the maps adds to the score of a class: (class_index, [(height, width) float32, …]).

        The score is the logit less the mean of all logits, for adding the same to all of them changes no probability. There
        is a map for each size of feature maps that the last layers take.
        """
        maps = [tf.constant(each) for each in tf.nest.flatten(self._feature_maps(image[None]))]  # (1, height, width, maps)
        with tf.GradientTape() as tape:
            tape.watch(maps)
            (logits,) = self._last_layers(maps, training=False)
            if class_index is None:
                class_index = int(tf.argmax(logits))
            score = logits[class_index] - tf.reduce_mean(logits)
        gradients = tape.gradient(score, maps)
        if self.method == "gradcam":
            gradients = [tf.reduce_mean(each, axis=(1, 2), keepdims=True) for each in gradients]
        return class_index, [
            tf.reduce_sum(values * weights, axis=3).numpy()[0] for values, weights in zip(maps, gradients, strict=True)
        ]


def _split(network):
    """The two parts of a network: images → [feature maps], the last of each size that counts, and these → logits."""
    if network.name in PRETRAINED_NETWORKS:
        return split_at_maps(network)
    maps = [[layer.output for layer in network.layers if len(layer.output.shape) == 4][-1]]
    return keras.Model(network.input, maps), keras.Model(maps, network.output)


def overlay(image, heat):
    """A heat map, (height, width) from 0 to 1, over an image, (height, width, 3) uint8 RGB: the same shape as the image.

    The image is grey, so that all colour is heat. The colours are "inferno": their lightness grows with the heat, which
    colour-blind people and grey printers show, too.
    """
    colours = cv2.applyColorMap((255 * heat).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
    return (0.4 * grey + 0.6 * colours).round().astype(np.uint8)
