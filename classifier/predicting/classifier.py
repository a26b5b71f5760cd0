"""The classifier: a run as a function from images to answers, through LiteRT, which starts faster, or TensorFlow."""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from classifier.base.console import NO_DATA, UserError, say
from classifier.base.metrics import log_softmax
from classifier.data.decoding import rgb_of
from classifier.data.images import decode_batches
from classifier.predicting.litert import litert_problem, load_litert
from classifier.runs.folder import Run, find_run
from classifier.runs.record import RECORD, RunRecord

UNKNOWN = "unknown"
Image = str | os.PathLike | bytes | np.ndarray  # the path of a file, its content, or (height, width, 3) uint8 RGB, upright
Predictor = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # see load_predictor()


class Answer(NamedTuple):
    """What a Classifier says of one image; where a file cannot be used, nothing but the reason."""

    path: str | os.PathLike | None  # None where none was given
    predicted_class: str | None = None  # name_for_unknown() for an image that is unlike those of training, or not sure
    probability: float = 0.0  # of the most likely class
    probabilities: dict[str, float] | None = None  # of all classes, the most likely first
    ood_score: float = 0.0  # above 1, the image is unlike all training images (out of distribution)
    reason: str | None = None  # why the file cannot be used

    def as_object(self) -> dict:
        """As a dictionary for JSON."""
        if self.reason:
            return {"path": self.path, "error": self.reason}
        return {
            "path": self.path,
            "class": self.predicted_class,
            "probability": self.probability,
            "probabilities": self.probabilities,
            "ood_score": round(self.ood_score, 4),
        }


class Classifier:
    """A trained run, ready to predict; `classes` are its classes, `record` is the content of its model.json."""

    def __init__(self, run: str | os.PathLike, runtime: str = "auto"):
        """`run` is a run folder, or a folder of them: their newest finished one. `runtime`: see load_predictor().

        Raises UserError where there is no run, or it is damaged.
        """
        self.run = find_run(Path(run))
        self.record = self.run.record
        self.classes = self.record.classes
        self._predictor = load_predictor(self.run, runtime)

    def predict(self, images: Iterable, tta: bool = False, min_confidence: float = 0.0) -> Iterator[Answer]:
        """Yield an Answer for each of a list of images, in order.

        An image is the path of a file; its content, as bytes or as a file opened with "rb"; an image of Pillow; or an array,
        (height, width, 3) uint8 RGB, upright. Files that cannot be used are also reported on standard error. With `tta`,
        test-time augmentation, probabilities are the mean of those for the image and for its mirror image. Several threads
        may call this at once. Raises ValueError for what is no image.
        """
        is_array = isinstance(images, np.ndarray) and images.ndim in (2, 3)
        is_file = isinstance(images, str | bytes | bytearray | memoryview) or hasattr(images, "read")
        if is_array or is_file or not isinstance(images, Iterable):
            raise ValueError(f"a list of images is needed, not one {type(images).__name__} alone: predict([image])")
        unknown = name_for_unknown(self.classes)
        for image, scores, reason, ood_score in predict(
            self._predictor, self.record.image_size, list(map(_readable, images)), tta, self.record.fit
        ):
            path = None if isinstance(image, np.ndarray | bytes) else image
            if scores is None:
                yield Answer(path, reason=reason)
                continue
            by_class = sorted(zip(map(math.exp, scores), self.classes, strict=True), key=lambda pair: -pair[0])
            probability, name = by_class[0]
            known = ood_score <= 1 and probability >= min_confidence
            probabilities = {name: probability for probability, name in by_class}
            yield Answer(path, name if known else unknown, probability, probabilities, ood_score)


def _readable(image) -> Image:
    """An image that was given to Classifier.predict() as decode_batches() takes it."""
    pillow = sys.modules.get("PIL.Image")  # who has an image of Pillow has imported this
    if pillow and isinstance(image, pillow.Image):
        return rgb_of(image.copy())
    content = image.read() if hasattr(image, "read") else image
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    if content is image and isinstance(image, str | os.PathLike | np.ndarray):
        return image
    known = 'a path, bytes, a file opened with "rb", an image of Pillow or an array, (height, width, 3) uint8 RGB'
    raise ValueError(f"an image is {known}: not {type(content).__name__}")


def name_for_unknown(classes: Sequence[str]) -> str:
    """What is said instead of a class: unknown, or (unknown) if a class has that name."""
    return free_name(UNKNOWN, classes)


def free_name(name: str, classes: Sequence[str]) -> str:
    """The name, in brackets if a class has it already."""
    taken = {other.casefold() for other in classes}
    while name in taken:
        name = f"({name})"
    return name


class Prediction(NamedTuple):
    """What the network predicts for one image."""

    image: Image
    scores: np.ndarray | None  # (classes,) float64 log-probabilities; None where the file cannot be used
    reason: str | None  # why it cannot be used
    ood_score: float = 0.0  # relative to the threshold: above 1, the image is unlike all training images


def predict(
    predictor: Predictor, image_size: int, images: Sequence[Image], tta: bool = False, fit: str = "squash"
) -> Iterator[Prediction]:
    """Yield a Prediction for each image, in order, and report files that cannot be used.

    `tta`: see Classifier.predict(). `fit` is how the training images became squares: see images.fit_square().
    """
    for batch, reasons, pixels in decode_batches(images, image_size, fit):
        logits, ood_scores = predictor(pixels)
        scores = log_softmax(logits)
        if tta:
            mirrored, _ = predictor(np.ascontiguousarray(pixels[:, :, ::-1]))
            scores = np.logaddexp(scores, log_softmax(mirrored)) - np.log(2)
        results = zip(scores, map(float, ood_scores), strict=True)
        for image, reason in zip(batch, reasons, strict=True):
            if reason:
                say(f"error: {'an image' if isinstance(image, bytes) else image}: {reason}")
                yield Prediction(image, None, reason)
            else:
                row, ood_score = next(results)
                yield Prediction(image, row, None, ood_score)


def load_predictor(run: Run, runtime: str = "auto") -> Predictor:
    """`predictor(images)` of a run: (n, image_size, image_size, 3) uint8 RGB → ((n, classes), (n,)).

    These are float32 logits, and the OOD score of each image divided by the threshold in the record: above 1 the image is
    unlike the training images. It is 0 for a run that has no threshold.

    `runtime` is "auto", "litert" or "tensorflow". "auto" uses the LiteRT file if its package is installed and the file is
    whole and was made from the run's present weights; "litert" raises UserError where that is not so.
    """
    if runtime != "tensorflow":
        problem = litert_problem(run)
        if problem is None:
            outputs, shape = load_litert(run.litert)
            if shape != (run.record.image_size, len(run.record.classes)):
                raise UserError(f"{run.litert} does not fit {run.path / RECORD}: restore them, or use another run", NO_DATA)
            return _with_threshold(outputs, run.record)
        if runtime == "litert":
            raise UserError(f"{problem}: use --runtime tensorflow")
    from classifier.networks.by_name import compile_outputs  # these import TensorFlow
    from classifier.runs.checkpoints import load_network

    outputs, process = compile_outputs(load_network(run, with_ood=True)), os.getpid()

    def outputs_here(images):
        if os.getpid() != process:  # it would wait for threads that this process does not have
            raise UserError("TensorFlow was loaded before this process was forked: load the Classifier after that")
        return outputs(images)

    return _with_threshold(outputs_here, run.record)


def _with_threshold(outputs: Callable, record: RunRecord) -> Predictor:
    def predictor(images):
        result = outputs(images)
        logits, ood_scores = result if isinstance(result, tuple) else (result, np.zeros(len(images), np.float32))
        if not (np.isfinite(logits).all() and np.isfinite(ood_scores).all()):
            raise UserError("the network's outputs are infinite or NaN: its weights are damaged: use another run", NO_DATA)
        return logits, ood_scores / record.ood.threshold if record.ood else np.zeros_like(ood_scores)

    return predictor
