"""Work in threads, done a little before its results are needed."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from classifier.base import cpu

PREFETCHED_BYTES = 1 << 29  # of results, at most, on a machine of however many cores


def prefetch(function: Callable, items: Iterable, result_bytes: int) -> Iterator[Any]:
    """Yield `function(item)` for each item, in order, computed in threads ahead of time.

    Up to four results for each core are ready or being computed; fewer, but at least two, if these, each of `result_bytes`,
    would take more than PREFETCHED_BYTES. An exception of `function` is raised at the turn of its item.
    """
    most = max(2, min(4 * cpu.cores(), PREFETCHED_BYTES // result_bytes))
    pool = concurrent.futures.ThreadPoolExecutor(cpu.cores())
    begun = (pool.submit(function, item) for item in items)
    try:
        waiting = collections.deque(itertools.islice(begun, most))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(itertools.islice(begun, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def in_chunks(items: Any, size: int) -> Iterator[Any]:
    """Yield the items, a sequence, `size` at a time; the last chunk may be smaller."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
