"""Power cuts: a training is recorded, and every state that a disk may be in after one is resumed from."""

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.reliability import Result, count
from tests.reliability.disk import Disk
from tests.reliability.trainings import Trainings, changes_of, problem_when_resumed

SAVE = re.compile(r"/checkpoints/(training|head)/ckpt-\d+\.index$")
SUBSETS = 4  # random ones at each change, beside all, none, all but one, and one alone


def check(folder: Path, short: bool, seed: int) -> Iterator[Result]:
    """Record trainings, then resume from the states that a cut at any change may leave.

    A state is what was synced, and any part of what was not: see Disk. Resumed, the run must end like the one that nothing
    disturbed, bit for bit; or, before anything of it was saved, it can be begun again.
    """
    trainings, output = Trainings(folder), folder / "disk" / "runs"
    for kind, most in ({"cnn": 4} if short else {"cnn": 200, "resnet": 60, "fine-tuning": 40}).items():
        flags = [*trainings.flags(kind), "--save-minutes", 0 if kind == "cnn" else 5]
        output.parent.mkdir()
        changes = changes_of(("train", *flags, "--output", output), output.parent)
        shutil.rmtree(output.parent)
        what = f"power cut while training ({kind}), at {len(changes)} places: states of the disk"
        yield count(what, cut(trainings, kind, flags, output, changes, most, seed), output.parent)


def cut(trainings, kind: str, flags: list, output: Path, changes: list, most: int, seed: int) -> Iterator[str | None]:
    """Resume from at most so many of the states, spread evenly over all."""
    states = lambda: distinct_states(changes, output.parent, seed, len(changes) // most + 1)  # noqa: E731
    chosen = set(np.linspace(0, sum(1 for _ in states()) - 1, most).astype(int))
    for number, files in (state for k, state in enumerate(states()) if k in chosen):
        Disk.write(files, output.parent)
        saves = [change for change in changes[:number] if change.kind == "rename" and SAVE.search(change.other)]
        problem = problem_when_resumed(flags, output, trainings.undisturbed(kind), may_be_lost=len(saves) < 2)
        yield problem and f"after change {number}: {problem}"


def distinct_states(changes: list, root: Path, seed: int, every: int) -> Iterator[tuple[int, dict]]:
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
