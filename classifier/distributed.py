"""Several devices: the strategy that runs a step on each of them, and their shares of a batch."""

import contextlib

import numpy as np
import tensorflow as tf


def create_strategy():
    """TensorFlow's strategy for the devices of this machine: on each of them if there are several, else on the one."""
    names = devices()
    return tf.distribute.MirroredStrategy(names) if len(names) > 1 else tf.distribute.get_strategy()


def devices():
    """Names of the devices that train: this machine's GPUs, or else its CPU."""
    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # it is in use already
            tf.config.experimental.set_memory_growth(gpu, True)  # or all its memory would be taken from other programs
    logical = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name.removeprefix("/device:") for device in logical]


def on_devices(strategy, *specs):
    """A decorator that makes a graph, `step(images, labels)`, of a function that runs on the strategy's devices.

    `specs` are the TensorSpecs of images and labels. The graph takes the images and labels of a batch, of which each device
    is fed its share alone; the function takes the shares as a strategy's run() does.
    """

    def decorate(step):
        if strategy.num_replicas_in_sync == 1:
            return tf.function(step, input_signature=specs)
        names = strategy.extended.worker_devices

        @tf.function(input_signature=[(spec,) * len(names) for spec in specs])
        def step_of_shares(*columns):
            pick = strategy.experimental_distribute_values_from_function
            return step(*(pick(lambda context, c=column: c[context.replica_id_in_sync_group]) for column in columns))

        return lambda images, labels: step_of_shares(*zip(*shares_of(images, labels, names), strict=True))

    return decorate


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
