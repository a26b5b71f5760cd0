"""Metrics: how good predictions are, from logits or probabilities and labels."""

import numpy as np


def log_softmax(logits):
    """Logarithm of the softmax over the last axis, in float64, without overflow; exp() of it are the probabilities."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def calibration_error(confidences, correct, bins=15):
    """Expected calibration error: the difference between confidence, (n,) from 0 to 1, and accuracy, (n,) bool.

    Mean over bins of equal width of |accuracy - mean confidence|, weighted by the number of images in each (Guo et al.,
    "On Calibration of Modern Neural Networks", 2017).
    """
    confidences, correct = np.asarray(confidences, float), np.asarray(correct, float)
    return float(np.abs(_sums_in_bins(confidences, correct - confidences, bins)).sum() / len(correct))


def chance_error(confidences, bins=15):
    """The calibration_error() that chance alone would show with perfect confidences, (n,) from 0 to 1.

    The number of correct predictions in a bin then varies around the sum of its confidences, nearly normally, and the mean
    of |N(0, σ²)| is σ √(2/π).
    """
    confidences = np.asarray(confidences, float)
    variances = _sums_in_bins(confidences, confidences * (1 - confidences), bins)
    return float(np.sqrt(2 / np.pi * np.maximum(variances, 0)).sum() / len(confidences))


def accuracy_interval(correct, count):
    """The 95 % confidence interval (low, high) of an accuracy, if `correct` of `count` predictions are.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    z = 1.96  # standard errors
    middle = (correct + z**2 / 2) / (count + z**2)
    half = z / (count + z**2) * np.sqrt(correct * (count - correct) / count + z**2 / 4)
    return float(middle - half), float(middle + half)


def _sums_in_bins(confidences, values, bins):
    places = np.minimum((confidences * bins).astype(int), bins - 1)
    return np.bincount(places, values, bins)


def confusion_matrix(predicted, labels, num_classes):
    """How many images of each class, (row), are predicted as each class, (column): (classes, classes) integers."""
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    return confusion


def area_under_roc(negatives, positives):
    """Area under the ROC curve: the fraction of all pairs in which the positive has the higher score.

    Both are the scores of at least one image, (n,) floats; pairs of equal scores count half. ½ is chance, 1 perfect (Hanley
    and McNeil, "The Meaning and Use of the Area under a Receiver Operating Characteristic (ROC) Curve", 1982).
    """
    negatives = np.sort(negatives)
    lower, not_higher = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
    return float((lower + not_higher).mean() / 2 / len(negatives))


def reliability(confidences, correct, bins=15):
    """A row for each bin of calibration_error() that has images: (mean confidence, accuracy, low, high, images).

    `low` and `high` are the accuracy_interval() of the bin.
    """
    confidences, correct = np.asarray(confidences, float), np.asarray(correct, float)
    sums = (_sums_in_bins(confidences, values, bins) for values in (np.ones_like(confidences), confidences, correct))
    return [
        (of_confidences / count, of_correct / count, *accuracy_interval(of_correct, count), int(count))
        for count, of_confidences, of_correct in zip(*sums, strict=True)
        if count
    ]


def threshold_curves(scores, positive):
    """(false positive rates, recalls, precisions), (m,) each, at every threshold, from the highest score down.

    `scores` are (n,) floats, `positive` (n,) bool, at least one True and one False. Equal scores are one threshold.
    """
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    is_last = np.append(scores[1:] != scores[:-1], True)  # of equal ones
    right, wrong = np.cumsum(positive)[is_last], np.cumsum(~positive)[is_last]
    return wrong / wrong[-1], right / right[-1], right / (right + wrong)
