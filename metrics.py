"""How good answers are, in numbers: how far probabilities are off, and how well a score tells two kinds apart."""

import numpy as np


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


def area_under_roc(ordinary, odd):
    """How well a score tells odd from ordinary: the part of all pairs in which the odd one has the higher score.

    Both are (n,) floats, not empty; of equal scores half counts. ½ is chance, 1 perfect (Hanley and McNeil, "The Meaning and
    Use of the Area under a Receiver Operating Characteristic (ROC) Curve", 1982).
    """
    ordinary = np.sort(ordinary)
    lower, not_higher = (np.searchsorted(ordinary, odd, side) for side in ("left", "right"))
    return float((lower + not_higher).mean() / 2 / len(ordinary))
