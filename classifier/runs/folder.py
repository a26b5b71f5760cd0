"""Run folders: all that a training leaves, and all that prediction needs.

runs/001/model.json                   the run record: settings, classes, counts, results
runs/001/history.csv                  a row for each epoch
runs/001/curves.png, first_batch.png  loss, accuracy and learning rate; the first batch, augmented
runs/001/tensorboard/                 the same for TensorBoard, if asked for
runs/001/skipped.csv                  the files that could not be used, and why
runs/001/near_copies.csv              which images were kept together by the split
runs/001/checkpoints/training/ckpt-*  weights, optimizer and position, to resume from
runs/001/checkpoints/head/…           the same, of a head on a frozen network; fine_tuning/…: of fine-tuning
runs/001/checkpoints/selected/ckpt-*  the selected weights, which predict
runs/001/checkpoints/ood/ckpt-*       the statistics of the out-of-distribution score
runs/001/model.tflite                 the selected weights for LiteRT, which predicts without TensorFlow
runs/001/.lock                        keeps other trainings and exports out
"""

import contextlib
import dataclasses
import itertools
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from classifier.base.console import NO_DATA, UserError, describe, say
from classifier.base.files import digest_of, locked, make_folder, remove, sync, write_text
from classifier.cluster.workers import is_chief, of_chief
from classifier.runs.record import RECORD, RunRecord, read_record, write_record

LITERT = "model.tflite"
MAX_BYTES = {".json": 64 << 20, ".index": 64 << 20, ".csv": 256 << 20, ".tflite": 2 << 30}  # of files that are read whole


class Run:
    """A run folder, `path`, and its `record`. Of several workers, only the chief writes."""

    def __init__(self, path: Path, record: RunRecord):
        self.path, self.record = path, record

    @classmethod
    def open(cls, path: Path) -> "Run":
        """The run in a folder. Raises UserError if its files lead out of it, or its record cannot be read."""
        check_files(path)
        return cls(path.absolute(), read_record(path / RECORD))

    @property
    def cache(self) -> Path:
        """The folder of decoded images and features, which the runs beside this one share."""
        return self.path.parent / ".cache"

    @property
    def litert(self) -> Path:
        """The LiteRT file."""
        return self.path / LITERT

    def update(self, **changes) -> None:
        """Change the record, in memory and in model.json. Raises UserError where it cannot be written."""
        self.record = dataclasses.replace(self.record, **changes)
        if is_chief():
            write_record(self.path / RECORD, self.record)

    def write(self, name: str, text: str) -> None:
        """Write a text file into the folder. Raises UserError where that fails."""
        if is_chief():
            write_text(self.path / name, text)

    def checkpoints(self, name: str) -> list[Path]:
        """Path prefixes of the checkpoints of a phase, or of "selected" or "ood", the newest first."""
        return checkpoints_in(self.path / "checkpoints" / name)

    def has_checkpoints(self) -> bool:
        """True if it can be resumed."""
        return any((self.path / "checkpoints").glob("*/ckpt-*.index"))

    def selected_digest(self) -> str | None:
        """Identifies the selected weights: a checkpoint's index has a checksum of every tensor. None without any."""
        prefixes = self.checkpoints("selected")
        return digest_of(Path(f"{prefixes[0]}.index").read_bytes()) if prefixes else None

    def network_digest(self) -> str:
        """Identifies all that predictions depend on: selected weights, OOD statistics, and the temperature."""
        indexes = [Path(f"{prefix}.index") for name in ("selected", "ood") for prefix in self.checkpoints(name)[:1]]
        return digest_of(str(self.record.temperature).encode(), *(path.read_bytes() for path in indexes))


def new_run_folder(output: Path) -> Path:
    """Make the next free folder output/001, output/002, … and return it. Raises UserError if that fails.

    Of several workers the chief makes it.
    """
    path = output / of_chief(lambda: _new_folder(output).name)
    if not path.is_dir():
        raise UserError(f"the chief made {path}, and it is not here: --output must be one folder that all workers see")
    return path


@contextlib.contextmanager
def new_or_resumed(output: Path, run: Run | None) -> Iterator[Path]:
    """Yield the folder of a run, locked: that of `run`, or a new one in `output`, which goes if nothing is trained in it."""
    path = run.path if run else new_run_folder(output)
    try:
        with locked(path) if is_chief() else contextlib.nullcontext():
            yield path
    except BaseException:
        if run is None and is_chief() and not any(path.glob("checkpoints/*/ckpt-*.index")):  # else --resume would choose it
            remove(path)
        raise


def _new_folder(output):
    try:
        make_folder(output)
        for number in itertools.count(1 + max((int(path.name) for path in runs_in(output)), default=0)):
            with contextlib.suppress(FileExistsError):  # another training may have been quicker
                path = output / f"{number:03d}"
                path.mkdir()
                sync(output)
                return path
    except OSError as error:
        raise UserError(f"cannot make a run folder ({describe(error)}): choose another --output") from None


def runs_in(output: Path) -> list[Path]:
    """The run folders in a folder, the newest first."""
    runs = [path for path in output.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
    return sorted(runs, key=lambda path: int(path.name), reverse=True)


def find_run(path: Path, finished: bool = True) -> Run:
    """The run in the folder `path`, or else the newest run in a folder of it: the newest finished one, if `finished`.

    A run whose record cannot be read is skipped and reported. Raises UserError if there is none.
    """
    if path.is_file():
        raise UserError(f"{path} is a file: give its run folder, such as {path.parent}", NO_DATA)
    if not path.is_dir():
        raise UserError(f"there is no run folder {path}: train first, or give another", NO_DATA)
    if (path / RECORD).exists() or not runs_in(path):
        return Run.open(path)
    unfinished = ""
    for folder in runs_in(path):
        try:
            run = Run.open(folder)
            if run.record.finished or not finished:
                return run
            unfinished = unfinished or f", or name an unfinished one, such as {folder}"
        except UserError as error:
            say(f"skipped: {error}")
    kind = "finished run" if finished else "run"
    raise UserError(f"no {kind} in {path}: train first{unfinished}", NO_DATA)


def check_files(run: Path) -> None:
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


def checkpoints_in(folder: Path) -> list[Path]:
    """Path prefixes of the checkpoints in a folder, the newest first."""
    numbers = [re.fullmatch(r"ckpt-(\d+)\.index", path.name) for path in folder.glob("ckpt-*.index")]
    return [folder / f"ckpt-{n}" for n in sorted((int(match[1]) for match in numbers if match), reverse=True)]
