"""Zero-shot: ImageNet's classes added up to the user's, for a network whose predictions are known."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from classifier.base.console import UserError
from classifier.data.finding import find_images
from classifier.data.images import load_image
from classifier.networks.zero_shot import imagenet_classes, predictor_by_imagenet
from classifier.predicting.classifier import predict
from classifier.predicting.evaluation import Scored, evaluate

LABELS = [f"class_{i}" for i in range(1000)]
LABELS[151], LABELS[207], LABELS[285], LABELS[504] = "Chihuahua", "golden_retriever", "Egyptian_cat", "coffee_mug"
LABELS[3], LABELS[292], LABELS[603] = "tiger_shark", "tiger", "horse_cart"


def known_network():
    """Probabilities that the brightness decides: a dark image is 0.5 Chihuahua, 0.3 golden retriever and 0.2 mug."""
    dark, light = np.zeros((2, 1000), np.float32)
    dark[[151, 207, 504]] = 0.5, 0.3, 0.2
    light[[285, 151]] = 0.6, 0.4
    images = keras.Input((8, 8, 3), dtype="uint8")
    is_light = keras.layers.Lambda(lambda x: tf.cast(tf.reduce_mean(tf.cast(x, tf.float32), [1, 2, 3]) > 127, tf.float32))
    mix = keras.layers.Lambda(lambda a: a[:, None] * light + (1 - a[:, None]) * dark)
    return keras.Model(images, mix(is_light(images)))


def test_kinds_of_a_class_are_added_up():
    predictor = predictor_by_imagenet(known_network(), LABELS, ["cats", "dog", "coffee mugs"])
    pixels = np.stack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)])
    np.testing.assert_allclose(np.exp(predictor(pixels)[0]), [[0, 0.8, 0.2], [0.6, 0.4, 0]], atol=1e-6)
    assert predictor(pixels[:0])[0].shape == (0, 3)


def test_a_folder_is_scored_without_training_even_if_it_has_one_class(images):
    found = find_images(images)
    light = [load_image(path, 8).mean() > 127 for path in found.paths]  # which the network takes for cats
    right = [bright == (label == 0) for bright, label in zip(light, found.labels, strict=True)]
    assert 0 < sum(light) < 24
    shutil.copytree(images / "cats", "one/cats")
    for folder, expected in ((images, np.mean(right)), (Path("one"), 1)):
        found = find_images(folder)
        predictor = predictor_by_imagenet(known_network(), LABELS, found.classes)
        result = evaluate(Scored(predict(predictor, 8, found.paths), found), found.classes)
        assert (result["scored"], result["accuracy"]) == (len(found.paths), expected)


def test_which_classes_of_imagenet_are_meant():
    families = {"Dogs": (151, 269), "cat": (281, 286), "wolves": (269, 273), "Butterflies": (321, 327)}
    assert {name: imagenet_classes(name, LABELS) for name in families} == {
        name: list(range(*numbers)) for name, numbers in families.items()
    }
    for name, number in (("golden retriever", 207), ("mugs", 504), ("tigers", 292)):  # a tiger is not a shark
        assert imagenet_classes(name, LABELS) == [number]
    for name in ("apples", "horses"):  # a cart is no horse
        with pytest.raises(UserError, match=f"'{name}'"):
            imagenet_classes(name, LABELS)
