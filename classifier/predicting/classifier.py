"""The classifier: a run as a function from images to answers, through LiteRT, which starts faster, or TensorFlow."""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from classifier.base import console, cpu
from classifier.base.console import NO_DATA, UserError, say
from classifier.base.files import digest_of
from classifier.base.metrics import log_softmax
from classifier.data.finding import walk_images
from classifier.data.images import decode_batches
from classifier.runs.folder import Run, find_run
from classifier.runs.record import RECORD, RunRecord

LITERT_BATCH = 8  # the feature maps of more images do not fit into the CPU's cache
MOST_VALUES = 256  # in a tensor, for each pixel of an image: the widest maps, those of vgg, have 64
UNKNOWN = "unknown"
Image = str | os.PathLike | np.ndarray  # a file, or (height, width, 3) uint8 RGB, upright
Predictor = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # see load_predictor()


class Answer(NamedTuple):
    """What a Classifier says of one image; where a file cannot be used, nothing but the reason."""

    path: str | os.PathLike | None  # None for an array
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

    def predict(self, images: Sequence[Image], tta: bool = False, min_confidence: float = 0.0) -> Iterator[Answer]:
        """Yield an Answer for each of a list of images, in order: paths, or arrays, (height, width, 3) uint8 RGB, upright.

        Files that cannot be used are also reported on standard error. With `tta`, test-time augmentation, probabilities are
        the mean of those for the image and for its mirror image. Raises ValueError for an array of another kind.
        """
        if isinstance(images, str | os.PathLike):
            raise ValueError(f"a list of images is needed, not {images!r} alone")
        unknown = name_for_unknown(self.classes)
        for image, scores, reason, ood_score in predict(
            self._predictor, self.record.image_size, list(images), tta, self.record.fit
        ):
            path = None if isinstance(image, np.ndarray) else image
            if scores is None:
                yield Answer(path, reason=reason)
                continue
            by_class = sorted(zip(map(math.exp, scores), self.classes, strict=True), key=lambda pair: -pair[0])
            probability, name = by_class[0]
            known = ood_score <= 1 and probability >= min_confidence
            probabilities = {name: probability for probability, name in by_class}
            yield Answer(path, name if known else unknown, probability, probabilities, ood_score)


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

    image: Image  # as it was given
    scores: np.ndarray | None  # (classes,) float64 log-probabilities; None where the file cannot be used
    reason: str | None  # why it cannot be used
    ood_score: float = 0.0  # relative to the threshold: above 1, the image is unlike all training images


def predict(
    predictor: Predictor, image_size: int, images: Sequence[Image], tta: bool = False, fit: str = "squash"
) -> Iterator[Prediction]:
    """Yield a Prediction for each image, in order, and report files that cannot be used.

    `tta`: see Classifier.predict(). `fit` is how the training images became squares: see images.fit_square().
    """
    with console.progress("predicting", len(images)) as advance:
        for batch, reasons, pixels in decode_batches(images, image_size, fit):
            logits, ood_scores = predictor(pixels)
            scores = log_softmax(logits)
            if tta:
                mirrored, _ = predictor(np.ascontiguousarray(pixels[:, :, ::-1]))
                scores = np.logaddexp(scores, log_softmax(mirrored)) - np.log(2)
            results = zip(scores, map(float, ood_scores), strict=True)
            for image, reason in zip(batch, reasons, strict=True):
                if reason:
                    say(f"error: {image}: {reason}")
                    yield Prediction(image, None, reason)
                else:
                    row, ood_score = next(results)
                    yield Prediction(image, row, None, ood_score)
            advance(len(batch))


def list_images(arguments: Sequence[str]) -> list[str]:
    """The paths that the arguments name: files as they are, folders searched, - read from standard input."""
    paths = []
    for argument in arguments:
        if argument == "-":
            lines = sys.stdin.buffer.read().split(b"\n") if sys.stdin else []
            paths += [os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()]
        elif os.path.isdir(argument):
            images, _ = walk_images(argument)
            if not images:
                raise UserError(f"no images in {argument}", NO_DATA)
            paths += [os.path.join(argument, image) for image in images]
        else:
            paths.append(argument)
    if not paths:
        raise UserError("no paths on standard input", NO_DATA)
    return paths


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

    return _with_threshold(compile_outputs(load_network(run, with_ood=True)), run.record)


def _with_threshold(outputs: Callable, record: RunRecord) -> Predictor:
    def predictor(images):
        result = outputs(images)
        logits, ood_scores = result if isinstance(result, tuple) else (result, np.zeros(len(images), np.float32))
        if not (np.isfinite(logits).all() and np.isfinite(ood_scores).all()):
            raise UserError("the network's outputs are infinite or NaN: its weights are damaged: use another run", NO_DATA)
        return logits, ood_scores / record.ood.threshold if record.ood else np.zeros_like(ood_scores)

    return predictor


def litert_problem(run: Run) -> str | None:
    """Why the LiteRT file of a run cannot be used, in a few words; None if it can."""
    try:
        import ai_edge_litert  # noqa: F401
    except ImportError:
        return "the package ai-edge-litert is not installed"
    made = run.record.litert
    if made is None or not run.litert.exists():
        return f"{run.path} has no LiteRT file"
    if made.get("network") != run.network_digest():
        return f"{run.litert} was made from another checkpoint"
    with contextlib.suppress(OSError):  # it cannot be read
        if made.get("file") == digest_of(run.litert.read_bytes()):
            return None
    say(f"warning: {run.litert} is damaged")
    return f"{run.litert} is damaged"


def load_litert(path: Path) -> tuple[Callable, tuple[int, int]]:
    """A LiteRT file as (outputs, (image_size, num_classes)).

    `outputs(images)` takes (n, image_size, image_size, 3) uint8 RGB, for any n, and returns (n, num_classes) float32 logits,
    or a tuple of these and (n,) float32 OOD scores if the file has both. Raises UserError if it is not of this kind.
    """
    from ai_edge_litert.interpreter import Interpreter

    with _of_our_kind(path):
        interpreter = Interpreter(os.fsencode(path), num_threads=cpu.cores())  # a name of any bytes
        (inputs,) = interpreter.get_input_details()
        details = sorted(interpreter.get_output_details(), key=lambda output: -len(output["shape"]))  # the logits first
        shape = inputs["shape"]
        sizes = int(shape[1]), int(details[0]["shape"][-1])
        most = max(os.path.getsize(path), MOST_VALUES * sizes[0] ** 2)  # values in a tensor, for each image

    def run(part):
        if len(part) != shape[0]:
            shape[0] = len(part)
            interpreter.resize_tensor_input(inputs["index"], shape)
        interpreter.allocate_tensors()  # only reserves the memory
        if max(math.prod(tensor["shape"].tolist()) for tensor in interpreter.get_tensor_details()) > most * len(part):
            raise ValueError("it needs too much memory")
        interpreter.set_tensor(inputs["index"], part)
        interpreter.invoke()
        return [interpreter.get_tensor(output["index"]) for output in details]

    def outputs(images):
        empty = [np.empty((0, *output["shape"][1:]), np.float32) for output in details]
        with _of_our_kind(path):
            parts = [run(images[start : start + LITERT_BATCH]) for start in range(0, len(images), LITERT_BATCH)]
        whole = tuple(np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True))
        return whole if len(whole) > 1 else whole[0]

    return outputs, sizes


@contextlib.contextmanager
def _of_our_kind(path):
    """A context in which errors of LiteRT become UserErrors."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{path} cannot be used: {str(error).splitlines()[0]}", NO_DATA) from None
