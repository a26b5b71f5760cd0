"""A submission to Kaggle's competition of dogs and cats: id,label, the probability of dog for each numbered image."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from classifier.base.console import USAGE, UserError, say
from classifier.base.files import check_output, csv_text, write_text
from classifier.predicting.classifier import Answer
from classifier.runs.record import RunRecord


class Submission:
    """A submission for images with these paths, to be written to a file.

    Raises UserError, before any prediction, for a file in no folder, a model without dogs, or images without numbers.
    """

    def __init__(self, file_path: Path, paths: Sequence[str], record: RunRecord):
        check_output("--submission", file_path, ".csv", Path(paths[0]))
        self._path, self._ids = file_path, _image_numbers(paths)
        self._dog = _dog_class(record.classes)
        # Kaggle scores log loss, where one confident mistake ruins the score. After n correct predictions, of the
        # validation images, the next is incorrect with a probability of 1 / (n + 2) (Laplace's rule of succession).
        self._lowest = 1 / (2 + sum(counts["validation"] for counts in record.images.values()))

    def write(self, answers: Iterable[Answer]) -> None:
        """Write the file, in the order of the numbers; images that could not be read have no row."""
        rows = sorted((i, a.probabilities[self._dog]) for i, a in zip(self._ids, answers, strict=True) if a.probabilities)
        lowest, highest = self._lowest, 1 - self._lowest
        write_text(self._path, csv_text(["id", "label"], [[i, f"{min(max(p, lowest), highest):.6f}"] for i, p in rows]))
        say(f"{len(rows)} rows in {self._path}, labels from {lowest:.6f} to {highest:.6f}: log loss punishes certainty")


def _dog_class(classes):
    """The class that Kaggle asks for."""
    for name in classes:
        if name.casefold() in ("dog", "dogs"):
            return name
    raise UserError(f"--submission needs a model with a class dog: this one has {', '.join(classes)}", USAGE)


def _image_numbers(paths):
    """The numbers in the names 1.jpg, 2.jpg, …: one for each path, all different."""
    path_of = {}
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        if not (stem.isascii() and stem.isdecimal()):
            raise UserError(f"--submission is for numbered images (1.jpg, 2.jpg, …): {path} is not one", USAGE)
        if (number := int(stem)) in path_of:
            raise UserError(f"--submission: {path_of[number]} and {path} have the same number", USAGE)
        path_of[number] = path
    return list(path_of)
