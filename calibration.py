"""How far probabilities can be believed: fits them to what was seen on validation, and measures how far off they are."""

import numpy as np

from inference import log_probabilities


def fit_temperature(logits, labels):
    """What to divide logits, (n, classes), by, so that their probabilities fit the labels, (n,).

    It changes how sure the network is, never which class it prefers. The temperature with the least cross-entropy (Guo et
    al., "On Calibration of Modern Neural Networks", 2017) follows every chance of few pictures. So the most probable one is
    taken, if its logarithm is thought beforehand to be normal around 0, with σ = ½: from 0.6 to 1.6, most likely. Hundreds
    of pictures outweigh that.
    """
    rows = np.arange(len(labels))
    temperatures = np.geomspace(0.1, 10, 461)  # each 1 % above the one before
    losses = [-log_probabilities(logits / temperature)[rows, labels].sum() for temperature in temperatures]
    return float(temperatures[np.argmin(losses + (np.log(temperatures) / 0.5) ** 2 / 2)])


def calibration_error(confidences, right, bins=15):
    """Expected calibration error: by how much confidence, (n,) from 0 to 1, and accuracy, (n,) bool, differ.

    Mean over bins of equal width of |accuracy - mean confidence|, weighted by how many pictures are in each (Guo et al.).
    """
    confidences, right = np.asarray(confidences, float), np.asarray(right, float)
    return float(np.abs(_sums_in_bins(confidences, right - confidences, bins)).sum() / len(right))


def chance_error(confidences, bins=15):
    """The calibration_error() to be expected from chance alone, if the confidences, (n,) from 0 to 1, were exactly right.

    What is right in a bin then scatters around the sum of its confidences, nearly normally: the mean of |N(0, σ²)| is
    σ √(2/π).
    """
    confidences = np.asarray(confidences, float)
    variances = _sums_in_bins(confidences, confidences * (1 - confidences), bins)
    return float(np.sqrt(2 / np.pi * np.maximum(variances, 0)).sum() / len(confidences))


def _sums_in_bins(confidences, values, bins):
    places = np.minimum((confidences * bins).astype(int), bins - 1)
    return np.bincount(places, values, bins)
