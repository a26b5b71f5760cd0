"""Reliability: what happens to a run when the process, the disk or the input fails. See __main__.py."""

from typing import NamedTuple


class Result(NamedTuple):
    """One row of results/reliability.md."""

    what: str  # what was tried
    tried: int  # how often
    failed: int  # how often the promise was not kept; each time is said on standard error
