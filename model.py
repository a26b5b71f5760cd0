"""The networks, built from small helper functions."""

import contextlib

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from backbones import BACKBONES, create_backbone_network, with_middle_maps
from console import NO_DATA, UserError

keras.config.set_floatx("float32")  # whatever the user's ~/.keras/keras.json says
keras.config.set_image_data_format("channels_last")
tf.get_logger().setLevel("ERROR")  # not a page about each checkpoint that doesn't fit

# --- The network ------------------------------------------------------------------------------------------------------


def create_weights():
    """How weights start: a normal distribution with σ = 0.05, cut off at 2 σ."""
    return keras.initializers.TruncatedNormal(stddev=0.05)


def create_biases():
    """How biases start: a little above zero, so that every ReLU lets something through at first."""
    return keras.initializers.Constant(0.05)


@tf.custom_gradient
def bias_relu_pool(maps, biases):
    """Adds biases, (channels,), then ReLU, then 2×2 max-pooling: (n, h, w, channels) → (n, h // 2, w // 2, channels).

    TensorFlow makes a convolution and the first two of these one operation. Their gradients are taken behind the pooling,
    where there are a quarter as many: of each four, it passes on one and stops the others.
    """
    active = tf.nn.relu(tf.nn.bias_add(maps, biases))
    pooled = tf.nn.max_pool2d(active, 2, 2, "VALID")

    def gradients(slopes):
        slopes = tf.raw_ops.ReluGrad(gradients=slopes, features=pooled)
        sides = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "VALID"}
        slopes_of_maps = tf.raw_ops.MaxPoolGrad(orig_input=active, orig_output=pooled, grad=slopes, **sides)
        return slopes_of_maps, tf.reduce_sum(slopes, [0, 1, 2])  # BiasAddGrad would add up in bfloat16, and get stuck

    return pooled, gradients


class BiasReluPool(layers.Layer):
    """bias_relu_pool() with biases that learn."""

    def build(self, input_shape):
        self.bias = self.add_weight(name="bias", shape=(input_shape[-1],), initializer=create_biases())

    def call(self, maps):
        return bias_relu_pool(maps, tf.convert_to_tensor(self.bias))


def create_convolutional_layer(inputs, num_filters, name):
    """3×3 convolution, bias, ReLU, 2×2 max-pooling: (n, h, w, channels) → (n, h // 2, w // 2, num_filters)."""
    maps = layers.Conv2D(
        num_filters, 3, padding="same", use_bias=False, kernel_initializer=create_weights(), name=name
    )(inputs)
    return BiasReluPool(name=f"{name}_pool")(maps)


def create_flatten_layer(inputs):
    """(n, h, w, channels) → (n, h * w * channels)."""
    return layers.Flatten(name="flatten")(inputs)


def create_fc_layer(inputs, num_outputs, name, use_relu=True):
    """Fully connected layer, with ReLU if wanted: (n, features) → (n, num_outputs)."""
    outputs = layers.Dense(
        num_outputs, name=name, kernel_initializer=create_weights(), bias_initializer=create_biases()
    )(inputs)
    return layers.ReLU(name=f"{name}_relu")(outputs) if use_relu else outputs


def create_cnn(image_size, num_classes, dropout=0.0):
    """Three convolutions and two fully connected layers, in training with dropout before either of these.

    (n, image_size, image_size, 3) uint8 RGB → (n, num_classes) logits.
    """
    pictures = keras.Input((image_size, image_size, 3), dtype="uint8", name="pictures")
    maps = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(pictures)  # -1 … 1: around 0, training starts sooner
    maps = create_convolutional_layer(maps, 32, "conv1")
    maps = create_convolutional_layer(maps, 32, "conv2")
    maps = create_convolutional_layer(maps, 64, "conv3")
    features = create_flatten_layer(maps)
    features = layers.Dropout(dropout, name="drop1")(features)
    features = create_fc_layer(features, 128, "fc1")
    features = layers.Dropout(dropout, name="drop2")(features)
    logits = create_fc_layer(features, num_classes, "fc2", use_relu=False)
    return keras.Model(pictures, logits, name="cnn")


class BatchNormalization(layers.BatchNormalization):
    """Keras' batch normalization, which in training is one fused operation of TensorFlow instead of a dozen."""

    def call(self, inputs, training=False):
        if not training:
            return super().call(inputs, training=False)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta), epsilon=self.epsilon
        )
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

    (n, h, w, channels) → (n, h / stride, w / stride, num_filters). Where the shape changes, what is added is the input
    averaged over stride × stride, through a 1×1 convolution (He et al., "Bag of Tricks", 2019).
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
    """A residual network of three stages, for pictures of any size from 32 px: the average over all places decides.

    (n, side, side, 3) uint8 RGB → (n, num_classes) logits.
    """
    pictures = keras.Input((None, None, 3), dtype="uint8", name="pictures")
    maps = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(pictures)
    maps = create_normalized_convolution(maps, 32, "stem", stride=2)
    for stage, num_filters in enumerate((64, 128, 256), start=1):
        maps = create_residual_block(maps, num_filters, f"stage{stage}_block1", stride=2)
        maps = create_residual_block(maps, num_filters, f"stage{stage}_block2")
    features = layers.GlobalAveragePooling2D(name="average")(maps)
    features = layers.Dropout(dropout, name="drop")(features)
    logits = create_fc_layer(features, num_classes, "fc", use_relu=False)
    return keras.Model(pictures, logits, name="resnet")


NETWORKS = {"cnn": create_cnn, "resnet": create_resnet}
LANDMARKS = {"conv1_pool", "conv2_pool", "conv3_pool", "stem_relu", "stage1_block2_relu", "stage2_block2_relu"}


def create_network(name, image_size, num_classes, dropout=0.0):
    """The network that a card names. Raises UserError for a name this version does not have."""
    if name in BACKBONES:
        return create_backbone_network(name, image_size, num_classes, dropout)
    if name not in NETWORKS:
        raise UserError(f"this version has no network {name!r}, only {', '.join([*NETWORKS, *BACKBONES])}", NO_DATA)
    return NETWORKS[name](image_size, num_classes, dropout)


def with_features(network, kind):
    """The network with two outputs: features of the pictures, (n, features), and its logits.

    The features are to tell pictures of one sort from those of another. Of kind "last" they are what the last layer takes:
    best of a frozen backbone, which knows a thousand sorts. Layers that learnt these classes tell little but these classes;
    so of kind "maps" they are the mean of each map of LANDMARKS, or of those in the middle of a backbone.
    """
    if kind == "last":
        return keras.Model(network.input, (network.layers[-1].input, network.output))
    if network.name in BACKBONES:
        return with_middle_maps(network)
    means = [layers.GlobalAveragePooling2D()(layer.output) for layer in network.layers if layer.name in LANDMARKS]
    return keras.Model(network.input, (layers.Concatenate()(means), network.output))


def compile_outputs(network):
    """A fast `outputs(pictures)`: (n, image_size, image_size, 3) uint8 array → (n, classes) float32 array of logits.

    Of a part of a network, or one with several outputs, likewise what that takes and what it gives.
    """
    signature = tf.TensorSpec(network.input_shape, network.inputs[0].dtype)
    graph = tf.function(lambda pictures: network(pictures, training=False), input_signature=[signature])

    def outputs(pictures):
        if len(pictures) == 0:  # TensorFlow's convolutions refuse an empty batch
            return tf.nest.map_structure(lambda output: np.empty((0, *output.shape[1:]), np.float32), network.output)
        with enough_memory():
            return tf.nest.map_structure(lambda output: output.numpy(), graph(tf.constant(pictures)))

    return outputs


@contextlib.contextmanager
def enough_memory():
    """Turn the errors of a machine that is too small into a line with advice."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise UserError("not enough memory: train with a smaller --batch-size or --image-size") from None
