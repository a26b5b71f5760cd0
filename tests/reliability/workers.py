"""Workers: several processes that train together do what one does; when one stops, all stop, and can be resumed."""

import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from classifier.base.console import DONE, FAILED, PROJECT
from experiments.scripts import run_workers, start_workers
from tests.comparing import SAME, distance
from tests.reliability import Result, count
from tests.reliability.trainings import Trainings, end_of, finish, is_saved, sound

SEEDS = range(5)
KILLS = 10
SECONDS_TO_NOTICE = 60
SECONDS_OF_TRAINING = 6  # about, after the workers have met
TRAIN = PROJECT / "train.py"
# Trains as train.py does, with other packages.
OTHER_VERSION = f"import keras, runpy, sys; keras.__version__ = '3.0.0'; sys.path.insert(0, '{PROJECT}'); "
OTHER_VERSION += f"sys.argv[0] = '{TRAIN}'; runpy.run_path('{TRAIN}', run_name='__main__')"


def check(folder: Path, short: bool, seed: int) -> Iterator[Result]:
    """Train with several workers, kill them, and let them differ."""
    rng, trainings = np.random.default_rng(seed), Trainings(folder)
    for kind, number in [("cnn", 2)] if short else itertools.product(("cnn", "resnet", "head", "fine-tuning"), (2, 4)):
        yield compare_with_one(trainings, kind, number)
    output = folder / "disturbed"
    yield count("a worker hangs (SIGSTOP): the other one stops; both resumed", hang(trainings, output), output)
    if not short:
        for number in (2, 4):
            killed = kill_workers(trainings, output, number, KILLS // 2, rng)
            yield count(f"SIGKILL of one of {number} workers, all resumed", killed, output)
        yield count("workers with other images, versions or settings: refused", differ(trainings, output), output)


def flags_of(trainings, kind: str, seed: int = 0) -> list:
    """Of a training in which rounding is all that may differ: in float32."""
    return [*trainings.flags(kind), "--no-mixed-precision", "--seed", seed]


def alone(trainings, kind: str, seed: int = 0, instructions: str = "") -> Path:
    """The folder of a run of one worker, trained once; other instructions of the CPU round otherwise."""
    output = trainings.folder / f"one worker, {kind}, {seed}, {instructions}"
    if not output.exists():
        command = [sys.executable, TRAIN, *flags_of(trainings, kind, seed), "--output", output]
        environment = os.environ | ({"ONEDNN_MAX_CPU_ISA": instructions} if instructions else {})
        sound(subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True))
    return output / "001"


def compare_with_one(trainings, kind: str, number: int) -> Result:
    """Whether some workers train what one does.

    A resnet amplifies rounding: where a number that is nearly 0 becomes positive or negative by it, a ReLU passes a gradient
    on or not, and the first steps of Adam are equally large for large and small gradients. So trainings with several seeds
    are compared, and in one of them all weights together must agree: if the workers did not compute the same, they would in
    none. Beside it is how far one worker is from itself, if it rounds otherwise.
    """
    found, rounded = [], []
    for seed in SEEDS if kind == "resnet" else [0]:
        output = trainings.folder / f"{kind}, {number} workers, {seed}"
        run_workers([[TRAIN, *flags_of(trainings, kind, seed), "--output", output]] * number)
        found.append(distance(output / "001", alone(trainings, kind, seed)))
        if kind == "resnet":
            rounded.append(distance(alone(trainings, kind, seed, "SSE41"), alone(trainings, kind, seed)))
    what, agree = f"{kind}, {number} workers against one: {found[0]}", found[0].is_rounding
    if rounded:
        of_all, of_rounded = (sorted(one.all_weights for one in several) for several in (found, rounded))
        what = f"{kind}, {number} workers against one, {len(found)} seeds: all weights {_range(of_all)}"
        what += f"; one worker with other rounding {_range(of_rounded)}"
        agree = of_all[0] <= SAME
    return Result(what, len(found), int(not agree))


def _range(figures: list[float]) -> str:
    """Sorted figures as text: the least, the median and the highest."""
    return f"{figures[0]:.0e}, {statistics.median(figures):.0e}, {figures[-1]:.0e}"


def kill_workers(trainings, output: Path, number: int, kills: int, rng: np.random.Generator) -> Iterator[str | None]:
    """Kill one worker at a random moment after they have met."""
    for _ in range(kills):
        processes, record = start_training(trainings, output, number), output / "001/model.json"
        while not record.exists() and all(process.poll() is None for process in processes):
            time.sleep(0.05)
        time.sleep(rng.uniform(0, SECONDS_OF_TRAINING))
        yield problem_after(trainings, output, processes, int(rng.integers(number)), signal.SIGKILL)


def hang(trainings, output: Path) -> Iterator[str | None]:
    """Stop one worker, so that it hangs."""
    processes = start_training(trainings, output, 2)
    while not is_saved(output) and processes[0].poll() is None:
        time.sleep(0.05)
    yield problem_after(trainings, output, processes, 1, signal.SIGSTOP)


def start_training(trainings, output: Path, number: int, *flags) -> list[subprocess.Popen]:
    """Start a training with some workers."""
    return start_workers([[TRAIN, *(flags or flags_of(trainings, "cnn")), "--output", output]] * number)


def problem_after(trainings, output: Path, processes: list, victim: int, signum: int) -> str | None:
    """Send a signal to a worker: the others must stop soon, and all end as one would when started again."""
    processes[victim].send_signal(signum)
    started = time.monotonic()
    ended = [finish(process) for process in processes[:victim] + processes[victim + 1 :]]
    seconds = time.monotonic() - started
    processes[victim].kill()
    finish(processes[victim])
    for one in ended:
        if one.returncode not in (DONE, FAILED) or "Traceback" in one.stderr:
            return end_of(one)
    if seconds > SECONDS_TO_NOTICE:
        return f"it took {seconds:.0f} s until all had stopped"
    if any(one.returncode for one in ended):
        flags = ["--resume"] if is_saved(output) else flags_of(trainings, "cnn")
        for one in map(finish, start_training(trainings, output, len(processes), *flags)):
            if one.returncode:
                return f"resumed: {end_of(one)}"
    found = distance(max(output.glob("0*")), alone(trainings, "cnn"))
    return None if found.is_rounding else str(found)


def differ(trainings, output: Path) -> Iterator[str | None]:
    """Workers that differ must be refused before the first step, each in one line."""
    images = trainings.folder / "images without one"
    shutil.copytree(trainings.images, images)
    next(images.glob("*/*.png")).unlink()
    flags = flags_of(trainings, "cnn")
    others = {
        "images": [TRAIN, *flags, "--data-dir", images],
        "versions": ["-c", OTHER_VERSION, *flags],
        "settings": [TRAIN, *flags, "--lr", 0.1],
    }
    for what, command in others.items():
        for one in map(finish, start_workers([[*each, "--output", output] for each in ([TRAIN, *flags], command)])):
            is_told = one.returncode == FAILED and f"differ in {what}: " in one.stderr.strip().splitlines()[-1]
            if not is_told or list(output.glob("0*")):
                yield f"{what}: {end_of(one)}"
                break
        else:
            yield None
