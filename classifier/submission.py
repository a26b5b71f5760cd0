"""A submission to Kaggle's competition of dogs and cats: id,label, the probability of dog for each numbered image."""

import math
import os

from classifier.console import NO_DATA, USAGE, UserError, say
from classifier.files import csv_text, write_text


def write_at_the_end(file_path, predictions, paths, metadata):
    """Yield the predictions for `paths`; after the last one, write the submission, in the order of the numbers.

    Images that could not be read have no row. Raises UserError at once for a file in a folder that is missing, a model
    without dogs, or images without numbers.
    """
    numbers, dog, lowest = image_numbers(paths), dog_column(metadata["classes"]), lowest_probability(metadata)
    if not file_path.parent.is_dir():
        raise UserError(f"there is no folder {file_path.parent} for --submission", USAGE)

    def pass_on():
        rows = []
        for number, prediction in zip(numbers, predictions, strict=True):
            yield prediction
            if not prediction.reason:
                rows.append((number, min(max(math.exp(prediction.scores[dog]), lowest), 1 - lowest)))
        write_text(file_path, csv_text(["id", "label"], [(number, f"{label:.6f}") for number, label in sorted(rows)]))
        say(f"{len(rows)} rows in {file_path}, labels from {lowest:.6f} to {1 - lowest:.6f}: log loss punishes certainty")

    return pass_on()


def dog_column(classes):
    """The index of the class that Kaggle asks for."""
    for column, name in enumerate(classes):
        if name.casefold() in ("dog", "dogs"):
            return column
    raise UserError(f"--submission needs a model with a class dog: this one has {', '.join(classes)}", USAGE)


def image_numbers(paths):
    """The numbers in the names 1.jpg, 2.jpg, …: one for each path, all different."""
    numbers = []
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        if not (stem.isascii() and stem.isdecimal()):
            raise UserError(f"--submission is for numbered images (1.jpg, 2.jpg, …): {path} is not one", USAGE)
        numbers.append(int(stem))
    if len(set(numbers)) < len(numbers):
        raise UserError("--submission: two images have the same number", USAGE)
    return numbers


def lowest_probability(metadata):
    """The lowest probability in a submission: 1 / (n + 2), where n is the number of validation images.

    Kaggle scores log loss, in which a single incorrect prediction with certainty would dominate. After n correct
    predictions, the next is incorrect with this probability (Laplace's rule of succession).
    """
    try:
        return 1 / (2 + sum(max(counts["validation"], 1) for counts in metadata["pictures"].values()))
    except (KeyError, TypeError, AttributeError):
        raise UserError("--submission: the run's metadata lacks the number of validation images", NO_DATA) from None
