"""Several devices: the strategy that runs a step on each of them, and their shares of a batch."""

import tensorflow as tf


def create_strategy():
    """TensorFlow's strategy for the devices of this machine: all GPUs if there are several, else one device."""
    several = len(tf.config.list_logical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


def share_of_replica(images, labels, batch_size):
    """This device's share of a batch, in a step that a strategy runs: images, labels, and what each counts: (n,) or 1."""
    replica = tf.distribute.get_replica_context()
    replicas = replica.num_replicas_in_sync
    if replicas == 1:
        return images, labels, 1.0
    share = tf.range(replica.replica_id_in_sync_group, tf.maximum(batch_size, replicas), replicas)
    counts = tf.cast(share < batch_size, tf.float32)  # a device for which no image is left takes one that counts nothing
    return tf.gather(images, share % batch_size), tf.gather(labels, share % batch_size), counts
