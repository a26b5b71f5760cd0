"""Pretrained networks: a head on frozen features first, then fine-tuning, with weights that were downloaded before."""

import os
import re
import shutil
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from conftest import QUICK, draw_images, error_of, predictions, run, train
from run_folders import assert_runtimes_agree, assert_same_run, history_of, metadata_of

from classifier.networks.by_name import create_network, extract_features, with_features
from classifier.networks.pretrained import load_weights, split_at_features
from classifier.runs.checkpoints import load_selected
from classifier.training.settings import PRETRAINED_NETWORKS
from dataset import read_train_sets

SETTINGS = (*QUICK, "--network", "mobilenet", "--epochs", 3, "--output", "runs")
FINE_TUNING = ("--fine-tune", "conv_pw_11", "--fine-tune-epochs", 2)
PHASES = ("head", "fine_tuning")


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory, weights):
    """A run of both phases that nothing disturbed, on what the fixture `images` draws, with its features in memory."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    (folder / ".cache").write_text("a file is in the way")
    finished = train(draw_images(folder / "images"), *SETTINGS, *FINE_TUNING, "--weights", weights, "--output", folder)
    assert "no cache of features" in finished.stderr
    assert "3,586 of 3,236,034 parameters are trained" in finished.stderr
    epochs = [line.split()[1] for line in finished.stdout.splitlines() if line.startswith("epoch")]
    assert epochs == ["3/5", "4/5", "5/5"]  # of a head, only the last and every tenth
    return folder / "001"


def statistics_of(run_folder):
    """The averages of the first batch normalization in the selected network of a run."""
    network = create_network("mobilenet", 32, 2, feature_scales=metadata_of(run_folder)["feature_scales"])
    load_selected(Path(run_folder), network)
    return network.get_layer("backbone").get_layer("conv1_bn").moving_variance.numpy()


def test_batch_normalization_keeps_its_statistics_in_fine_tuning_and_learns_them_from_nothing(images, fine_tuned):
    np.testing.assert_array_equal(statistics_of(fine_tuned), np.ones(32))
    train(images, *SETTINGS, "--weights", "none")
    assert np.abs(statistics_of("runs/001") - 1).mean() > 0.2  # after 9 steps, which Keras' own counts as 1 %


@pytest.mark.long
def test_a_network_with_a_counter_among_its_weights_trains_from_nothing(images):
    said = train(images, "--network", "efficientnet_b0", "--weights", "none", "--epochs", 1).stderr
    assert float(re.search(r"litert: .* differ by at most (\S+);", said)[1]) < 1e-4


def test_both_phases_in_one_command_are_the_same_as_one_after_the_other(images, weights, fine_tuned):
    resume = ("train", "--resume", "--output", "runs")
    file = shutil.copy(weights, "mobilenet.weights.h5")
    train(images, *SETTINGS, "--weights", file)
    Path(file).unlink()  # what was trained is all that is needed from now on
    assert "has no layer" in error_of(run(*resume, "--fine-tune", "conv_99", code=2))  # a typing error costs nothing
    assert "has done 3 epochs already" in error_of(run(*resume, *FINE_TUNING, "--epochs", 1, code=2))
    run(*resume, *FINE_TUNING)
    assert_same_run("runs/001", fine_tuned, PHASES)
    assert "began with fine-tune conv_pw_11" in error_of(run(*resume, "--fine-tune", "9", code=2))
    shutil.rmtree("runs/001/checkpoints/fine_tuning")  # a phase that lost its checkpoints is not trained again
    assert "are gone" in error_of(run(*resume, code=3))


def test_a_head_stops_early_and_fine_tuning_that_explodes_costs_nothing_before_what_is_chosen(images, photo, weights):
    finished = train(images, *SETTINGS, "--weights", weights, "--epochs", 60, "--patience", 1)
    head = metadata_of("runs/001")["head_epochs"]
    losses = [float(row["val_loss"]) for row in history_of("runs/001")]
    assert head == len(losses) < 60
    assert losses[-2] == min(losses)
    assert f"selected: epoch {head - 1}," in finished.stdout
    assert "unknown: expect it for many photographs of other things" in finished.stdout
    assert "likely to help next: " in finished.stderr

    before, by_tensorflow = assert_runtimes_agree("runs", photo)
    assert before[str(photo)]["ood_score"] == pytest.approx(by_tensorflow[str(photo)]["ood_score"], abs=2e-4)
    assert metadata_of("runs/001")["ood"]["features"] == "last"

    resume = ("train", "--resume", "--output", "runs")
    failed = run(*resume, "--fine-tune", "9", "--fine-tune-lr", 1e30, code=1)
    assert re.search(r"--resume, from \S+/fine-tuning/ckpt-\d+, with a lower --fine-tune-lr than 1e\+30", error_of(failed))
    assert predictions("runs", photo) == before  # it is as finished as it was

    finished = run(*resume, "--fine-tune", "auto", "--fine-tune-lr", 1e-4, "--fine-tune-epochs", 1)
    assert f"epoch {head + 1}/{head + 1}" in finished.stdout
    settings = metadata_of("runs/001")["settings"]
    assert (settings["fine_tune"], settings["fine_tune_epochs"]) == ("conv_dw_12", 1)
    assert len(history_of("runs/001")) == head + 1


def test_a_fine_tuned_network_predicts_without_tensorflow_as_with_it(photo, fine_tuned):
    by_litert, by_tensorflow = assert_runtimes_agree(fine_tuned, photo)
    assert by_litert[str(photo)]["ood_score"] == pytest.approx(by_tensorflow[str(photo)]["ood_score"], abs=2e-4)
    assert metadata_of(fine_tuned)["ood"]["features"] == "maps"  # its last features know little but the classes now


def test_weights_that_cannot_be_had_are_one_clear_line(images, tmp_path, weights):
    misfit = train(images, *SETTINGS, "--network", "vgg16", "--weights", weights, code=3)
    assert "does not fit vgg16" in error_of(misfit)
    (tmp_path / "text.h5").write_text("no weights")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save("archive.keras")  # Keras would load it
    for file in ("nowhere.h5", "text.h5", "archive.keras"):
        assert f"cannot read the weights {file}" in error_of(train(images, *SETTINGS, "--weights", file, code=3))
    nobody_listens = os.environ | {"HTTPS_PROXY": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path)}
    scripts = ("train", "--data-dir", images, *SETTINGS), ("evaluate", images, "--zero-shot", "mobilenet_v2")
    for script in scripts:
        offline = run(*script, code=1, env=nobody_listens)
        assert f"cannot download what {tmp_path / 'models'} lacks" in error_of(offline)
        assert ("--weights FILE" in offline.stderr) is (script[0] == "train")  # the other one has no such flag
    assert not list(Path("runs").glob("0*"))  # or --resume would choose one that never began


def test_settings_that_are_not_for_the_network(images, weights):
    for flags in (("--fine-tune", "3"), ("--fine-tune-lr", 1), ("--weights", "none"), ("--start-size", 32)):
        assert flags[0] in error_of(train(images, *flags, code=2))
    assert "--fine-tune" in error_of(train(images, *SETTINGS, "--weights", "none", "--fine-tune", "3", code=2))
    assert "at least 32x32" in error_of(train(images, *SETTINGS, "--image-size", 16, code=1))
    unknown_layer = train(images, *SETTINGS, "--weights", weights, "--fine-tune", "conv_99", code=2)
    assert "conv_pw_13_relu" in error_of(unknown_layer)  # one of those that it has
    assert not list(Path("runs").glob("0*"))


def test_features_are_computed_again_with_another_opencv(images, monkeypatch):
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    features_of = keras.Model(inputs, keras.layers.Flatten()(keras.layers.Rescaling(1.0)(inputs)))
    sets = read_train_sets(images, 16)
    for version in ("1.0", "1.0", "2.0"):
        monkeypatch.setattr(cv2, "__version__", version)
        extract_features(sets.images, features_of, "cache")
    assert len(list(Path("cache").glob("*.features"))) == 2


@pytest.mark.parametrize("source", ["imagenet", "file"])
def test_the_first_efficientnets_normalize_as_with_imagenets_weights(source, tmp_path, monkeypatch):
    """Keras' own loading of ImageNet's weights adds a layer, and sets up another, which other loading does not."""
    pretrained, rng = create_network("efficientnet_b0", 64, 2).get_layer("backbone"), np.random.default_rng(1)
    normalization = next(layer for layer in pretrained.layers if isinstance(layer, keras.layers.Normalization))
    statistics = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0)  # as in Keras' file
    normalization.set_weights([np.array(numbers, np.float32) for numbers in statistics])
    path = tmp_path / "b0.weights.h5"
    pretrained.save_weights(path)
    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", lambda *args, **kwargs: str(path))
    original = keras.applications.EfficientNetB0(include_top=False, input_shape=(64, 64, 3), pooling="avg")
    network = create_network("efficientnet_b0", 64, 2)
    load_weights(network, "imagenet" if source == "imagenet" else path)
    pixels = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected = original(pixels.astype(np.float32), training=False)
    features = split_at_features(network)[0](pixels, training=False)
    np.testing.assert_allclose(features[:, -1280:], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name",
    [
        "convnext_tiny",
        "densenet121",
        "efficientnet_v2_b0",
        "mobilenet_v3_small",
        "nasnet_mobile",
        "resnet50",
        "resnet50_v2",
        "vgg16",
        "xception",
    ],
)
def test_every_kind_of_pretrained_network_has_its_own_preprocessing(name):
    network, rng = create_network(name, 96, 3), np.random.default_rng(1)
    pixels = rng.integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    module = getattr(keras.applications, PRETRAINED_NETWORKS[name].split(".")[0])
    expected = network.get_layer("backbone")(module.preprocess_input(pixels.astype(np.float32)), training=False)
    features_of, head = split_at_features(network)
    features = features_of(pixels, training=False)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    network.get_layer("fc").set_weights([rng.normal(size=(features.shape[1], 3)), np.zeros(3)])
    logits = network(pixels, training=False)
    assert np.ptp(logits) > 0
    np.testing.assert_allclose(head(features), logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())
    for kind in ("maps",):
        means, same = with_features(network, kind)(pixels, training=False)
        np.testing.assert_allclose(same, logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())
        assert np.isfinite(means).all()
        assert means.shape != features.shape or np.abs(means - features).max() > 1e-3 * np.abs(means).max()
