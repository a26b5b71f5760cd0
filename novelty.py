"""Which pictures are unlike all that a network learnt from: their features lie far from those of every class."""

import keras
import numpy as np
import tensorflow as tf


class Novelty(keras.layers.Layer):
    """How far features are from the nearest class, in standard deviations: (n, features) → (n,).

    It is the Mahalanobis distance to the nearest of the classes' means, with one covariance for all of them (Lee et al.,
    "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", 2018), divided by the
    square root of the number of features.
    """

    def __init__(self, num_classes, **options):
        super().__init__(trainable=False, **options)
        self.num_classes = num_classes

    def build(self, input_shape):
        size = input_shape[-1]
        self.whitening = self.add_weight(name="whitening", shape=(size, size), initializer="zeros")
        self.centres = self.add_weight(name="centres", shape=(self.num_classes, size), initializer="zeros")

    def call(self, features):
        gaps = tf.matmul(features, self.whitening)[:, None] - self.centres  # (n, classes, features)
        return tf.sqrt(tf.reduce_min(tf.reduce_mean(tf.square(gaps), axis=2), axis=1))

    def fit(self, features, labels):
        """Learn from the features of training pictures of all classes, (n, features), and their labels, (n,)."""
        means = np.stack([features[labels == label].mean(axis=0) for label in range(self.num_classes)])
        inside = features - means[labels]
        deviations = inside.std(axis=0)
        scale = np.maximum(deviations, 0.01 * deviations.mean() + 1e-6)  # what never varied would weigh without end
        inside /= scale
        variances, directions = np.linalg.eigh(inside.T @ inside / len(inside))
        whitening = directions / np.sqrt(variances + 0.01) / scale[:, None]  # likewise for directions
        self.build(features.shape)
        self.set_weights([whitening, means @ whitening])


def usual_limit(novelty):
    """A limit that few pictures like these, whose novelty is given, (n,), exceed: three σ above its median.

    σ is that of the logarithm, from the median of the deviations, so that no odd picture moves it.
    """
    logarithms = np.log(np.maximum(novelty, 1e-6))
    median = np.median(logarithms)
    sigma = 1.4826 * np.median(np.abs(logarithms - median))  # of a normal distribution
    return float(np.exp(median + max(3 * sigma, np.log(1.5))))
