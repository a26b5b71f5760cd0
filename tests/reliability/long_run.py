"""A long run: thousands of epochs, with a checkpoint after each; memory, open files, threads and the disk stay the same."""

import json
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.reliability import Result, count
from tests.reliability.trainings import draw_images, finish, is_saved, sound, start

MOST_MORE = 64 << 20  # bytes of memory: in the first hundreds of epochs, allocators still take some
MOST_OF_LARGE = 1_900_000  # kB, of images of 512 px: 1.4 million with Keras 3.15, 1.7 with 3.12
HISTORY_ROW = 100  # bytes
WHAT = {"memory": " MB", "open files": "", "threads": "", "disk": " MB"}  # what is looked at, and units
UNITS = np.array([1e6, 1, 1, 1e6])


def check(folder: Path, short: bool, seed: int) -> Iterator[Result]:
    """Train for very many epochs, and look at the process meanwhile."""
    epochs, output = 100 if short else 5000, folder / "runs"
    images = draw_images(folder / "images")
    flags = ("--data-dir", images, "--image-size", 16, "--batch-size", 8, "--epochs", epochs, "--seed", seed)
    process = start("train", *flags, "--output", output, stdout=(folder / "log").open("w"))
    samples = []  # (memory, open files, threads, bytes on the disk)
    while process.poll() is None:
        if is_saved(output):
            samples += filter(None, [look_at(process.pid, output)])
        time.sleep(0.02 if short else 0.5)
    sound(finish(process))
    fifths = np.array_split(np.array(samples), 5)  # in the first one, libraries are still being loaded
    early, late = fifths[1].mean(axis=0), fifths[-1].mean(axis=0)
    most = np.array([MOST_MORE, 2, 2, early[3] / 2 + HISTORY_ROW * epochs])  # more, of each
    growing = [name for name, is_more in zip(WHAT, late - early > most, strict=True) if is_more]
    done = json.loads((output / "001/model.json").read_text())["epochs"]
    wrong = f"after {done} epochs, growing: {growing}" if growing or done != epochs else None
    figures = zip(WHAT.items(), early / UNITS, late / UNITS, strict=True)
    means = ", ".join(f"{name} {before:.1f} and {after:.1f}{unit}" for (name, unit), before, after in figures)
    what = f"{done:,} epochs with a checkpoint each: early and late, {means} ({len(samples):,} looks)"
    yield count(what, [wrong], output)
    if not short:
        yield calibrate_large_maps(draw_images(folder / "more images", 32), output)


def calibrate_large_maps(images: Path, output: Path) -> Result:
    """Whether calibration takes no more memory than training: at 512 px the maps of fifty images are a gigabyte."""
    large = ("--network", "resnet", "--image-size", 512, "--epochs", 1, "--batch-size", 2)
    process = start("train", "--data-dir", images, *large, "--output", output)
    sound(finish(process))
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the training before, of tiny images, took far less
    wrong = f"{most / 1e6:.1f} GB" if most > MOST_OF_LARGE else None
    return count(f"one epoch at 512 px with its calibration: at most {most / 1e6:.1f} GB of memory", [wrong], output)


def look_at(pid: int, output: Path) -> tuple | None:
    """(bytes of memory, open files, threads, bytes in a folder) of a process now; None if it has ended meanwhile."""
    try:
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.split(":", 1) for line in file)
        files = len(os.listdir(f"/proc/{pid}/fd"))
        disk = subprocess.run(["du", "-sb", output], capture_output=True, text=True).stdout  # files may vanish meanwhile
        return int(status["VmRSS"].split()[0]) * 1024, files, int(status["Threads"]), int(disk.split()[0])
    except (OSError, KeyError):
        return None
