"""Power cuts: a training is recorded, and every state that a disk may be in after one is resumed from."""

import itertools
import re
import shutil

import numpy as np

from classifier.base.console import NO_DATA, say
from tests import faults
from tests.disk import Disk
from tools.reliability import Result
from tools.reliability.trainings import Trainings, call, difference, finish, sound, start

SAVE = re.compile(r"/checkpoints/training/ckpt-\d+\.index$")
SUBSETS = 4  # random ones at each change, beside all, none, all but one, and one alone


def check(folder, short, seed):
    """Record trainings, then resume from the states that a cut at any change may leave. Yields Results.

    A state is what was synced, and any part of what was not: see Disk. Resumed, the run must end like the one that nothing
    disturbed, bit for bit; or, before anything of it was saved, it can be begun again.
    """
    trainings = Trainings(folder)
    for kind, most in ({"cnn": 8} if short else {"cnn": 200, "resnet": 60, "fine-tuning": 40}).items():
        expected, output = trainings.undisturbed(kind), folder / "disk" / "runs"
        output.parent.mkdir()
        flags = [*trainings.flags(kind), "--output", output]
        watched = faults.environment(output.parent, log=folder / "log")
        sound(finish(start("train", *flags, "--save-minutes", 0 if kind == "cnn" else 5, env=watched)))
        changes = faults.read_log(folder / "log")
        (folder / "log").unlink()
        states = lambda: distinct_states(changes, output.parent, seed, len(changes) // most + 1)  # noqa: E731, B023
        count, failed = sum(1 for _ in states()), 0
        chosen = set(np.linspace(0, count - 1, most).astype(int))
        for number, files in itertools.compress(states(), (k in chosen for k in range(count))):
            shutil.rmtree(output.parent)
            Disk.write(files, output.parent)
            saves = [change for change in changes[:number] if change.kind == "rename" and SAVE.search(change.other)]
            problem = problem_after(flags, output, expected, may_be_lost=len(saves) < 2)
            if problem:
                failed += 1
                Disk.write(files, folder / f"{kind} cut after change {number}, {failed}")
                say(f"power cut after change {number} of {kind}: {problem}")
        shutil.rmtree(output.parent)
        yield Result(f"power cut while training ({kind}), at {len(changes)} places: states of the disk", len(chosen), failed)


def distinct_states(changes, root, seed, every=1):
    """Yield (number, files) of all states of a disk after a cut behind change `number`, one in `every`, each state once."""
    disk, seen, rng = Disk(root), set(), np.random.default_rng(seed)
    for number, change in enumerate(changes, 1):
        disk.apply(change)
        if number % every:
            continue
        pending = disk.pending
        subsets = [pending, []]
        for one in pending:
            subsets += [[one], [other for other in pending if other != one]]
        subsets += [[one for one in pending if rng.integers(2)] for _ in range(SUBSETS)]
        for kept, torn in itertools.product(subsets, (False, True)):
            files = disk.state(kept, torn)
            key = hash(frozenset(files.items()))
            if key not in seen:
                seen.add(key)
                yield number, files


def problem_after(flags, output, expected, may_be_lost):
    """What is wrong with a run after it was resumed, in words, or None; `expected` is the run that nothing disturbed.

    If it `may_be_lost`, because the first checkpoint had not been saved yet, it is begun again where it cannot be resumed.
    """
    finished = call("train", "--resume", "--output", output)
    if finished.returncode == NO_DATA and may_be_lost:
        finished = call("train", *flags)
    if finished.returncode:
        return f"exit code {finished.returncode}: {finished.stderr.strip()[-300:]}"
    return difference(max(output.glob("0*")), expected)
