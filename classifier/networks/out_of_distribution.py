"""Out-of-distribution (OOD) scores: how unlike all training images an image is, by the distance of its features."""

import keras
import numpy as np
import tensorflow as tf


class LogMeans(keras.layers.Layer):
    """Logarithms of the means of feature maps, and of their centres, half as wide: (n, side, side, maps) → (n, 2 × maps).

    The centre shows what a photograph is of. Maps of smooth or grey images have means near 0, which only their logarithms
    tell from those of ordinary images.
    """

    def call(self, maps: tf.Tensor) -> tf.Tensor:
        """See above."""
        side = tf.shape(maps)[1]
        centre = maps[:, side // 4 : side - side // 4, side // 4 : side - side // 4]
        means = [tf.reduce_mean(tf.abs(part), axis=(1, 2)) for part in (maps, centre)]
        return tf.math.log(tf.concat(means, axis=1) + 1e-3)


def signed_logarithms(features: keras.KerasTensor) -> keras.KerasTensor:
    """Logarithms of features of either sign, nearly proportional to them within ±0.1: (n, features) → (n, features)."""
    return keras.ops.sign(features) * keras.ops.log(1 + 10 * keras.ops.abs(features))


class OutOfDistributionScore(keras.layers.Layer):
    """The distance of features from the nearest class, in standard deviations: (n, features) → (n,).

    It is the Mahalanobis distance to the nearest mean of a class, with one covariance for all classes (Lee et al., "A
    Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", 2018), divided by the
    square root of the number of features.
    """

    def __init__(self, num_classes: int, **options):
        super().__init__(trainable=False, **options)
        self.num_classes = num_classes

    def build(self, input_shape: tuple[int | None, int]) -> None:
        """Make the statistics, of features of this shape, all 0: see fit()."""
        size = input_shape[-1]
        self.whitening = self.add_weight(name="whitening", shape=(size, size), initializer="zeros")
        self.centres = self.add_weight(name="centres", shape=(self.num_classes, size), initializer="zeros")

    def call(self, features: tf.Tensor) -> tf.Tensor:
        """The distance from the nearest class."""
        return tf.reduce_min(self.distances(features), axis=1)

    def distances(self, features: np.ndarray) -> tf.Tensor:
        """The distances of features, (n, features), from all classes: (n, classes)."""
        differences = tf.matmul(features, self.whitening)[:, None] - self.centres  # (n, classes, features)
        return tf.sqrt(tf.reduce_mean(tf.square(differences), axis=2))

    def fit(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Fit to the features of training images of all classes, (n, features), and their labels, (n,)."""
        means = np.stack([features[labels == label].mean(axis=0) for label in range(self.num_classes)])
        centred = features - means[labels]
        deviations = centred.std(axis=0)
        scale = np.maximum(deviations, 0.01 * deviations.mean() + 1e-4)  # or a constant feature, or rounding, would dominate
        centred /= scale
        variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
        whitening = directions / np.sqrt(variances + 0.01) / scale[:, None]  # likewise a constant direction
        self.build(features.shape)
        self.set_weights([whitening, means @ whitening])


def left_out_area_under_roc(distances: np.ndarray, labels: np.ndarray) -> float:
    """How well images of a class would be recognized if it were none of the classes: ½ is chance, 1 perfect.

    `distances` are those of images from all classes, (n, classes), `labels` their own classes, (n,). Each class is left out
    in turn, with its distances; the result is the mean of the areas under the ROC curve. It is ½ for images of one class.
    """
    from sklearn.metrics import roc_auc_score

    present = np.unique(labels)
    if len(present) == 1:
        return 0.5
    scores_without = {label: np.delete(distances, label, axis=1).min(axis=1) for label in present}
    return float(np.mean([roc_auc_score(labels == label, scores) for label, scores in scores_without.items()]))


def usual_threshold(scores: np.ndarray) -> float:
    """A threshold that one in fifty images like these, whose OOD scores are given, (n,), exceeds.

    Fewer than fifty do not tell: then it is three σ above the median. σ is that of the logarithm, estimated from the median
    of the deviations, so that outliers have no influence.
    """
    exceeding = (len(scores) + 1) // 50  # of n + 1 images, the next one included: conformal prediction
    if exceeding:
        return float(np.sort(scores)[-exceeding])
    logarithms = np.log(np.maximum(scores, 1e-6))
    median = np.median(logarithms)
    sigma = 1.4826 * np.median(np.abs(logarithms - median))  # of a normal distribution
    return float(np.exp(median + max(3 * sigma, np.log(1.5))))
