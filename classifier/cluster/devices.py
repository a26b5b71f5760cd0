"""Several devices, in one machine or in several: the strategy that runs a step on each, and their shares of a batch."""

import functools
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from classifier.cluster import workers


@functools.cache  # for all phases of a training: the strategies of two would take each other's tensors for their own
def create_strategy() -> tf.distribute.Strategy:
    """TensorFlow's strategy for the devices of all workers, or else of this machine: on each of them, or on the only one."""
    if workers.strategy is not None:
        return workers.strategy
    names = devices()
    return tf.distribute.MirroredStrategy(names) if len(names) > 1 else tf.distribute.get_strategy()


def devices() -> list[str]:
    """Names of this worker's devices that train: its GPUs, or else its CPU."""
    if workers.strategy is not None:
        return list(workers.strategy.extended.worker_devices)
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name.removeprefix("/device:") for device in found]


def share_of_worker() -> Callable[[np.ndarray], np.ndarray] | None:
    """A function from the positions of a batch, (n,), to this worker's share of them; None if it is the only worker."""
    if workers.count == 1:
        return None
    here, everywhere = len(devices()), create_strategy().num_replicas_in_sync
    return lambda positions: positions[np.arange(len(positions)) % everywhere // here == workers.index]


def on_devices(strategy: tf.distribute.Strategy, *specs: tf.TensorSpec) -> Callable:
    """A decorator that makes a graph, `step(*columns)`, of a function that runs on the strategy's devices.

    `specs` are the TensorSpecs of the columns of a batch: images, labels. The graph takes this worker's share of a batch, of
    which each of its devices is fed its own share alone; the function takes the shares as a strategy's run() does.
    """
    names = devices()

    def of_device(shares):
        pick = lambda device: shares[device.replica_id_in_sync_group % len(names)]  # noqa: E731
        return strategy.experimental_distribute_values_from_function(pick)

    def decorate(step):
        if strategy.num_replicas_in_sync == 1:
            return tf.function(step, input_signature=specs)
        signature = [(spec,) * len(names) for spec in specs]
        graph = tf.function(lambda *columns: step(*map(of_device, columns)), input_signature=signature)
        return lambda *columns: graph(*zip(*shares_of(columns, names), strict=True))

    return decorate


def outputs_on_devices(strategy: tf.distribute.Strategy, network: keras.Model, outputs: Callable) -> Callable:
    """outputs(images), see compile_outputs(), of a network that all devices have: each of this worker computes its share."""
    count = len(devices())
    if count == 1:
        return outputs

    @on_devices(strategy, tf.TensorSpec(network.input_shape, network.inputs[0].dtype))
    def outputs_of_shares(images):
        return strategy.experimental_local_results(strategy.run(lambda share: network(share, training=False), (images,)))

    def joined(images):
        whole = np.empty((len(images), *network.output_shape[1:]), np.float32)
        for i, part in enumerate(outputs_of_shares(images)):
            whole[i::count] = part[: len(whole[i::count])]  # nothing of a device without a share
        return whole

    return joined


def shares_of(columns: Sequence[np.ndarray], names: Sequence[str]) -> Iterator[tuple[tf.Tensor, ...]]:
    """Yield the share of a batch, (images, labels), of each of the devices with these names, on it: every Nth image.

    A device for which none is left gets a black image with the label -1: see of_whole_batch().
    """
    for i, name in enumerate(names):
        share = [column[i :: len(names)] for column in columns]
        if not len(share[0]):
            share = [np.full((1, *column.shape[1:]), 0 if column.ndim > 1 else -1, column.dtype) for column in columns]
        with tf.device(name):
            yield tuple(map(tf.constant, share))


def replica_of_several() -> tf.distribute.ReplicaContext | None:
    """In a step that a strategy runs on several devices, TensorFlow's context of this one; None on a single one."""
    replica = tf.distribute.get_replica_context()
    return replica if replica is not None and replica.num_replicas_in_sync > 1 else None


def of_whole_batch(labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | float, tf.Tensor]:
    """In a step that a strategy runs, of the labels of this device's share: (labels, what each image counts, batch size).

    The batch size is that of all devices together, float32.
    """
    replica = replica_of_several()
    if replica is None:
        return labels, 1.0, tf.cast(tf.shape(labels)[0], tf.float32)
    counts = tf.cast(labels >= 0, tf.float32)  # (n,)
    return tf.maximum(labels, 0), counts, replica.all_reduce("SUM", tf.reduce_sum(counts))
