"""Metrics that scikit-learn does not have: how far a confidence, or an accuracy, can be trusted."""

import numpy as np

BINS = 15  # of equal width, for confidences from 0 to 1


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax over the last axis, in float64, without overflow; exp() of it are the probabilities."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def accuracy_interval(correct: float, count: float) -> tuple[float, float]:
    """The 95 % confidence interval (low, high) of an accuracy, if `correct` of `count` predictions are.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    z = 1.96  # standard errors
    middle = (correct + z**2 / 2) / (count + z**2)
    half = z / (count + z**2) * np.sqrt(correct * (count - correct) / count + z**2 / 4)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))  # rounding may pass them


def reliability(confidences: np.ndarray, correct: np.ndarray) -> list[tuple[float, float, float, float, int]]:
    """A row for each of BINS that has images: (mean confidence, accuracy, low, high, images).

    `confidences` are (n,), from 0 to 1, `correct` (n,) bool. `low` and `high` are the accuracy_interval() of the bin.
    """
    confidences, correct = np.asarray(confidences, float), np.asarray(correct, float)
    sums = (_sums_in_bins(confidences, values) for values in (np.ones_like(confidences), confidences, correct))
    return [
        (of_confidences / count, of_correct / count, *accuracy_interval(of_correct, count), int(count))
        for count, of_confidences, of_correct in zip(*sums, strict=True)
        if count
    ]


def calibration_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: the mean |accuracy - mean confidence| of the bins of reliability(), weighted by images.

    Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    confidence, accuracy, _, _, counts = np.array(reliability(confidences, correct)).T
    return float(np.average(np.abs(accuracy - confidence), weights=counts))


def chance_error(confidences: np.ndarray) -> float:
    """The calibration_error() to expect by chance from this many images, if their confidences, (n,), were perfect.

    The number of correct predictions in a bin then varies around the sum of its confidences, nearly normally, and the mean
    of |N(0, σ²)| is σ √(2/π).
    """
    confidences = np.asarray(confidences, float)
    variances = _sums_in_bins(confidences, confidences * (1 - confidences))
    return float(np.sqrt(2 / np.pi * np.maximum(variances, 0)).sum() / len(confidences))


def _sums_in_bins(confidences, values):
    return np.bincount(np.minimum((confidences * BINS).astype(int), BINS - 1), values, BINS)
