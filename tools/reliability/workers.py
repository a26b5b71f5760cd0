"""Workers: several processes that train together do what one does; when one stops, all stop, and can be resumed."""

import shutil
import signal
import statistics
import time

import numpy as np

from classifier.base.console import DONE, FAILED, PROJECT, say
from classifier.runs.folder import find_run, read_metadata
from tools.reliability import Result
from tools.reliability.trainings import Trainings, distance, finish, sound
from tools.scripts import run_workers, start_workers

SAME = 1e-4  # relative: the difference between workers and one that is rounding
SEEDS = range(5)
KILLS = 10
SECONDS_TO_NOTICE = 60
SECONDS_OF_TRAINING = 6  # about, after the workers have met

# Trains as train.py does, and writes how many validation images it scores in each epoch into a file for each worker.
COUNTING = """
import sys
import train
from classifier.base import console
from classifier.cluster import workers
from classifier.training.state import Training
validation_batches = Training.validation_batches
def counted(training):
    count = 0
    for images, labels in validation_batches(training):
        count += len(labels)
        yield images, labels
    with open(f"{counts} {workers.index}", "a") as file:
        print(count, file=file)
Training.validation_batches = counted
counts = sys.argv.pop(1)
console.run(train.main)
"""

# Trains as train.py does, from weights that differ by about as much as float32 can tell apart.
ROUNDED = """
import sys
import numpy as np
import train
from classifier.base import console
from classifier.training.state import Training
restore = Training.restore
def restore_rounded(training):
    restore(training)
    if not training.epoch:
        rng = np.random.default_rng(0)
        weights = [value * (1 + 1e-7 * rng.choice([-1, 1], value.shape)) for value in training.networks.whole.get_weights()]
        for network in (training.networks.whole, training.networks.whole_average):
            network.set_weights([value.astype("float32") for value in weights])
Training.restore = restore_rounded
console.run(train.main)
"""

OTHER_VERSION = """
import train
from classifier.base import console
from classifier.runs import record as metadata
versions = metadata.versions
metadata.versions = lambda: versions() | {"keras": "3.0.0"}
console.run(train.main)
"""


def check(folder, short, seed):
    """Train with several workers, kill them, and let them differ. Yields Results."""
    rng, trainings = np.random.default_rng(seed), Trainings(folder)
    for kind in ("cnn",) if short else ("cnn", "resnet", "head", "fine-tuning"):
        for count in (2,) if short else (2, 4):
            yield compare_with_one(trainings, kind, count)
    yield kill_workers(trainings, folder / "killed", 1 if short else KILLS, rng)
    yield hang(trainings, folder / "hanging")
    yield differ(trainings, folder)


def flags_of(trainings, kind, seed=0):
    """Of a training in which rounding is all that may differ: in float32."""
    return [*trainings.flags(kind), "--no-mixed-precision", "--seed", seed]


def train(command, output, count=1):
    """Train with some workers into `output`, unless it is there already; returns the run folder."""
    if not output.exists():
        run_workers([[*command, "--output", output]] * count, cwd=PROJECT)
    return output / "001"


def alone(trainings, kind, seed=0):
    """The folder of a run of one worker."""
    return train(["train.py", *flags_of(trainings, kind, seed)], trainings.folder / f"one worker, {kind}, {seed}")


def compare_with_one(trainings, kind, count):
    """Whether some workers train what one does: a Result.

    A resnet amplifies rounding: where a number that is nearly 0 becomes positive or negative by it, a ReLU passes a gradient
    on or not, and the first steps of Adam are equally large for large and small gradients. So trainings with several seeds
    are compared, and in one of them all weights together must agree: if the workers did not compute the same, they would in
    none. Beside it is how far one worker is from itself, if it begins with weights that are rounded otherwise.
    """
    found, rounded, problem = [], [], None
    for seed in SEEDS if kind == "resnet" else [0]:
        output, counts = (trainings.folder / f"{kind}, {count} workers, {seed}{end}" for end in ("", ", scored"))
        flags, expected = flags_of(trainings, kind, seed), alone(trainings, kind, seed)
        run = train(["-c", COUNTING, counts, *flags], output, count)
        scored = sum(np.loadtxt(f"{counts} {index}", ndmin=1) for index in range(count))
        if (scored != sum(side["validation"] for side in read_metadata(run)["images"].values())).any():
            problem = f"{scored} images were scored"
        found.append(distance(run, expected))
        if kind == "resnet":
            rounded.append(distance(train(["-c", ROUNDED, *flags], trainings.folder / f"rounded, {seed}"), expected))
    if rounded:
        of_all, of_rounded = (sorted(one.all_weights for one in several) for several in (found, rounded))
        what = f"{kind}, {count} workers against one, {len(found)} seeds: all weights {_range(of_all)}"
        what += f"; one worker with other rounding {_range(of_rounded)}"
        agree = of_all[0] <= SAME
    else:
        what, agree = f"{kind}, {count} workers against one: {found[0]}", is_same(found[0])
    if not agree:
        problem = problem or "they differ"
    if problem:
        say(f"{what}: {problem}")
    return Result(what, len(found), int(problem is not None))


def _range(figures):
    """Sorted figures as text: the least, the median and the highest."""
    return f"{figures[0]:.0e}, {statistics.median(figures):.0e}, {figures[-1]:.0e}"


def is_same(found):
    """Whether a Distance, but for that of the optimizer's moments, can be of rounding alone."""
    return max(found.all_weights, found.weights, found.history) <= SAME


def kill_workers(trainings, output, kills, rng):
    """Kill one worker at a random moment, and start all again, until so many were killed. Returns a Result."""
    expected, flags, done, slowest, failed = alone(trainings, "cnn"), flags_of(trainings, "cnn"), 0, 0.0, 0
    resuming = False
    card = output / "001/model.json"  # it is written when all workers have met: until then they wait for each other
    while not failed:
        written = card.stat().st_mtime_ns if card.exists() else None
        count = int(rng.choice([2, 2, 4] if kills > 1 else [2]))
        command = ["train.py", *(["--resume"] if resuming else flags), "--output", output]
        processes = start_workers([command] * count, cwd=PROJECT)
        if done < kills:
            while (not card.exists() or card.stat().st_mtime_ns == written) and all(p.poll() is None for p in processes):
                time.sleep(0.05)
            time.sleep(rng.uniform(0, SECONDS_OF_TRAINING))
            victim = int(rng.integers(count))
            processes[victim].kill()
            killed = time.monotonic()
        finished = [finish(process) for process in processes]
        if done < kills and finished[victim].returncode == -signal.SIGKILL:
            done, slowest = done + 1, max(slowest, time.monotonic() - killed)
            others = finished[:victim] + finished[victim + 1 :]
            failed += report_survivors(others, time.monotonic() - killed)
            resuming = any(output.glob("*/checkpoints/*/ckpt-*.index"))
            if not resuming or read_metadata(output / "001")["finished"]:
                shutil.rmtree(output)
                resuming = False
        elif done < kills:
            shutil.rmtree(output)  # it was over before
            resuming = False
        else:
            for one in finished:
                sound(one)
            found = distance(find_run(output), expected)
            if not is_same(found):
                say(f"after {done} kills: {found}")
                failed += 1
            return Result(
                f"SIGKILL of one of 2 or 4 workers, all resumed: in the end, {found}; "
                f"at most {slowest:.0f} s until all have stopped",
                done,
                failed,
            )
    return Result("SIGKILL of one of 2 or 4 workers, all resumed", done, failed)


def report_survivors(others, seconds):
    """Say what is wrong with how the workers that were not killed ended: how many of them, 1 or 0."""
    for one in others:
        if seconds > SECONDS_TO_NOTICE or one.returncode not in (DONE, FAILED) or "Traceback" in one.stderr:
            say(f"after {seconds:.0f} s: exit code {one.returncode}: {one.stderr.strip()[-500:]}")
            return 1
    return 0


def hang(trainings, output):
    """A worker that hangs: the other one must stop. Returns a Result."""
    command = ["train.py", *flags_of(trainings, "cnn"), "--epochs", 200, "--output", output]
    first, other = start_workers([command] * 2, cwd=PROJECT)
    while not any(output.glob("*/checkpoints/*/ckpt-*.index")) and first.poll() is None:
        time.sleep(0.05)
    other.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    finished = finish(first)
    seconds = time.monotonic() - stopped
    other.kill()
    finish(other)
    is_told = finished.returncode == FAILED and "stopped or does not answer" in finished.stderr
    failed = not is_told or seconds > SECONDS_TO_NOTICE
    if failed:
        say(f"a worker hangs: after {seconds:.0f} s: exit code {finished.returncode}: {finished.stderr.strip()[-500:]}")
    return Result(f"a worker hangs (SIGSTOP): the other stops after {seconds:.0f} s", 1, int(failed))


def differ(trainings, folder):
    """Workers that differ must be refused before the first step, each in one line. Returns a Result."""
    images = folder / "images without one"
    shutil.copytree(trainings.images, images)
    next(images.glob("*/*.png")).unlink()
    flags, failed = flags_of(trainings, "cnn"), 0
    others = {
        "images": ["train.py", *flags, "--data-dir", images],
        "versions": ["-c", OTHER_VERSION, *flags],
        "settings": ["train.py", *flags, "--lr", 0.1],
    }
    for what, command in others.items():
        output = folder / f"other {what}"
        processes = start_workers([[*one, "--output", output] for one in (["train.py", *flags], command)], cwd=PROJECT)
        for one in map(finish, processes):
            last = one.stderr.strip().splitlines()[-1:]
            if one.returncode != FAILED or not last or f"differ in {what}: " not in last[0] or list(output.glob("0*")):
                say(f"other {what}: exit code {one.returncode}: {one.stderr.strip()[-500:]}")
                failed += 1
    return Result("workers with other images, versions or settings: refused before the first step", len(others), failed)
