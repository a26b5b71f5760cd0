"""Run folders: what a training leaves behind, and all that prediction needs.

    runs/001/model.json                  the card: network, classes, picture size, settings, data counts, results
    runs/001/history.csv                 a row an epoch
    runs/001/skipped.csv                 the files that could not be used, and why
    runs/001/checkpoints/newest/ckpt-*   weights, optimizer and position, to resume from
    runs/001/checkpoints/best/ckpt-*     weights of the epoch with the best validation accuracy, to predict with
"""

import contextlib
import itertools
import json

from console import NO_DATA, UserError, describe, write_whole

CARD = "model.json"
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
    """`path` itself if it is a run folder, else the newest run in it: the newest finished one, if `finished`."""
    if (path / CARD).exists() or not runs_in(path):
        if not path.is_dir():
            raise UserError(f"there is no run folder {path}: train first, or give another", NO_DATA)
        return path
    for run in runs_in(path):
        with contextlib.suppress(UserError):
            if not finished or read_card(run)["finished"]:
                return run
    raise UserError(f"no finished run in {path}: name an unfinished one, such as {runs_in(path)[0]}, to use it", NO_DATA)


def write_card(run, card):
    """Write the card as a whole or not at all."""
    write_whole(run / CARD, json.dumps(card, indent=2) + "\n")


def read_card(run):
    """The card of a run as a dictionary. Raises UserError where there is none, or it is not one of ours."""
    try:
        card = json.loads((run / CARD).read_text(encoding="utf-8"))
        classes, size = card["classes"], card["image_size"]
        sound = (
            len(classes) >= 2
            and all(isinstance(name, str) for name in classes)
            and len(set(classes)) == len(classes)
            and isinstance(size, int)
            and MIN_IMAGE_SIZE <= size <= MAX_IMAGE_SIZE
            and all(isinstance(card[key], dict) for key in ("settings", "pictures"))
            and isinstance(card["network"], str)
            and isinstance(card["finished"], bool)
        )
    except OSError as error:
        raise UserError(f"{run} is not a run folder of this project: {describe(error)}", NO_DATA) from None
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise UserError(f"{run / CARD} is damaged: restore it, or use another run", NO_DATA)
    return card
