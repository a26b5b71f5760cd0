"""Reliability: what happens to a run when the process, the disk or the input fails. See __main__.py."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from classifier.base.console import say


class Result(NamedTuple):
    """One row of docs/results/reliability.md."""

    what: str  # what was tried
    tried: int  # how often
    failed: int  # how often the promise was not kept; each time is said on standard error


def count(what: str, problems: Iterable[str | None], output: Path) -> Result:
    """Make trials: `problems` yields for each what is wrong, in words, or None.

    A trial finds no folder `output`, and may leave one; that of a trial that failed is kept under another name.
    """
    tried = failed = 0
    for problem in problems:
        tried += 1
        if problem:
            failed += 1
            say(f"{what}: {problem}")
            if output.exists():
                output.rename(output.with_name(f"{output.name} failed, {what}, {tried}".replace("/", "-")))
        shutil.rmtree(output, ignore_errors=True)
    return Result(what, tried, failed)
