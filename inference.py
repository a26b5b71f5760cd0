"""A trained network as a function from pictures to logits: through LiteRT where possible, which starts in a blink,
through TensorFlow otherwise."""

import hashlib
import os

import numpy as np

from console import NO_DATA, UserError, say
from runs import CARD, LITERT, checkpoints_in

LITERT_BATCH = 8  # the maps of more pictures do not stay in the processor's cache


def log_probabilities(logits):
    """Logarithm of the softmax over the last axis, in float64, without overflow: exp() of it are the probabilities."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def load_logits(run, card, runtime="auto"):
    """`logits(pictures)` of a run's network: (n, image_size, image_size, 3) uint8 RGB → (n, classes) float32.

    `runtime` is "auto", "litert" or "tensorflow". "auto" takes the LiteRT file if its package is installed and the file
    is whole and was made from the run's present best checkpoint; "litert" raises UserError where that is not so.
    """
    if runtime != "tensorflow":
        problem = litert_problem(run, card)
        if problem is None:
            logits, shape = load_litert(run / LITERT)
            if shape != (card["image_size"], len(card["classes"])):
                raise UserError(f"{run / LITERT} does not fit {run / CARD}: restore them, or use another run", NO_DATA)
            return logits
        if runtime == "litert":
            raise UserError(f"{problem}: use --runtime tensorflow")
    from checkpoints import load_network
    from model import compile_logits

    return compile_logits(load_network(run, card))


def litert_problem(run, card):
    """Why the LiteRT file of a run cannot be used, in a few words; None if it can."""
    try:
        import ai_edge_litert  # noqa: F401
    except ImportError:
        return "the package ai-edge-litert is not installed"
    made = card.get("litert")
    if not isinstance(made, dict) or not (run / LITERT).exists():
        return f"{run} has no LiteRT file"
    if made.get("checkpoint") != best_checkpoint_digest(run):
        return f"{run / LITERT} was made from another checkpoint"
    if made.get("file") != file_digest(run / LITERT):
        say(f"warning: {run / LITERT} is damaged")
        return f"{run / LITERT} is damaged"
    return None


def load_litert(path):
    """A LiteRT file as (logits, (image_size, num_classes)).

    `logits(pictures)` takes (n, image_size, image_size, 3) uint8 RGB and returns (n, num_classes) float32, for any n.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=os.cpu_count())
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()
    shape = inputs["shape"]

    def logits(pictures):
        scores = np.empty((len(pictures), outputs["shape"][-1]), np.float32)
        for start in range(0, len(pictures), LITERT_BATCH):
            part = pictures[start : start + LITERT_BATCH]
            if len(part) != shape[0]:
                shape[0] = len(part)
                interpreter.resize_tensor_input(inputs["index"], shape)
            interpreter.allocate_tensors()
            interpreter.set_tensor(inputs["index"], part)
            interpreter.invoke()
            scores[start : start + LITERT_BATCH] = interpreter.get_tensor(outputs["index"])
        return scores

    return logits, (int(shape[1]), int(outputs["shape"][-1]))


def file_digest(path):
    """A digest of a file's content, or None if there is no such file."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None


def best_checkpoint_digest(run):
    """Identifies a run's best weights. A checkpoint's index holds a sum of every tensor, so its digest stands for them."""
    prefixes = checkpoints_in(run / "checkpoints" / "best")
    return file_digest(prefixes[0].with_name(f"{prefixes[0].name}.index")) if prefixes else None
