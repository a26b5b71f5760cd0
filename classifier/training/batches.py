"""Batches of a training: which images a step sees, how large they are, and what each counts."""

import functools
from collections.abc import Iterator

import numpy as np

from classifier.cluster.devices import share_of_worker
from classifier.data.augmentation import augment
from classifier.runs.settings import Settings


def size_in_epoch(settings: Settings, epoch: int) -> int:
    """Side of an epoch's training images: it grows from --start-size to --image-size while the learning rate is high."""
    end = settings.image_size
    start = min(settings.start_size or end, end)
    size = np.interp(epoch, [0, 0.75 * settings.epochs], [start, end])
    return end if size == end else int(size) // 8 * 8


def train_batches(data, settings: Settings, epoch: int, batch_size: int, augmented: bool, first: int = 0) -> Iterator:
    """Yield the batches of an epoch from batch `first` on, (images, labels), of several workers this one's share of each.

    `data` is a DataSet. The images are (n, size, size, 3) uint8, or features, (n, features) float32, which cannot be
    `augmented`; the labels (n,) int32.
    """
    view = functools.partial(augment, size=size_in_epoch(settings, epoch)) if augmented and settings.augment else None
    return data.batches(batch_size, settings.seed, epoch, first, view, share_of_worker())


def class_weights(how: str, labels: np.ndarray, num_classes: int) -> np.ndarray | None:
    """What an image of each class counts, (num_classes,) float32, 1 on average over images; None if all count the same.

    `how` is "balanced": all classes count the same; "none"; or "auto": if the largest class has more than three times as
    many images as the smallest, the weights are the square roots of the balanced ones. In trials, accuracy did not fall,
    small classes gained recall, and probabilities stayed calibrated, which balanced weights distort.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if how == "none" or (how == "auto" and counts.max() <= 3 * counts.min()):
        return None
    weights = counts ** (-1.0 if how == "balanced" else -0.5)
    return (weights * len(labels) / (weights * counts).sum()).astype(np.float32)
