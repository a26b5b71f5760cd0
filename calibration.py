"""Calibration: fits how sure the network is to what was seen on validation."""

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
