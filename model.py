"""The model: networks built from small helper functions.

Read create_cnn() first: three convolutions and two fully connected layers.
"""

import keras
from keras import KerasTensor, layers

from classifier.networks.layers import BatchNormalization, BiasReluPool, Dropout  # as Keras' own, but faster: see there


def create_weights() -> keras.Initializer:
    """How weights start: a normal distribution with σ = 0.05, truncated at 2 σ."""
    return keras.initializers.TruncatedNormal(stddev=0.05)


def create_biases() -> keras.Initializer:
    """How biases start: a little above zero, so that every ReLU is active for some inputs at first."""
    return keras.initializers.Constant(0.05)


def create_convolutional_layer(inputs: KerasTensor, num_filters: int, name: str) -> KerasTensor:
    """3×3 convolution, bias, ReLU, 2×2 max-pooling: (n, h, w, channels) → (n, h // 2, w // 2, num_filters)."""
    convolution = layers.Conv2D(
        num_filters, 3, padding="same", use_bias=False, kernel_initializer=create_weights(), name=name
    )
    return BiasReluPool(create_biases(), name=f"{name}_pool")(convolution(inputs))


def create_flatten_layer(inputs: KerasTensor) -> KerasTensor:
    """(n, h, w, channels) → (n, h * w * channels)."""
    return layers.Flatten(name="flatten")(inputs)


def create_fc_layer(inputs: KerasTensor, num_outputs: int, name: str, use_relu: bool = True) -> KerasTensor:
    """Fully connected layer, with ReLU if wanted: (n, features) → (n, num_outputs)."""
    dense = layers.Dense(num_outputs, kernel_initializer=create_weights(), bias_initializer=create_biases(), name=name)
    return layers.ReLU(name=f"{name}_relu")(dense(inputs)) if use_relu else dense(inputs)


def create_cnn(image_size: int, num_classes: int, dropout: float = 0.0) -> keras.Model:
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


def create_normalized_convolution(
    inputs: KerasTensor, num_filters: int, name: str, kernel_size: int = 3, stride: int = 1, use_relu: bool = True
) -> KerasTensor:
    """Convolution, batch normalization, ReLU if wanted: (n, h, w, channels) → (n, h / stride, w / stride, num_filters)."""
    maps = layers.Conv2D(
        num_filters, kernel_size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )(inputs)
    maps = BatchNormalization(momentum=0.9, name=f"{name}_norm")(maps)
    return layers.ReLU(name=f"{name}_relu")(maps) if use_relu else maps


def create_residual_block(inputs: KerasTensor, num_filters: int, name: str, stride: int = 1) -> KerasTensor:
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


def create_resnet(image_size: int, num_classes: int, dropout: float = 0.0) -> keras.Model:  # noqa: ARG001  for any size
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
