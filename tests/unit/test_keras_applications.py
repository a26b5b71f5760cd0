"""The networks of keras.applications, with their preprocessing before them and a head of ours."""

import keras
import numpy as np
import pytest

from classifier.networks import PRETRAINED_NETWORKS
from classifier.networks.by_name import create_network, with_features
from classifier.networks.pretrained import load_weights, split_at_features


def test_the_first_efficientnets_normalize_as_with_imagenets_weights(tmp_path, monkeypatch):
    """Keras' own loading of ImageNet's weights adds a layer, and sets up another, which other loading does not."""
    network = create_network("efficientnet_b0", 64, 2)
    backbone = network.get_layer("backbone")
    normalization = next(layer for layer in backbone.layers if isinstance(layer, keras.layers.Normalization))
    statistics = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0)  # as in Keras' file
    normalization.set_weights([np.array(numbers, np.float32) for numbers in statistics])
    file = tmp_path / "b0.weights.h5"
    backbone.save_weights(file)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", lambda *args, **kwargs: str(file))
    original = keras.applications.EfficientNetB0(include_top=False, input_shape=(64, 64, 3), pooling="avg")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected = original(pixels.astype(np.float32), training=False)
    features_of, _ = split_at_features(network)
    for source in ("imagenet", file):
        backbone.set_weights([np.zeros_like(weight) for weight in backbone.get_weights()])
        load_weights(network, source)
        features = features_of(pixels, training=False)
        np.testing.assert_allclose(features[:, -1280:], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["convnext_tiny", "densenet121", "mobilenet_v3_small", "resnet50_v2", "vgg16"])
def test_every_kind_of_network_has_its_own_preprocessing(name):
    """One for each kind of preprocessing: inside the network (two kinds), as in PyTorch, as in TensorFlow, as in Caffe."""
    network, rng = create_network(name, 32, 3), np.random.default_rng(1)
    pixels = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    module = getattr(keras.applications, PRETRAINED_NETWORKS[name].split(".")[0])
    expected = network.get_layer("backbone")(module.preprocess_input(pixels.astype(np.float32)), training=False)
    features_of, head = split_at_features(network)
    features = features_of(pixels, training=False)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    network.get_layer("fc").set_weights([rng.normal(size=(features.shape[1], 3)), np.zeros(3)])
    logits = network(pixels, training=False)
    assert np.ptp(logits) > 0
    np.testing.assert_allclose(head(features), logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())
    means, same = with_features(network, "maps")(pixels, training=False)
    np.testing.assert_allclose(same, logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())
    assert np.isfinite(means).all()
    assert means.shape != features.shape or np.abs(means - features).max() > 1e-3 * np.abs(means).max()


def test_keras_has_every_network_and_its_preprocessing():
    for name in PRETRAINED_NETWORKS.values():
        module, constructor = name.split(".")
        assert callable(getattr(keras.applications, module).preprocess_input)
        assert callable(getattr(keras.applications, constructor))
