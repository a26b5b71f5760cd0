"""Several devices, in one machine or in several: the strategy that runs a step on each, and their shares of a batch."""

import contextlib
import functools
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from classifier.base.console import USAGE, UserError

SECONDS_TO_CONNECT = 600  # from the first worker to the last: clusters do not start all of them at once
SECONDS_WITHOUT_HEARTBEAT = 20  # until a worker counts as dead
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")  # of Linux: a folder for each
GO = b"go"  # what the first worker answers once all have come
SLURM_PORT = 8888  # of the first worker on a machine; the next ones have the next ports
_of_all_workers, _index = None, 0  # the strategy of all workers, once they are connected, and which of them this is


def create_strategy():
    """TensorFlow's strategy for the devices of all workers, or else of this machine: on each of them, or on the only one."""
    if _of_all_workers is not None:
        return _of_all_workers
    names = devices()
    return _of_all_devices(tuple(names)) if len(names) > 1 else tf.distribute.get_strategy()


@functools.cache
def _of_all_devices(names):
    """One strategy for all phases of a training: those of two would take each other's tensors for their own."""
    return tf.distribute.MirroredStrategy(list(names))


def devices():
    """Names of this worker's devices that train: its GPUs, or else its CPU."""
    if _of_all_workers is not None:
        return list(_of_all_workers.extended.worker_devices)
    logical = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name.removeprefix("/device:") for device in logical]


def unused_gpus():
    """Names of GPUs in this machine that TensorFlow does not find, although nobody has hidden them: [] if it finds any."""
    if tf.config.list_physical_devices("GPU") or "CUDA_VISIBLE_DEVICES" in os.environ:
        return []
    told = (path.read_text() for path in sorted(NVIDIA_GPUS.glob("*/information")))
    return [text.partition("Model:")[2].partition("\n")[0].strip() or "a GPU of NVIDIA" for text in told]


def let_memory_grow():
    """Let GPUs take memory as they need it; else TensorFlow takes all. It must come before anything uses them."""
    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # it is in use already
            tf.config.experimental.set_memory_growth(gpu, True)


def share_of_worker():
    """A function from the positions of a batch, (n,), to this worker's share of them; None if it is the only worker."""
    if _of_all_workers is None:
        return None
    here, everywhere = len(_of_all_workers.extended.worker_devices), _of_all_workers.num_replicas_in_sync
    return lambda positions: positions[np.arange(len(positions)) % everywhere // here == _index]


def on_devices(strategy, *specs):
    """A decorator that makes a graph, `step(images, labels)`, of a function that runs on the strategy's devices.

    `specs` are the TensorSpecs of images and labels. The graph takes those of this worker's share of a batch, of which each
    of its devices is fed its own share alone; the function takes the shares as a strategy's run() does.
    """

    def decorate(step):
        if strategy.num_replicas_in_sync == 1:
            return tf.function(step, input_signature=specs)
        names = strategy.extended.worker_devices

        @tf.function(input_signature=[(spec,) * len(names) for spec in specs])
        def step_of_shares(*columns):
            return step(*(_of_each_device(strategy, column) for column in columns))

        return lambda images, labels: step_of_shares(*zip(*shares_of(images, labels, names), strict=True))

    return decorate


def outputs_on_devices(strategy, network, outputs):
    """outputs(images), see compile_outputs(), of a network that all devices have: each of this worker computes its share."""
    names = strategy.extended.worker_devices if strategy.num_replicas_in_sync > 1 else []
    if len(names) < 2:
        return outputs

    @tf.function(input_signature=[(tf.TensorSpec(network.input_shape, network.inputs[0].dtype),) * len(names)])
    def outputs_of_shares(shares):
        images = _of_each_device(strategy, shares)
        return strategy.experimental_local_results(strategy.run(lambda share: network(share, training=False), (images,)))

    def joined(images):
        if len(images) < len(names):
            return outputs(images)
        shares = shares_of(images, np.zeros(len(images), np.int32), names)
        parts = outputs_of_shares(tuple(share for share, _ in shares))
        whole = np.empty((len(images), *network.output_shape[1:]), np.float32)
        for i, part in enumerate(parts):
            whole[i :: len(names)] = part.numpy()
        return whole

    return joined


def _of_each_device(strategy, values):
    """The values, one for each of this worker's devices, as a strategy's run() takes them."""
    pick = lambda context: values[context.replica_id_in_sync_group % len(values)]  # noqa: E731
    return strategy.experimental_distribute_values_from_function(pick)


def shares_of(images, labels, names):
    """Yield (images, labels) for each of the devices with these names, on that device: every so-maniest of a batch.

    A device for which none is left gets a black image with the label -1: see of_whole_batch().
    """
    for i, name in enumerate(names):
        share = images[i :: len(names)], labels[i :: len(names)]
        if i >= len(labels):
            share = np.zeros((1, *images.shape[1:]), images.dtype), np.full(1, -1, np.int32)
        with tf.device(name):
            yield tuple(map(tf.constant, share))


def of_whole_batch(labels):
    """In a step that a strategy runs, of the labels of this device's share: (labels, what each image counts, batch size).

    The batch size is that of all devices together, float32.
    """
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return labels, 1.0, tf.cast(tf.shape(labels)[0], tf.float32)
    counts = tf.cast(labels >= 0, tf.float32)  # (n,)
    return tf.maximum(labels, 0), counts, replica.all_reduce("SUM", tf.reduce_sum(counts))


def connect(addresses, index):
    """Connect with the workers at these addresses; this one has the index. Raises UserError if not all of them come.

    TensorFlow's coordination service, in the first one, then watches that all are alive: see SECONDS_WITHOUT_HEARTBEAT.
    """
    global _of_all_workers, _index
    from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
    from tensorflow.python.eager.context import context  # there is no public way to say how long to wait

    context().configure_coordination_service(
        "standalone",
        service_leader="/job:worker/replica:0/task:0",
        heartbeat_timeout_in_ms=1000 * SECONDS_WITHOUT_HEARTBEAT,
        coordinated_jobs=[CoordinatedJob(name="worker", num_tasks=len(addresses))],
    )
    gpus = len(tf.config.list_physical_devices("GPU"))
    cluster = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": addresses}),
        task_type="worker",
        task_id=index,
        rpc_layer="grpc",
        num_accelerators={"GPU": gpus},
    )
    let_memory_grow()
    _wait_for_all(addresses, index)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _of_all_workers, _index = tf.distribute.MultiWorkerMirroredStrategy(cluster), index
    except (tf.errors.OpError, RuntimeError) as error:
        raise UserError(f"cannot connect with {', '.join(addresses)}: {str(error).splitlines()[0]}") from None
    signal.signal(signal.SIGTERM, handler)  # TensorFlow has set its own


def _wait_for_all(addresses, index):
    """Wait until all workers are there: they report to the first one. Raises UserError after SECONDS_TO_CONNECT.

    TensorFlow waits, too, but without end, and it does not let Python react to signals.
    """
    host, _, port = addresses[0].rpartition(":")
    end = time.monotonic() + SECONDS_TO_CONNECT
    try:
        if index:
            while not _report(index, host.strip("[]"), int(port), end):
                if time.monotonic() > end:
                    raise UserError(f"worker 0 ({addresses[0]}) did not answer within {SECONDS_TO_CONNECT} seconds")
                time.sleep(0.2)
            return
        with socket.create_server(("", int(port))) as server:  # then TensorFlow listens there
            came = {}
            while missing := set(range(1, len(addresses))) - came.keys():
                if time.monotonic() > end:
                    names = ", ".join(f"worker {i} ({addresses[i]})" for i in sorted(missing))
                    raise UserError(f"{names} did not come within {SECONDS_TO_CONNECT} seconds")
                server.settimeout(1)
                with contextlib.suppress(TimeoutError, ConnectionError, ValueError):
                    connection, _ = server.accept()
                    connection.settimeout(5)
                    came[int(connection.recv(8))] = connection
            for connection in came.values():
                connection.sendall(GO)
                connection.close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"cannot connect with worker 0 at {addresses[0]}: {error}") from None


def _report(index, host, port, end):
    """Report to the first worker, and wait until it has heard of all; False if it is not there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(b"%8d" % index)
        connection.settimeout(max(end - time.monotonic(), 0.1))
        return connection.recv(len(GO)) == GO
    return False


def slurm_cluster():
    """(addresses, index): the workers of a job step of Slurm, and which of them this process is."""
    try:
        steps = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=SLURM_PORT, gpus_per_node=int(os.environ["SLURM_STEP_NUM_TASKS"]), gpus_per_task=1, auto_set_gpu=False
        )  # it wants GPUs, but Slurm itself says which are for whom
        addresses = steps.cluster_spec().as_dict()["worker"]
        here = f"{os.environ.get('SLURMD_NODENAME')}:{SLURM_PORT + int(os.environ.get('SLURM_LOCALID', 0))}"
        # Not in the order of Slurm's numbers: it sorts n10 before n9.
        return addresses, addresses.index(here) if here in addresses else int(os.environ["SLURM_PROCID"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot tell the workers from Slurm's variables: {error}", USAGE) from None


def gather_texts(text):
    """The texts of all workers, without line breaks, in their order; each must call this."""
    line = (text.rstrip() + "\n").encode()
    line = b" " * (-len(line) % 4) + line  # a whole number of int32
    return _joined(np.frombuffer(line, np.int32)).numpy().tobytes().decode().splitlines()


def highest(number):
    """The highest of the numbers of all workers, int32; each must call this."""
    return int(_joined(np.array([number], np.int32)).numpy().max())


def _joined(array):
    """The arrays of all workers, (n,) int32, joined."""
    strategy = _of_all_workers
    parts = [array] + [array[:0]] * (len(strategy.extended.worker_devices) - 1)  # the first device has it
    return _graph_that_joins(strategy, len(parts))(parts)


@functools.cache
def _graph_that_joins(strategy, devices_here):
    @tf.function(input_signature=[[tf.TensorSpec((None,), tf.int32)] * devices_here])
    def join(parts):
        return strategy.gather(_of_each_device(strategy, parts), axis=0)

    return join
