"""Before a training: its devices, the near-copies among its images, and the record of its run."""

import platform
import shutil
from pathlib import Path

import cv2
import keras
import numpy as np
import tensorflow as tf

from classifier.base import cpu
from classifier.base.console import NO_DATA, UserError, say
from classifier.base.files import csv_text
from classifier.cluster import workers
from classifier.data import near_copies
from classifier.networks.by_name import create_network, extract_features
from classifier.networks.pretrained import load_weights, split_at_features, unfreeze
from classifier.runs.folder import Run
from classifier.runs.record import RunRecord
from classifier.runs.settings import AUTO, FINE_TUNING, Settings
from classifier.training.optimizer import steps_in_bfloat16
from classifier.training.phases import FINE_TUNED


def prepare(settings: Settings) -> None:
    """Compare the workers, if there are several, and look whether the settings fit the network.

    Raises UserError on every worker unless all have the same settings, versions of packages, and number of devices, and if
    --fine-tune names a layer that the network lacks.
    """
    paths = ("data_dir", "validation_dir", "weights")  # may be others on each machine: what they hold is compared later
    packages = {name: version for name, version in versions().items() if name != "python"}
    devices = {"number of GPUs": len(tf.config.list_physical_devices("GPU")), "bfloat16": steps_in_bfloat16(settings)}
    values = {name: str(value) for name, value in settings.as_json().items() if name not in paths}
    workers.compare(settings=values, versions=packages, devices=devices)
    if settings.fine_tune not in (None, AUTO):
        unfreeze(create_network(settings.network, settings.image_size, num_classes=2), settings.fine_tune)


def near_copies_among(images, settings: Settings, cache_dir: Path, run: Run | None) -> dict[str, str]:
    """The near-copies among a DataSet, {digest: group}: those that `run`, if it is resumed, began with.

    With the features of a pretrained network, if one is to be trained, more are found. Of several workers, each computes
    features, and the chief compares.
    """
    if run:
        return near_copies.read_near_copies(run.path / near_copies.FILE) if "near_copies" in run.record.split else {}
    if not settings.group_near_copies or settings.validation_dir or not near_copies.are_compared(len(images)):
        return {}
    features = None
    if settings.is_pretrained:
        network = create_network(settings.network, settings.image_size, num_classes=2)
        load_weights(network, settings.weights)
        rows, row_of_image = extract_features(images, split_at_features(network)[0], cache_dir, settings.fit)
        features = rows[row_of_image]
    arguments = images, cache_dir, settings.image_size, settings.fit, features
    return workers.of_chief(lambda: near_copies.find_near_copies(*arguments))


def begin_run(path: Path, settings: Settings, sets) -> Run:
    """Write the record of a new run on these TrainSets, and what was skipped. Returns the run."""
    record = RunRecord(
        settings=settings,
        classes=sets.classes,
        images=count_images(sets),
        skipped=len(sets.skipped),
        split=sets.split,
        fingerprint=sets.fingerprint,
        versions=versions(),
        device=device(settings),
    )
    run = Run(path.absolute(), record)
    run.update()
    _write_lists(run, sets)
    return run


def resume_run(run: Run, settings: Settings, sets) -> None:
    """Let a run go on with these settings. Raises UserError if it began with other images."""
    record, before = run.record, run.record.settings
    if record.fingerprint != sets.fingerprint:
        what = _changes(record.images, count_images(sets)) or "as many, but others"
        problem = f"the images in {settings.data_dir} are not those {run.path} began with ({what})"
        raise UserError(f"{problem}: restore them, or train a new run without --resume", NO_DATA)
    differ = {name for name in ("epochs", "patience", *FINE_TUNING) if getattr(before, name) != getattr(settings, name)}
    if differ and not record.is_fine_tuned:  # no epoch of the earlier fine-tuning was finished
        workers.of_chief(lambda: shutil.rmtree(run.path / "checkpoints" / FINE_TUNED, ignore_errors=True))
        if differ & {"epochs", "patience"}:  # the head may not be over
            run.update(head_epochs=None)
    run.update(settings=settings)
    _write_lists(run, sets)


def _changes(before, now):
    """In words, which classes have another number of usable images; both as count_images() gives them."""
    totals = [{name: sum(sides.values()) for name, sides in images.items()} for images in (before, now)]
    pairs = {name: tuple(total.get(name, 0) for total in totals) for name in {**before, **now}}
    return "; ".join([f"{name!r} had {old}, now {new}" for name, (old, new) in pairs.items() if old != new][:3])


def _write_lists(run, sets):
    run.write("skipped.csv", csv_text(["path", "reason"], sets.skipped))
    if sets.near_copies:
        run.write(near_copies.FILE, near_copies.near_copies_text(sets))


def count_images(sets) -> dict:
    """{class: {"training": n, "validation": n}} of TrainSets."""
    sides = {"training": sets.train, "validation": sets.valid}
    return {
        name: {side: int((data_set.labels == label).sum()) for side, data_set in sides.items()}
        for label, name in enumerate(sets.classes)
    }


def versions() -> dict[str, str]:
    """{package: version} of all that shapes a training."""
    modules = {"tensorflow": tf, "keras": keras, "opencv": cv2, "numpy": np}
    return {"python": platform.python_version()} | {name: module.__version__ for name, module in modules.items()}


def device(settings: Settings) -> dict:
    """The devices that a training with these settings uses, and their arithmetic."""
    return {
        "gpus": [gpu.name for gpu in tf.config.list_logical_devices("GPU")],
        "cpu": cpu.name(),
        "cores": cpu.cores(),
        "instruction set": cpu.instruction_set(),
        "oneDNN": cpu.has_onednn(),
        "bfloat16": steps_in_bfloat16(settings),
    }


def say_what_differs(record: RunRecord) -> None:
    """Say in one line why a run that is resumed here may not end with the same weights as where it began."""
    began, now = record.versions | record.device, versions() | device(record.settings)
    del now["python"]
    others = [f"{name} {began[name]}, not {value}" for name, value in now.items() if began.get(name, value) != value]
    if others:
        say(f"note       it began with {'; '.join(others)}: do not expect the same weights, bit for bit")
