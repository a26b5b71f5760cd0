"""Run folders: all that a training leaves, and all that prediction needs.

runs/001/model.json                  run metadata: network, classes, settings, counts, results
runs/001/history.csv                 a row for each epoch
runs/001/curves.png, first_batch.png loss, accuracy and learning rate; the first batch, augmented
runs/001/tensorboard/                the same for TensorBoard, if asked for
runs/001/skipped.csv                 the files that could not be used, and why
runs/001/checkpoints/training/ckpt-* weights, optimizer and position, to resume from
runs/001/checkpoints/head/…          the same, of a head on a frozen network; fine_tuning/…: of fine-tuning
runs/001/checkpoints/selected/ckpt-* the selected weights, which predict
runs/001/checkpoints/ood/ckpt-*      the statistics of the out-of-distribution score
runs/001/.lock                       keeps other trainings and exports out
runs/001/model.tflite                the selected weights for LiteRT, which predicts without TensorFlow
"""

import contextlib
import importlib.util
import itertools
import json
import math
import os
import re
import stat
from pathlib import Path

from classifier.base.console import NO_DATA, UserError, describe, say
from classifier.base.files import digest_of, make_folder, sync, write_text
from classifier.cluster.workers import of_chief

METADATA = "model.json"
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 8, 2048  # the cnn halves an image three times
FITS = ("squash", "crop", "pad")  # how an image becomes a square: see images.fit_square()
LITERT = "model.tflite"
MAX_BYTES = {".json": 64 << 20, ".index": 64 << 20, ".csv": 256 << 20, ".tflite": 2 << 30}  # of files that are read whole
EXPORTS = {  # format: file, and the packages that it needs
    "litert": (LITERT, ["ai_edge_litert"]),
    "litert-int8": ("model_int8.tflite", ["ai_edge_litert"]),
    "onnx": ("model.onnx", ["tf2onnx", "onnxruntime"]),
    "savedmodel": ("saved_model", []),
    "html": ("model.html", ["ai_edge_litert"]),
}


def new_run(output):
    """Make the next free folder output/001, output/002, … and return it. Raises UserError if that fails.

    Of several workers the chief makes it.
    """
    run = output / of_chief(lambda: _new_run(output).name)
    if not run.is_dir():
        raise UserError(f"the chief made {run}, and it is not here: --output must be one folder that all workers see")
    return run


def _new_run(output):
    try:
        make_folder(output)
        for number in itertools.count(1 + max((int(path.name) for path in runs_in(output)), default=0)):
            with contextlib.suppress(FileExistsError):  # another training may have been quicker
                run = output / f"{number:03d}"
                run.mkdir()
                sync(output)
                return run
    except OSError as error:
        raise UserError(f"cannot make a run folder ({describe(error)}): choose another --output") from None


def runs_in(output):
    """The numbered run folders in `output`, the newest first."""
    runs = [path for path in output.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
    return sorted(runs, key=lambda path: int(path.name), reverse=True)


def find_run(path, finished=True):
    """`path` itself if it is a run folder, else the newest run in it: the newest finished one, if `finished`.

    A run whose metadata cannot be read is skipped and reported.
    """
    if not path.is_dir():
        raise UserError(f"there is no run folder {path}: train first, or give another", NO_DATA)
    if (path / METADATA).exists() or not runs_in(path):
        check_files(path)
        return path.absolute()
    for run in runs_in(path):
        try:
            check_files(run)
            if read_metadata(run)["finished"] or not finished:
                return run.absolute()
        except UserError as error:
            say(f"skipped: {error}")
    kind = "finished run" if finished else "run"
    raise UserError(f"no {kind} in {path}: train first, or name one, such as {runs_in(path)[0]}", NO_DATA)


def check_files(run):
    """Raise UserError for what others could put into a run folder to reach files outside, to hang, or to fill the memory."""
    root = Path(os.path.realpath(run))
    for folder, folders, names in os.walk(root):
        for path in (Path(folder, name) for name in (*folders, *names)):
            target = Path(os.path.realpath(path))
            if root not in target.parents:
                raise UserError(f"{path} is a link out of its run folder: put in its place what it leads to", NO_DATA)
            try:
                status = target.stat()
            except FileNotFoundError:  # a training has replaced it meanwhile
                continue
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise UserError(f"{path} is not an ordinary file: remove it, or use another run", NO_DATA)
            if status.st_size > MAX_BYTES.get(path.suffix, math.inf):
                raise UserError(f"{path} is too large to be of a run: restore it, or use another run", NO_DATA)


def checkpoints_in(folder):
    """Path prefixes of the checkpoints in a folder, the newest first."""
    numbers = [re.fullmatch(r"ckpt-(\d+)\.index", path.name) for path in folder.glob("ckpt-*.index")]
    return [folder / f"ckpt-{n}" for n in sorted((int(match[1]) for match in numbers if match), reverse=True)]


def has_checkpoints(run):
    """True if a run can be resumed."""
    return any((run / "checkpoints").glob("*/ckpt-*.index"))


def write_metadata(run, metadata):
    """Write the metadata, whole or not at all, with a digest that shows any change."""
    metadata = json.loads(json.dumps(metadata))  # as it will be read
    write_text(run / METADATA, json.dumps(metadata | {"digest": _digest_of_metadata(metadata)}, indent=2) + "\n")


def _digest_of_metadata(metadata):
    return digest_of(json.dumps(metadata, sort_keys=True).encode())


def read_metadata(run):
    """The metadata of a run, a dictionary. Raises UserError if there is none, or it is damaged."""
    try:
        metadata = json.loads((run / METADATA).read_text(encoding="utf-8"))
        digest = metadata.pop("digest", None)  # earlier runs had none
        is_whole = digest is None or digest == _digest_of_metadata(metadata)
        metadata = {"fit": "squash", "feature_scales": 1} | metadata  # earlier runs had no other
        classes, size = metadata["classes"], metadata["image_size"]
        sound = (
            is_whole
            and isinstance(classes, list)
            and len({name.encode(errors="surrogateescape") for name in classes}) == len(classes) >= 2
            and type(size) is int
            and MIN_IMAGE_SIZE <= size <= MAX_IMAGE_SIZE
            and metadata["fit"] in FITS
            and isinstance(metadata["settings"], dict)
            and isinstance(metadata["network"], str)
            and isinstance(metadata["finished"], bool)
            and all(isinstance(metadata.get(name, {}), dict) for name in ("versions", "device"))
            and all(type(metadata.get(name, 1)) is int for name in ("epochs", "head_epochs", "feature_scales"))
            and _is_positive(metadata.get("temperature", 1.0))
            and _is_positive(metadata.get("ood", {"threshold": 1.0})["threshold"])
            and metadata.get("ood", {}).get("features", "last") in ("last", "maps")
        )
    except OSError as error:
        raise UserError(f"{run} is not a run folder of this project: {describe(error)}", NO_DATA) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{run / METADATA} is damaged: restore it, or use another run", NO_DATA)
    return metadata


def _is_positive(number):
    return isinstance(number, float) and 0 < number < math.inf


def selected_digest(run):
    """Identifies the selected weights of a run: a checkpoint's index has a checksum of every tensor. None without any."""
    prefixes = checkpoints_in(run / "checkpoints" / "selected")
    return digest_of(Path(f"{prefixes[0]}.index").read_bytes()) if prefixes else None


def network_digest(run, metadata):
    """Identifies all that the predictions of a run depend on: selected weights, OOD statistics, and the temperature.

    A checkpoint's index has a checksum of every tensor, so the index is enough.
    """
    folders = (run / "checkpoints" / name for name in ("selected", "ood"))
    indexes = [f"{prefix}.index" for folder in folders for prefix in checkpoints_in(folder)[:1]]
    return digest_of(str(metadata.get("temperature")).encode(), *(Path(path).read_bytes() for path in indexes))


def missing_packages(name):
    """The packages that an export needs and that are not installed."""
    return [package for package in EXPORTS[name][1] if importlib.util.find_spec(package) is None]
