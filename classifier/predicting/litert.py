"""LiteRT: the file of a run that predicts without TensorFlow, for several threads at once."""

import contextlib
import math
import queue
from collections.abc import Callable
from pathlib import Path

import numpy as np

from classifier.base import cpu
from classifier.base.console import NO_DATA, UserError, say
from classifier.base.files import digest_of
from classifier.base.prefetch import in_chunks
from classifier.runs.folder import Run

BATCH = 8  # the feature maps of more images do not fit into the CPU's cache
INTERPRETERS = 2  # for threads that predict at once: two answer up to 1.4 times as often as one, three no more
MOST_VALUES = 256  # in a tensor, for each pixel of an image: the widest maps, those of vgg, have 64


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
        content = path.read_bytes()  # all have the same weights, even if somebody writes over the file
        interpreters = [Interpreter(model_content=content, num_threads=cpu.cores()) for _ in range(INTERPRETERS)]
        (inputs,) = interpreters[0].get_input_details()
        details = sorted(interpreters[0].get_output_details(), key=lambda output: -len(output["shape"]))  # the logits first
        shape = inputs["shape"][1:]
        sizes = int(shape[0]), int(details[0]["shape"][-1])
        most = max(len(content), MOST_VALUES * sizes[0] ** 2)  # values in a tensor, for each image
    # Each serves one thread at a time. The one that was used last is taken first: one thread needs the memory of one.
    idle: queue.LifoQueue = queue.LifoQueue()
    for interpreter in interpreters:
        idle.put(interpreter)
    checked: set[int] = set()  # numbers of images that need no more memory than they may

    def run(interpreter, part):
        interpreter.resize_tensor_input(inputs["index"], [len(part), *shape])
        interpreter.allocate_tensors()  # only reserves the memory
        if len(part) not in checked:
            if max(math.prod(tensor["shape"].tolist()) for tensor in interpreter.get_tensor_details()) > most * len(part):
                raise ValueError("it needs too much memory")
            checked.add(len(part))
        interpreter.set_tensor(inputs["index"], part)
        interpreter.invoke()
        return [interpreter.get_tensor(output["index"]) for output in details]

    def outputs(images):
        empty = [np.empty((0, *output["shape"][1:]), np.float32) for output in details]
        interpreter = idle.get()
        try:
            with _of_our_kind(path):
                parts = [run(interpreter, part) for part in in_chunks(images, BATCH)]
        finally:
            idle.put(interpreter)
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
