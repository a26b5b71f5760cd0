"""Layers that compute what Keras' own would, faster or for several devices: tests/unit/test_networks.py compares them."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from classifier.cluster.devices import replica_of_several


class BiasReluPool(keras.layers.Layer):
    """Adds trainable biases, then ReLU, then 2×2 max-pooling: (n, h, w, channels) → (n, h // 2, w // 2, channels).

    Keras' layers do the same. One layer for all three makes the gradients cheaper: see bias_relu_pool().
    """

    def __init__(self, bias_initializer: str | keras.Initializer = "zeros", **options: Any) -> None:
        super().__init__(**options)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: tuple) -> None:
        self.bias = self.add_weight(name="bias", shape=(input_shape[-1],), initializer=self.bias_initializer)

    def call(self, maps: tf.Tensor) -> tf.Tensor:
        return bias_relu_pool(maps, tf.convert_to_tensor(self.bias))


@tf.custom_gradient
def bias_relu_pool(maps: tf.Tensor, biases: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The computation of BiasReluPool; `biases`: (channels,).

    TensorFlow fuses a convolution with the first two steps. Their gradients are computed after the pooling, where there are
    a quarter as many values: of each four, pooling passes one on, and the gradients of the others are 0.
    """
    active = tf.nn.relu(tf.nn.bias_add(maps, biases))
    pooled = tf.nn.max_pool2d(active, 2, 2, "VALID")

    def gradients(upstream):
        upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=pooled)
        windows = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "VALID"}
        maps_gradient = tf.raw_ops.MaxPoolGrad(orig_input=active, orig_output=pooled, grad=upstream, **windows)
        sums = tf.reduce_sum(tf.cast(upstream, tf.float32), [0, 1, 2])  # bfloat16, as in BiasAddGrad, is far too coarse
        return maps_gradient, tf.cast(sums, biases.dtype)

    return pooled, gradients


class Dropout(keras.layers.Dropout):
    """Keras' dropout, but each of several devices drops in its share of a batch what one device would drop there.

    With Keras' own, every device would drop the same positions of its share, and the result would depend on their number.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        replica = replica_of_several()
        if replica is None or not training or not self.rate:
            return super().call(inputs, training=training)
        devices, shape = replica.num_replicas_in_sync, tf.shape(inputs)
        whole = tf.ones(tf.concat([[devices * shape[0]], shape[1:]], axis=0), inputs.dtype)  # a batch, in the same order
        return inputs * super().call(whole, training=True)[replica.replica_id_in_sync_group :: devices]


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalization, but with one fused operation of TensorFlow in training instead of a dozen.

    Several devices normalize by the statistics of the whole batch, so that they train what one device would. So does Keras
    with `synchronized=True`, but its moving variance is divided by n, that of the fused operation by n - 1.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.autocast = False  # its weights stay float32 where maps are bfloat16

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training:
            return super().call(inputs, training=False)
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        replica = replica_of_several()
        if replica is None:
            outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(inputs, gamma, beta, epsilon=self.epsilon)
        else:
            maps = tf.cast(inputs, tf.float32)
            terms = tf.ones_like(maps[..., 0]), maps, tf.square(maps)
            count, sums, squares = replica.all_reduce("SUM", [tf.reduce_sum(term, [0, 1, 2]) for term in terms])
            mean = sums / count  # (channels,)
            variance = tf.maximum(squares / count - tf.square(mean), 0.0)
            outputs = tf.cast(tf.nn.batch_normalization(maps, mean, variance, beta, gamma, self.epsilon), inputs.dtype)
            variance *= count / (count - 1)  # as fused_batch_norm() returns it
        for average, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(self.momentum * average + (1 - self.momentum) * new)
        return outputs
