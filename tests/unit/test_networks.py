"""The network's mathematics: what is done for speed changes nothing but rounding."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from classifier.networks.layers import BatchNormalization
from classifier.training.optimizer import AdamW
from model import create_cnn


def plain_network(image_size, num_classes):
    """The default network as the tutorial writes it: bias before the pooling."""
    layers = keras.layers
    x = images = keras.Input((image_size, image_size, 3), dtype="uint8")
    x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    for filters in (32, 32, 64):
        x = layers.ReLU()(layers.MaxPooling2D(2)(layers.Conv2D(filters, 3, padding="same")(x)))
    x = layers.Dense(128, activation="relu")(layers.Flatten()(x))
    return keras.Model(images, layers.Dense(num_classes)(x))


def loss_and_gradients(network, pixels, labels):
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, network(pixels, training=True))
        loss = tf.reduce_mean(losses)
    return loss, tape.gradient(loss, network.trainable_variables)


def test_gradients_are_those_of_the_plain_formulation():
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), rng.integers(0, 3, 8, dtype=np.int32)
    keras.utils.set_random_seed(1)
    network, plain = create_cnn(32, 3), plain_network(32, 3)
    plain.set_weights(network.get_weights())
    (loss, gradients), (expected_loss, expected) = (loss_and_gradients(net, *batch) for net in (network, plain))
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert np.abs(gradient - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_batch_normalization_is_that_of_keras():
    rng = np.random.default_rng(0)
    maps, slope = rng.normal(3, 2, (2, 16, 8, 8, 5)).astype(np.float32)
    layers = BatchNormalization(momentum=0.9), keras.layers.BatchNormalization(momentum=0.9)
    results = []
    for layer in layers:
        layer.build(maps.shape)
        layer.set_weights(np.array([[0.5, 1, 1.5, 2, 3], [-1, 0, 1, 2, 3], [0] * 5, [1] * 5]))
        inputs = tf.constant(maps)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
        gradients = tape.gradient(outputs, [inputs, *layer.trainable_variables], output_gradients=tf.constant(slope))
        results.append([outputs, *gradients, layer.moving_mean, layer(inputs, training=False)])
    for result, expected in zip(*results, strict=True):
        # The last, by the moving variance: TensorFlow's divides by n - 1, n = 1,024 here.
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=2e-3)


def test_adamw_is_keras_adamw():
    gradients = np.random.default_rng(0).normal(size=(20, 50, 3)).astype(np.float32)
    ends = []
    for create in (lambda variables: AdamW(lambda step: 1e-2, 0.1, variables), lambda _: keras.optimizers.AdamW(1e-2, 0.1)):
        weights, bias = (keras.Variable(np.ones((50, 3), np.float32), name=name) for name in ("kernel", "bias"))
        optimizer = create([weights, bias])
        for gradient in gradients:
            optimizer.apply([tf.constant(gradient)] * 2, [weights, bias])
        ends.append((weights.numpy(), bias.numpy()))
    (weights, bias), (expected, decayed) = ends
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(decayed, expected)
    np.testing.assert_allclose(weights / bias, (1 - 1e-2 * 0.1) ** 20, rtol=0.01)  # nothing pulls biases towards 0


def test_the_network_is_the_documented_one():
    network = create_cnn(128, 2)
    shapes = [(3, 3, 3, 32), (3, 3, 32, 32), (3, 3, 32, 64), (16 * 16 * 64, 128), (128, 2)]
    assert [weights.shape for weights in network.get_weights()] == [x for shape in shapes for x in (shape, shape[-1:])]
    for weights in network.get_weights():
        if weights.ndim == 1:
            np.testing.assert_array_equal(weights, np.float32(0.05))
        elif weights.size > 800:
            assert weights.std() == pytest.approx(0.05 * 0.88, rel=0.1)  # a normal cut off at 2 σ has 0.88 of its σ
            assert np.abs(weights).max() <= 0.1
