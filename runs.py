"""Run folders: what a training leaves behind, and all that prediction needs.

    runs/001/model.json                  the card: network, classes, picture size, settings, data counts, results
    runs/001/history.csv                 a row an epoch
    runs/001/skipped.csv                 the files that could not be used, and why
    runs/001/checkpoints/newest/ckpt-*   weights, optimizer and position, to resume from
    runs/001/checkpoints/fine-tuning/…   the same, of a pretrained network's second phase
    runs/001/checkpoints/best/ckpt-*     weights of the best epoch, to predict with
    runs/001/checkpoints/novelty/ckpt-*  how far from all of training a picture is, by the best weights
    runs/001/model.tflite                the same weights for LiteRT, which predicts without TensorFlow
"""

import contextlib
import itertools
import json
import math
import os
import re

from console import NO_DATA, UserError, describe, say, write_whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CARD = "model.json"
LITERT = "model.tflite"
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 8, 2048  # the network halves a picture three times


def new_run(output):
    """Make the next free folder output/001, output/002, … and return it. Raises UserError where it can't."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1 + max((int(path.name) for path in runs_in(output)), default=0)):
            with contextlib.suppress(FileExistsError):  # another training may have been quicker
                run = output / f"{number:03d}"
                run.mkdir()
                return run
    except OSError as error:
        raise UserError(f"cannot make a run folder ({describe(error)}): choose another --output") from None


def runs_in(output):
    """The numbered run folders in `output`, the newest first."""
    runs = [path for path in output.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
    return sorted(runs, key=lambda path: int(path.name), reverse=True)


def find_run(path, finished=True):
    """`path` itself if it is a run folder, else the newest run in it: the newest finished one, if `finished`.

    A run whose card cannot be read is passed over, and that is said.
    """
    if not path.is_dir():
        raise UserError(f"there is no run folder {path}: train first, or give another", NO_DATA)
    if (path / CARD).exists() or not runs_in(path):
        return path.absolute()
    for run in runs_in(path):
        try:
            if read_card(run)["finished"] or not finished:
                return run.absolute()
        except UserError as error:
            say(f"passed over: {error}")
    kind = "finished run" if finished else "run"
    raise UserError(f"no {kind} in {path}: train first, or name one, such as {runs_in(path)[0]}", NO_DATA)


@contextlib.contextmanager
def locked(run):
    """Keep other processes from training or exporting in this run folder meanwhile. Raises UserError if one does."""
    if fcntl is None:
        yield
        return
    folder = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise UserError(f"another process is at work in {run}") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(folder)


def checkpoints_in(folder):
    """Path prefixes of the checkpoints in a folder, the newest first."""
    numbers = [re.fullmatch(r"ckpt-(\d+)\.index", path.name) for path in folder.glob("ckpt-*.index")]
    return [folder / f"ckpt-{n}" for n in sorted((int(match[1]) for match in numbers if match), reverse=True)]


def write_card(run, card):
    """Write the card as a whole or not at all."""
    write_whole(run / CARD, json.dumps(card, indent=2) + "\n")


def read_card(run):
    """The card of a run as a dictionary. Raises UserError where there is none, or it is not one of ours."""
    try:
        card = json.loads((run / CARD).read_text(encoding="utf-8"))
        classes, size = card["classes"], card["image_size"]
        sound = (
            isinstance(classes, list)
            and len({name.encode(errors="surrogateescape") for name in classes}) == len(classes) >= 2
            and type(size) is int
            and MIN_IMAGE_SIZE <= size <= MAX_IMAGE_SIZE
            and isinstance(card["settings"], dict)
            and isinstance(card["network"], str)
            and isinstance(card["finished"], bool)
            and all(isinstance(card.get(name, {}), dict) for name in ("versions", "device"))
            and _is_positive(card.get("temperature", 1.0))
            and _is_positive(card.get("novelty", {"limit": 1.0})["limit"])
            and card.get("novelty", {}).get("features", "last") in ("last", "maps")
        )
    except OSError as error:
        raise UserError(f"{run} is not a run folder of this project: {describe(error)}", NO_DATA) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{run / CARD} is damaged: restore it, or use another run", NO_DATA)
    return card


def _is_positive(number):
    return isinstance(number, float) and 0 < number < math.inf
