"""A trained network as a function from pictures to logits: through LiteRT where possible, which starts in a blink,
through TensorFlow otherwise."""

import hashlib

import numpy as np

import cpu
from console import NO_DATA, UserError, say
from runs import CARD, LITERT, checkpoints_in

LITERT_BATCH = 8  # the maps of more pictures do not stay in the processor's cache


def log_probabilities(logits):
    """Logarithm of the softmax over the last axis, in float64, without overflow: exp() of it are the probabilities."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def load_judge(run, card, runtime="auto"):
    """`judge(pictures)` of a run's network: (n, image_size, image_size, 3) uint8 RGB → ((n, classes), (n,)).

    These are float32 logits, and the novelty of each picture (see novelty.py) divided by the limit in the card: above 1 the
    picture is unlike those of training. It is 0 for a run whose card knows no limit.

    `runtime` is "auto", "litert" or "tensorflow". "auto" takes the LiteRT file if its package is installed and the file
    is whole and was made from the run's present best checkpoint; "litert" raises UserError where that is not so.
    """
    if runtime != "tensorflow":
        problem = litert_problem(run, card)
        if problem is None:
            outputs, shape = load_litert(run / LITERT)
            if shape != (card["image_size"], len(card["classes"])):
                raise UserError(f"{run / LITERT} does not fit {run / CARD}: restore them, or use another run", NO_DATA)
            return _with_limit(outputs, card)
        if runtime == "litert":
            raise UserError(f"{problem}: use --runtime tensorflow")
    from checkpoints import load_network
    from model import compile_outputs

    return _with_limit(compile_outputs(load_network(run, card, novelty=True)), card)


def _with_limit(outputs, card):
    limit = card["novelty"]["limit"] if "novelty" in card else None

    def judge(pictures):
        whole = outputs(pictures)
        if limit is None or not isinstance(whole, tuple):
            return whole, np.zeros(len(pictures), np.float32)
        logits, novelty = whole
        return logits, novelty / limit

    return judge


def litert_problem(run, card):
    """Why the LiteRT file of a run cannot be used, in a few words; None if it can."""
    try:
        import ai_edge_litert  # noqa: F401
    except ImportError:
        return "the package ai-edge-litert is not installed"
    made = card.get("litert")
    if not isinstance(made, dict) or not (run / LITERT).exists():
        return f"{run} has no LiteRT file"
    if made.get("network") != network_digest(run, card):
        return f"{run / LITERT} was made from another checkpoint"
    if made.get("file") != file_digest(run / LITERT):
        say(f"warning: {run / LITERT} is damaged")
        return f"{run / LITERT} is damaged"
    return None


def load_litert(path):
    """A LiteRT file as (outputs, (image_size, num_classes)).

    `outputs(pictures)` takes (n, image_size, image_size, 3) uint8 RGB, for any n, and returns what the network does: (n,
    num_classes) float32 logits, and a tuple of these and (n,) float32 novelty where it has both.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=cpu.cores())
    (inputs,) = interpreter.get_input_details()
    details = sorted(interpreter.get_output_details(), key=lambda output: -len(output["shape"]))  # the logits first
    shape = inputs["shape"]

    def run(part):
        if len(part) != shape[0]:
            shape[0] = len(part)
            interpreter.resize_tensor_input(inputs["index"], shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(inputs["index"], part)
        interpreter.invoke()
        return [interpreter.get_tensor(output["index"]) for output in details]

    def outputs(pictures):
        empty = [np.empty((0, *output["shape"][1:]), np.float32) for output in details]
        parts = [run(pictures[start : start + LITERT_BATCH]) for start in range(0, len(pictures), LITERT_BATCH)]
        whole = tuple(np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True))
        return whole if len(whole) > 1 else whole[0]

    return outputs, (int(shape[1]), int(details[0]["shape"][-1]))


def file_digest(path):
    """A digest of a file's content, or None if there is no such file."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None


def network_digest(run, card):
    """Identifies all that a run's answers come from: its best weights, their novelty, and the temperature.

    A checkpoint's index holds a sum of every tensor, so it stands for them.
    """
    digest = hashlib.blake2b(str(card.get("temperature")).encode(), digest_size=16)
    for folder in ("best", "novelty"):
        for prefix in checkpoints_in(run / "checkpoints" / folder)[:1]:
            digest.update(prefix.with_name(f"{prefix.name}.index").read_bytes())
    return digest.hexdigest()
