"""Calibration: after training, fits the temperature and the out-of-distribution score of a network to its images."""

import math

import keras
import numpy as np

from classifier.base.console import say
from classifier.base.metrics import calibration_error, log_softmax
from classifier.data.images import inference_batch_size
from classifier.networks.by_name import compile_outputs, with_features
from classifier.networks.out_of_distribution import (
    OutOfDistributionScore,
    left_out_area_under_roc,
    signed_logarithms,
    usual_threshold,
)
from classifier.runs.record import OodRecord
from classifier.training.state import TrainingState

MOST_IMAGES = 3000  # of training and of validation each


def calibrate(state: TrainingState) -> tuple[float, OodRecord, OutOfDistributionScore, np.ndarray]:
    """Fit to the predictions of a trained network, state.average: returns (temperature, ood, fitted, confusion).

    `fitted` is the OutOfDistributionScore that `ood` tells of. `confusion`, (classes, classes), is how often validation
    images of each class are predicted as each class.
    """
    from sklearn.metrics import confusion_matrix  # slow to import

    network, sets, image_size = state.average, state.sets, state.settings.image_size
    if state.phase.is_head:
        both, kind = keras.Model(network.input, (signed_logarithms(network.input), network.output)), "last"
    else:
        both, kind = with_features(network, "maps"), "maps"
    outputs = compile_outputs(both)

    def collect(data_set, positions):
        """(features, logits, labels) of the images at these positions, without augmentation."""
        batches = data_set.take(np.sort(positions)).batches(inference_batch_size(image_size))
        parts = [(*outputs(images), labels) for images, labels in batches]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    rng = np.random.default_rng(0)
    features, logits, labels = collect(sets.valid, rng.permutation(len(sets.valid))[:MOST_IMAGES])
    train_features, _, train_labels = collect(sets.train, some_of_each(sets.train.labels, MOST_IMAGES, rng))
    temperature = fit_temperature(logits, labels)
    before, after = (_calibration_error_at(scale, logits, labels) for scale in (1.0, temperature))
    say(f"temperature {temperature:.2f}: calibration error on validation data {before:.1%} without, {after:.1%} with it")
    ood = OutOfDistributionScore(len(sets.classes))
    ood.fit(train_features, train_labels)
    parts = np.array_split(features, math.ceil(len(features) / 8))  # it computes images × classes × features numbers
    distances = np.concatenate([ood.distances(part) for part in parts])  # (n, classes)
    recorded = OodRecord(usual_threshold(distances.min(axis=1)), kind, left_out_area_under_roc(distances, labels))
    return temperature, recorded, ood, confusion_matrix(labels, logits.argmax(axis=1), labels=range(len(sets.classes)))


def some_of_each(labels: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of images with these labels, (n,), drawn at random: equally many of each, `most` in all, or one each."""
    order = rng.permutation(len(labels))
    members = [order[labels[order] == label] for label in np.unique(labels)]
    return np.concatenate([positions[: max(most // len(members), 1)] for positions in members])


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number by which logits, (n, classes), are divided so that their probabilities fit the labels, (n,).

    It changes the confidence, never the predicted class. The temperature with the least cross-entropy (Guo et al., "On
    Calibration of Modern Neural Networks", 2017) overfits when there are few images. So this is the most probable one, with
    a prior: its logarithm is normal around 0 with σ = ½, which is from 0.6 to 1.6 most often. Hundreds of images outweigh
    the prior.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    rows = np.arange(len(labels))

    def loss(logarithm):
        return (logarithm / 0.5) ** 2 / 2 - log_softmax(logits / math.exp(logarithm))[rows, labels].sum()

    return math.exp(minimize_scalar(loss, bounds=(math.log(0.1), math.log(10)), method="bounded").x)


def _calibration_error_at(temperature, logits, labels):
    probabilities = np.exp(log_softmax(logits / temperature))
    return calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
