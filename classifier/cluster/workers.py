"""Workers: the processes that train together, one on each machine, and what they tell each other.

All run the same command. The first one is the chief: it alone writes the run folder, and prints. TensorFlow is imported only
where there are several.
"""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from classifier.base import console
from classifier.base.console import USAGE, UserError

SECONDS_TO_CONNECT = 600  # from the first worker to the last: clusters do not start all of them at once
SECONDS_TO_BE_SILENT = 2  # then those that are awaited are named
SECONDS_TO_LINGER = 1  # when leaving: others may not have received yet what this worker has
SLURM_PORT = 8888  # of the first worker on a machine; the next ones have the next ports
addresses = [""]  # of all workers: see together()
index, count = 0, 1  # of this worker, and how many there are
strategy: Any = None  # TensorFlow's, of the devices of several workers
_join: Any = None  # joins their texts: see gather()


def is_chief() -> bool:
    """True for the first of several workers, and for the only one."""
    return index == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Connect with the other workers, if the environment names any; the error of one is the error of all.

    They leave together: until the chief has finished, the others wait for it.
    """
    global addresses, index, count
    addresses, index = cluster()
    if len(addresses) == 1:
        yield
        return
    import tensorflow as tf
    from tensorflow.python.eager.context import context  # there is no public way to tell an error to all

    console.is_silent = not is_chief()
    console.say(f"workers    {len(addresses)}, each takes its share of every batch: {', '.join(addresses)}")
    count = len(addresses)
    _wait_for_others()
    try:
        _connect()
        yield
        gather("done")
    except UserError as error:
        time.sleep(SECONDS_TO_LINGER)  # then those who know of it as well, see compare(), are on their way
        with contextlib.suppress(tf.errors.OpError):  # there has been another
            context().report_error_to_cluster(tf.errors.ABORTED, f"{_name(index)}: {error}")
        raise
    except tf.errors.OpError as error:
        raise UserError(_what_happened(error.message)) from None
    finally:
        time.sleep(SECONDS_TO_LINGER)


def cluster() -> tuple[list[str], int]:
    """(addresses, index): the workers that TF_CONFIG or Slurm names, and which of them this process is."""
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        config = json.loads(text)
        if jobs := config.get("cluster"):
            named = {(job, i): address for job in ("chief", "worker") for i, address in enumerate(jobs.get(job, []))}
            return list(named.values()), list(named).index((config["task"]["type"], int(config["task"]["index"])))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"TF_CONFIG does not name this worker among chief and worker: {text}", USAGE) from None
    if (tasks := os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == "1":
        return [""], 0
    import tensorflow as tf

    try:  # it wants GPUs, but Slurm itself says which are for whom
        options = {"port_base": SLURM_PORT, "gpus_per_node": int(tasks), "gpus_per_task": 1, "auto_set_gpu": False}
        found = tf.distribute.cluster_resolver.SlurmClusterResolver(**options).cluster_spec().as_dict()["worker"]
        here = f"{os.environ.get('SLURMD_NODENAME')}:{SLURM_PORT + int(os.environ.get('SLURM_LOCALID', 0))}"
        # Not in the order of Slurm's numbers: it sorts n10 before n9.
        return found, found.index(here) if here in found else int(os.environ["SLURM_PROCID"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot tell the workers from Slurm's variables: {error}", USAGE) from None


def _connect():
    """Make the strategy of all workers. TensorFlow's coordination service, in the chief, then watches that all are alive."""
    global strategy, _join
    import tensorflow as tf

    handler = signal.getsignal(signal.SIGTERM)
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    signal.signal(signal.SIGTERM, handler)  # TensorFlow has set its own

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
    def join(text):
        numbers = tf.io.decode_raw(text, tf.int32)  # TensorFlow gathers no texts
        return strategy.gather(strategy.experimental_distribute_values_from_function(lambda device: numbers), axis=0)

    _join = join


def _wait_for_others():
    """Wait until all workers listen, for SECONDS_TO_CONNECT: TensorFlow would wait longer, and no signal would end that."""
    import socket  # predict.py starts sooner without it

    missing, start, is_said = set(range(count)) - {index}, time.monotonic(), False
    try:
        with socket.create_server(("", int(addresses[index].rpartition(":")[2]))):  # then TensorFlow listens there
            while missing and time.monotonic() < start + SECONDS_TO_CONNECT:
                for i in sorted(missing):
                    host, _, port = addresses[i].rpartition(":")
                    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2):
                        missing.remove(i)
                if missing and not is_said and time.monotonic() > start + SECONDS_TO_BE_SILENT:
                    _say_who_is_awaited(sorted(missing))
                    is_said = True
                time.sleep(0.1)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"cannot listen at {addresses[index]}: {error}") from None
    if missing:
        raise UserError(f"{', '.join(map(_name, sorted(missing)))} did not come within {SECONDS_TO_CONNECT} seconds")


def _say_who_is_awaited(missing):
    """Each worker says it: the one process that was started, in a shell on a cluster perhaps, may not be the chief."""
    variable = "TF_CONFIG" if "cluster" in os.environ.get("TF_CONFIG", "") else "SLURM_STEP_NUM_TASKS"
    names = ", ".join(map(_name, missing))
    print(f"waiting for {len(missing)} of {count} workers, which {variable} names: {names}", file=sys.stderr)
    print(f"  to train alone, stop and start again: env -u {variable} python train.py …", file=sys.stderr, flush=True)


def gather(value: Any) -> list:
    """The values of all workers, JSON data, in their order; each must call this."""
    if count == 1:
        return [value]
    text = json.dumps(value, default=float)
    joined = _join(text + "\n".rjust(4 - len(text) % 4)).numpy()  # of whole int32, from each device of each worker
    return [json.loads(line) for line in joined.tobytes().splitlines()[:: len(strategy.extended.worker_devices)]]


def of_chief(compute: Callable[[], Any]) -> Any:
    """What compute() returns on the chief, JSON data; the other workers do not compute it."""
    return gather(compute() if is_chief() else None)[0]


def any_of(number: int | None) -> int | None:
    """The highest of the numbers of all workers, where None is none; each must call this."""
    return max(filter(None, gather(number)), default=None)


def sum_of_all(*numbers: float) -> list[float]:
    """The sums of the numbers of all workers."""
    return [sum(column) for column in zip(*gather(numbers), strict=True)]


def part_of(items: Sequence) -> Sequence:
    """This worker's part of a sequence; those of all workers, one after the other, are the whole."""
    return items[len(items) * index // count : len(items) * (index + 1) // count]


def compare(**values: Any) -> None:
    """Raise UserError on every worker unless all have the same values, JSON data: it says what differs, and where."""
    first, *others = gather(values)
    for i, other in enumerate(others, start=1):
        for name, value in first.items():
            if json.dumps(value) != json.dumps(other[name]):
                raise UserError(f"{_name(0)} and {_name(i)} differ in {name}: {_difference(value, other[name])}")


def _difference(one, other):
    """What differs between two values, in words."""
    if not isinstance(one, dict):
        return f"{one}, and {other}"
    keys = (key for key in {**one, **other} if one.get(key) != other.get(key))
    return next((f"{key} is {one.get(key, 'missing')}, and {other.get(key, 'missing')}" for key in keys), "their order")


def compare_files(found: Any) -> None:
    """Raise UserError on every worker unless all Found are the same: names, labels and sizes of files, in this order."""
    if count > 1:
        sizes = [os.path.getsize(path) if os.path.exists(path) else 0 for path in found.paths]
        labelled = enumerate(zip(sizes, found.labels, strict=True))
        compare(images={found.relative(i): f"{size} bytes of class {label}" for i, (size, label) in labelled})


def _name(worker):
    return f"worker {worker} ({addresses[worker]})"


def _what_happened(message):
    """An error of TensorFlow as a line: what another worker told, or else which one does not answer, if it is known."""
    if told := re.search(r"worker \d+ \(.*", message):
        return told[0]
    tasks = map(int, re.findall(r"/job:worker/(?:replica:0/)?task:(\d+)", message))
    who = ["another worker", *(_name(task) for task in tasks if task < count and task != index)][-1]
    return f"{who} stopped or does not answer: start all of them again, with --resume to continue from the last checkpoint"
