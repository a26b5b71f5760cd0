"""Work in threads, done a little before its results are needed."""

import collections
import concurrent.futures
import itertools

from classifier.base import cpu

PREFETCHED_BYTES = 1 << 29  # of results, at most, on a machine of however many cores


def prefetch(function, items, result_bytes):
    """Yield `function(item)` for each item, in order, computed in threads ahead of time.

    Up to four results for each core are ready or being computed; fewer, but at least two, if these, each of `result_bytes`,
    would take more than PREFETCHED_BYTES. An exception of `function` is raised at the turn of its item.
    """
    workers = cpu.cores()
    most = max(2, min(4 * workers, PREFETCHED_BYTES // result_bytes))
    items = iter(items)
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        waiting = collections.deque(pool.submit(function, item) for item in itertools.islice(items, most))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def in_chunks(items, size):
    """Yield the items, a sequence, `size` at a time; the last chunk may be smaller."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
