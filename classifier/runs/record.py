"""Run metadata: what model.json records of a training, and where it runs."""

import platform
import shutil

import cv2
import numpy as np
import tensorflow as tf

from classifier.base import cpu
from classifier.base.console import NO_DATA, UserError, say
from classifier.base.files import csv_text, write_text
from classifier.cluster import workers
from classifier.data import near_copies
from classifier.networks.pretrained import FEATURE_SCALES
from classifier.runs.folder import read_metadata, write_metadata
from classifier.training.optimizer import steps_in_bfloat16
from classifier.training.settings import FINE_TUNING, is_fine_tuned, trains_head


def begin_run(run, settings, sets, resuming):
    """Write the metadata and skipped.csv of a run that begins, or is resumed with these settings. Returns the metadata.

    Raises UserError if it was begun with other images.
    """
    metadata = read_metadata(run) if resuming else make_metadata(settings, sets)
    before, metadata["settings"] = metadata.get("settings", settings), settings
    if metadata.get("fingerprint") != sets.fingerprint:
        raise UserError(f"the images in {settings['data_dir']} are not those {run} began with", NO_DATA)
    other_head = any(before.get(name) != settings[name] for name in ("epochs", "patience"))
    other_fine_tuning = other_head or any(before.get(name) != settings[name] for name in FINE_TUNING)
    if other_fine_tuning and not is_fine_tuned(metadata, before):  # no epoch of the earlier one was finished
        shutil.rmtree(run / "checkpoints" / "fine_tuning", ignore_errors=True)
        if other_head:  # it may not be over
            metadata.pop("head_epochs", None)
    write_metadata(run, metadata)
    write_text(run / "skipped.csv", csv_text(["path", "reason"], sets.skipped))
    if sets.near_copies:
        write_text(run / near_copies.FILE, near_copies.near_copies_text(sets))
    return metadata


def prepare_machines(settings):
    """Compare the workers, if there are several.

    Raises UserError on every worker unless all have the same settings, versions of packages, and number of devices.
    """
    paths = ("data_dir", "validation_dir", "weights")  # may be others on each machine: what they hold is compared later
    packages = {name: version for name, version in versions().items() if name != "python"}
    devices = {"number of GPUs": len(tf.config.list_physical_devices("GPU")), "bfloat16": steps_in_bfloat16(settings)}
    settings = {name: str(value) for name, value in settings.items() if name not in paths}
    workers.compare(settings=settings, versions=packages, devices=devices)


def make_metadata(settings, sets):
    """The metadata of a new run: all that prediction needs, and all that shaped the network."""
    return {
        "network": settings["network"],
        "classes": sets.classes,
        "image_size": settings["image_size"],
        "feature_scales": FEATURE_SCALES if trains_head(settings) else 1,
        "fit": settings["fit"],
        "images": count_images(sets),
        "skipped": len(sets.skipped),
        "split": sets.split,
        "fingerprint": sets.fingerprint,
        "versions": versions(),
        "device": device(settings),
        "finished": False,
    }


def count_images(sets):
    """{class: {"training": n, "validation": n}}."""
    sides = {"training": sets.train, "validation": sets.valid}
    return {
        name: {side: int((data_set.labels == label).sum()) for side, data_set in sides.items()}
        for label, name in enumerate(sets.classes)
    }


def versions():
    """{package: version} of all that shapes a training."""
    modules = {"tensorflow": tf, "keras": tf.keras, "opencv": cv2, "numpy": np}
    return {"python": platform.python_version()} | {name: module.__version__ for name, module in modules.items()}


def device(settings):
    """The devices that a training with these settings uses, and their arithmetic."""
    return {
        "gpus": [gpu.name for gpu in tf.config.list_logical_devices("GPU")],
        "cpu": cpu.name(),
        "cores": cpu.cores(),
        "instruction set": cpu.instruction_set(),
        "oneDNN": cpu.has_onednn(),
        "bfloat16": steps_in_bfloat16(settings),
    }


def say_what_differs(metadata):
    """Say in one line why a run that is resumed here may not end with the same weights as where it began."""
    if "device" not in metadata:
        say("note       it began with an earlier version of this project: do not expect the same weights, bit for bit")
        return
    began = metadata.get("versions", {}) | metadata["device"]
    now = versions() | device(metadata["settings"])
    del now["python"]
    others = [f"{name} {began[name]}, not {value}" for name, value in now.items() if began.get(name, value) != value]
    if others:
        say(f"note       it began with {'; '.join(others)}: do not expect the same weights, bit for bit")
