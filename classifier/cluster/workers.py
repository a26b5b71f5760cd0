"""Workers: the processes that train together, one on each machine, and what they tell each other.

All run the same command. The first one is the chief: it alone writes the run folder, and prints. TensorFlow is needed only
where there are several.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time

from classifier.base import console
from classifier.base.console import USAGE, UserError

SECONDS_TO_TELL = 10  # an error: the others may be busy with something else
SECONDS_TO_LINGER = 1  # when leaving: others may not have received yet what this worker has
index, count = 0, 1  # of this worker, and how many there are: see together()
addresses = []


class KnownError(UserError):
    """An error that all workers know of."""


def is_chief():
    """True for the first of several workers, and for the only one."""
    return index == 0


@contextlib.contextmanager
def together():
    """Connect with the other workers, if the environment names any; the error of one is the error of all.

    They leave together: until the chief has finished, the others wait for it.
    """
    global index, count, addresses
    addresses, index = cluster()
    if len(addresses) == 1:
        yield
        return
    import tensorflow as tf

    from classifier.cluster import devices

    console.is_silent = not is_chief()
    console.say(f"workers    {len(addresses)}, each takes its share of every batch: {', '.join(addresses)}")
    devices.connect(addresses, index)
    count = len(addresses)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if is_chief() else nowhere):
        try:
            yield
            gather("done")
        except KnownError:
            raise
        except UserError as error:
            _tell(str(error))
            raise
        except tf.errors.OpError as error:
            raise UserError(_who_stopped(error)) from None
        finally:
            time.sleep(SECONDS_TO_LINGER)


def cluster():
    """(addresses, index): the workers that TF_CONFIG or Slurm names, and which of them this process is."""
    if text := os.environ.get("TF_CONFIG"):
        try:
            config = json.loads(text)
            jobs, task = config.get("cluster", {}), config.get("task", {})
            if not jobs:
                return [""], 0
            chiefs, workers = jobs.get("chief", []), jobs.get("worker", [])
            own = {"chief": 0, "worker": len(chiefs)}[task["type"]] + int(task["index"])
            return [*chiefs, *workers], range(len(chiefs) + len(workers))[own]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise UserError(f"TF_CONFIG does not name this worker among chief and worker: {text}", USAGE) from None
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        from classifier.cluster.devices import slurm_cluster

        return slurm_cluster()
    return [""], 0


def gather(value):
    """The values of all workers, JSON data, in their order; each must call this. Raises KnownError if one tells an error."""
    if count == 1:
        return [value]
    from classifier.cluster.devices import gather_texts

    told = [json.loads(text) for text in gather_texts(json.dumps([value, None], default=float))]
    for i, (_, error) in enumerate(told):
        if error is not None:
            raise KnownError(f"worker {i} ({addresses[i]}): {error}")
    return [value for value, _ in told]


def of_chief(compute):
    """What compute() returns on the chief, JSON data; the other workers do not compute it."""
    if count == 1:
        return compute()
    return gather(compute() if is_chief() else None)[0]


def compare(**values):
    """Raise KnownError on every worker unless all have the same values, JSON data: it says what differs, and where."""
    first, *others = gather(values)
    for i, other in enumerate(others, start=1):
        for name in first:
            if other[name] != first[name]:
                raise KnownError(
                    f"worker 0 ({addresses[0]}) and worker {i} ({addresses[i]}) differ in"
                    f" {_difference(name, first[name], other[name])}"
                )


def _difference(name, one, other):
    """What differs between two values of this name, in words."""
    if isinstance(one, dict) and isinstance(other, dict):
        key = next(key for key in {**one, **other} if one.get(key) != other.get(key))
        return f"{name}: {key} is {one.get(key, 'missing')}, and {other.get(key, 'missing')}"
    return f"{name}: {one}, and {other}"


def compare_files(found):
    """Raise KnownError on every worker unless all Found are the same: names, labels and sizes of files, in this order."""
    if count == 1:
        return
    files = {}
    for i, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
        files[found.relative(i)] = f"{os.path.getsize(path) if os.path.exists(path) else 0} bytes of class {label}"
    if len(set(gather(hashlib.blake2b(json.dumps(files).encode()).hexdigest()))) > 1:  # or it would be much to gather
        compare(images=files)
        raise KnownError("the workers find the same images in another order")


def part_of(items):
    """This worker's part of a sequence; those of all workers, one after the other, are the whole."""
    return items[len(items) * index // count : len(items) * (index + 1) // count]


def any_of(number):
    """The highest of the numbers of all workers, where None is none; each must call this."""
    if count == 1:
        return number
    from classifier.cluster.devices import highest

    return highest(number or 0) or None


def sum_of_all(*numbers):
    """The sums of the numbers of all workers."""
    return [sum(column) for column in zip(*gather(numbers), strict=True)]


def _tell(error):
    """Tell the others an error, if they come to listen soon: they may be waiting for something else."""
    from classifier.cluster.devices import gather_texts

    def tell():
        with contextlib.suppress(Exception):  # they did not listen
            gather_texts(json.dumps([None, error]))

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_TELL)


def _who_stopped(error):
    """An error of TensorFlow as a line: which worker does not answer, if it knows."""
    named = re.findall(r"/job:worker/(?:replica:0/)?task:(\d+)", error.message)
    others = [int(i) for i in named if int(i) not in (index, len(addresses))]
    who = f"worker {others[-1]} ({addresses[others[-1]]})" if others else "another worker"
    return f"{who} stopped or does not answer: start all of them again, with --resume to continue from the last checkpoint"
