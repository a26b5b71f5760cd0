"""The model: networks built from small helper functions.

Read create_cnn() first: three convolutions and two fully connected layers.
"""

import keras
import tensorflow as tf
from keras import layers


def create_weights():
    """How weights start: a normal distribution with σ = 0.05, truncated at 2 σ."""
    return keras.initializers.TruncatedNormal(stddev=0.05)


def create_biases():
    """How biases start: a little above zero, so that every ReLU is active for some inputs at first."""
    return keras.initializers.Constant(0.05)


def create_convolutional_layer(inputs, num_filters, name):
    """3×3 convolution, bias, ReLU, 2×2 max-pooling: (n, h, w, channels) → (n, h // 2, w // 2, num_filters)."""
    maps = layers.Conv2D(num_filters, 3, padding="same", use_bias=False, kernel_initializer=create_weights(), name=name)(
        inputs
    )
    return BiasReluPool(name=f"{name}_pool")(maps)


def create_flatten_layer(inputs):
    """(n, h, w, channels) → (n, h * w * channels)."""
    return layers.Flatten(name="flatten")(inputs)


def create_fc_layer(inputs, num_outputs, name, use_relu=True):
    """Fully connected layer, with ReLU if wanted: (n, features) → (n, num_outputs)."""
    outputs = layers.Dense(num_outputs, name=name, kernel_initializer=create_weights(), bias_initializer=create_biases())(
        inputs
    )
    return layers.ReLU(name=f"{name}_relu")(outputs) if use_relu else outputs


def create_cnn(image_size, num_classes, dropout=0.0):
    """Three convolutions and two fully connected layers; dropout before each of the latter, in training only.

    (n, image_size, image_size, 3) uint8 RGB → (n, num_classes) logits.
    """
    images = keras.Input((image_size, image_size, 3), dtype="uint8", name="images")
    maps = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(images)  # -1 … 1: centred on 0, training starts faster
    maps = create_convolutional_layer(maps, 32, "conv1")
    maps = create_convolutional_layer(maps, 32, "conv2")
    maps = create_convolutional_layer(maps, 64, "conv3")
    features = create_flatten_layer(maps)
    features = Dropout(dropout, name="drop1")(features)
    features = create_fc_layer(features, 128, "fc1")
    features = Dropout(dropout, name="drop2")(features)
    logits = create_fc_layer(features, num_classes, "fc2", use_relu=False)
    return keras.Model(images, logits, name="cnn")


class Dropout(layers.Dropout):
    """Keras' dropout, but each of several devices drops in its share of a batch what one device would drop there."""

    def call(self, inputs, training=False):
        replica = tf.distribute.get_replica_context()
        if not training or not self.rate or replica is None or replica.num_replicas_in_sync == 1:
            return super().call(inputs, training=training)
        devices, shape = replica.num_replicas_in_sync, tf.shape(inputs)
        whole = tf.ones(tf.concat([[devices * shape[0]], shape[1:]], axis=0), inputs.dtype)  # a batch, in the same order
        return inputs * super().call(whole, training=True)[replica.replica_id_in_sync_group :: devices]


class BiasReluPool(layers.Layer):
    """bias_relu_pool() with trainable biases."""

    def build(self, input_shape):
        self.bias = self.add_weight(name="bias", shape=(input_shape[-1],), initializer=create_biases())

    def call(self, maps):
        return bias_relu_pool(maps, tf.convert_to_tensor(self.bias))


@tf.custom_gradient
def bias_relu_pool(maps, biases):
    """Adds biases, (channels,), then ReLU, then 2×2 max-pooling: (n, h, w, channels) → (n, h // 2, w // 2, channels).

    TensorFlow fuses a convolution with the first two. Their gradients are computed after the pooling, where there are a
    quarter as many values: of each four, pooling passes one on, and the gradients of the others are 0.
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


class BatchNormalization(layers.BatchNormalization):
    """Keras' batch normalization, but with one fused operation of TensorFlow in training instead of a dozen.

    Several devices normalize by the statistics of the whole batch, so that they train what one device would.
    """

    def __init__(self, **options):
        super().__init__(**options)
        self.autocast = False  # its weights stay float32 where maps are bfloat16

    def call(self, inputs, training=False):
        if not training:
            return super().call(inputs, training=False)
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(inputs, gamma, beta, epsilon=self.epsilon)
        else:
            maps = tf.cast(inputs, tf.float32)
            count, sums, squares = replica.all_reduce(
                "SUM",
                [
                    tf.reduce_sum(tf.ones_like(maps[..., 0])),
                    tf.reduce_sum(maps, [0, 1, 2]),
                    tf.reduce_sum(tf.square(maps), [0, 1, 2]),
                ],
            )
            mean = sums / count  # (channels,)
            variance = tf.maximum(squares / count - tf.square(mean), 0.0)
            outputs = tf.cast(tf.nn.batch_normalization(maps, mean, variance, beta, gamma, self.epsilon), inputs.dtype)
            variance *= count / (count - 1)  # as fused_batch_norm() returns it
        for average, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(self.momentum * average + (1 - self.momentum) * new)
        return outputs


def create_normalized_convolution(inputs, num_filters, name, kernel_size=3, stride=1, use_relu=True):
    """Convolution, batch normalization, ReLU if wanted: (n, h, w, channels) → (n, h / stride, w / stride, num_filters)."""
    maps = layers.Conv2D(
        num_filters, kernel_size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )(inputs)
    maps = BatchNormalization(momentum=0.9, name=f"{name}_norm")(maps)
    return layers.ReLU(name=f"{name}_relu")(maps) if use_relu else maps


def create_residual_block(inputs, num_filters, name, stride=1):
    """Two convolutions whose result is added to their input (He et al., "Deep Residual Learning", 2016).

    (n, h, w, channels) → (n, h / stride, w / stride, num_filters). Where the shape changes, the shortcut is an average
    over stride × stride and a 1×1 convolution (He et al., "Bag of Tricks", 2019).
    """
    maps = create_normalized_convolution(inputs, num_filters, f"{name}_conv1", stride=stride)
    maps = create_normalized_convolution(maps, num_filters, f"{name}_conv2", use_relu=False)
    shortcut = inputs
    if stride > 1:
        shortcut = layers.AveragePooling2D(stride, padding="same", name=f"{name}_pool")(shortcut)
    if shortcut.shape[-1] != num_filters:
        shortcut = create_normalized_convolution(shortcut, num_filters, f"{name}_shortcut", kernel_size=1, use_relu=False)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([maps, shortcut]))


def create_resnet(image_size, num_classes, dropout=0.0):
    """A residual network of three stages and global average pooling, for images of any size from 32 px.

    (n, side, side, 3) uint8 RGB → (n, num_classes) logits.
    """
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    maps = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(images)
    maps = create_normalized_convolution(maps, 32, "stem", stride=2)
    for stage, num_filters in enumerate((64, 128, 256), start=1):
        maps = create_residual_block(maps, num_filters, f"stage{stage}_block1", stride=2)
        maps = create_residual_block(maps, num_filters, f"stage{stage}_block2")
    features = layers.GlobalAveragePooling2D(name="average")(maps)
    features = Dropout(dropout, name="drop")(features)
    logits = create_fc_layer(features, num_classes, "fc", use_relu=False)
    return keras.Model(images, logits, name="resnet")
