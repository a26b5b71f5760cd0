"""A submission to Kaggle's competition of dogs and cats: id,label, the probability of dog for each numbered image."""

import os

from classifier.base.console import NO_DATA, USAGE, UserError, say
from classifier.base.files import csv_text, write_text


class Submission:
    """A submission for images with these paths, to be written to a file.

    Raises UserError, before any prediction, for a file in no folder, a model without dogs, or images without numbers.
    """

    def __init__(self, file_path, paths, record):
        self._path, self._ids = file_path, image_numbers(paths)
        self._dog = dog_class(record.classes)
        self._lowest = lowest_probability(record)
        if not file_path.parent.is_dir():
            raise UserError(f"there is no folder {file_path.parent} for --submission", USAGE)

    def write(self, answers):
        """Write the file, in the order of the numbers; images that could not be read have no row."""
        readable = [(number, answer) for number, answer in zip(self._ids, answers, strict=True) if not answer.reason]
        rows = sorted((number, answer.probabilities[self._dog]) for number, answer in readable)
        clipped = ([number, f"{min(max(dog, self._lowest), 1 - self._lowest):.6f}"] for number, dog in rows)
        write_text(self._path, csv_text(["id", "label"], clipped))
        say(
            f"{len(rows)} rows in {self._path}, labels from {self._lowest:.6f} to {1 - self._lowest:.6f}: "
            "log loss punishes certainty"
        )


def dog_class(classes):
    """The class that Kaggle asks for."""
    for name in classes:
        if name.casefold() in ("dog", "dogs"):
            return name
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


def lowest_probability(record):
    """The lowest probability in a submission: 1 / (n + 2), where n is the number of validation images.

    Kaggle scores log loss, in which a single incorrect prediction with certainty would dominate. After n correct
    predictions, the next is incorrect with this probability (Laplace's rule of succession).
    """
    try:
        return 1 / (2 + sum(max(counts["validation"], 1) for counts in record.images.values()))
    except (KeyError, TypeError, AttributeError):
        raise UserError("--submission: the run's record lacks the number of validation images", NO_DATA) from None
