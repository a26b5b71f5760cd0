"""Pretrained networks: features of a frozen backbone first, then fine-tuning, with weights that were downloaded before."""

import os
import shutil
from pathlib import Path

import cv2
import h5py
import keras
import numpy as np
import pytest
from conftest import assert_same_run, draw_images, error_of, history_of, predictions, run, start, wait_until

from classifier.checkpoints import load_selected
from classifier.networks import create_network, extract_features, with_features
from classifier.pretrained import load_weights, split_at_features
from classifier.runs import read_metadata
from classifier.settings import PRETRAINED_NETWORKS
from dataset import read_train_sets

SETTINGS = ("--network", "mobilenet", "--image-size", 32, "--batch-size", 8, "--epochs", 3, "--data-dir")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights as Keras writes them."""
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    create_network("mobilenet", 32, 2).get_layer("backbone").save_weights(path)
    return path


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory, weights):
    """A run of both phases that nothing disturbed, on what the fixture `images` draws."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    finished = run("train", *SETTINGS, draw_images(folder / "images"), "--weights", weights, "--output", folder,
                   "--fine-tune", "conv_pw_11", "--fine-tune-epochs", 2)  # fmt: skip
    assert "2,050 of 3,230,914 parameters are trained" in finished.stderr
    assert [line.split()[1] for line in finished.stdout.splitlines() if line.startswith("epoch")] == [
        "1/5", "2/5", "3/5", "4/5", "5/5"
    ]  # fmt: skip
    return folder / "001"


def statistics_of(run_folder):
    """The averages of the first batch normalization in the backbone of a run's best network."""
    network = create_network("mobilenet", 32, 2)
    load_selected(run_folder, network)
    return network.get_layer("backbone").get_layer("conv1_bn").moving_variance.numpy()


def test_batch_normalization_keeps_its_statistics_in_fine_tuning_and_learns_them_from_nothing(images, fine_tuned):
    np.testing.assert_array_equal(statistics_of(fine_tuned), np.ones(32))
    run("train", *SETTINGS, images, "--weights", "none", "--output", "runs")
    assert np.abs(statistics_of(Path("runs/001")) - 1).mean() > 0.2  # after 9 steps, which Keras' own counts as 1 %


def assert_same_fine_tuning(one, other):
    assert_same_run(one, other)
    assert_same_run(one, other, "fine-tuning")


def test_both_phases_in_one_command_are_the_same_as_one_after_the_other(images, tmp_path, weights, fine_tuned):
    def resume(*flags, code=0):
        return run("train", "--resume", "--output", "runs", *flags, code=code)

    file = shutil.copy(weights, "mobilenet.weights.h5")
    run("train", *SETTINGS, images, "--weights", file, "--output", "runs")
    Path(file).unlink()  # what was trained is all that is needed from now on
    assert "has no layer" in error_of(resume("--fine-tune", "conv_99", code=2))  # a typing error costs nothing
    assert "has done 3 epochs already" in error_of(resume("--fine-tune", "conv_pw_11", "--epochs", 1, code=2))
    resume("--fine-tune", "conv_pw_11", "--fine-tune-epochs", 2)
    assert_same_fine_tuning(tmp_path / "runs/001", fine_tuned)
    assert "began with fine-tune conv_pw_11" in error_of(resume("--fine-tune", "9", code=2))


def test_killed_while_it_is_fine_tuned_and_resumed_it_is_the_same_run(images, tmp_path, weights, fine_tuned):
    process = start("train", *SETTINGS, images, "--weights", weights, "--output", "runs", "--fine-tune", "conv_pw_11",
                    "--fine-tune-epochs", 2, "--save-minutes", 0)  # fmt: skip
    wait_until(process, lambda: list((tmp_path / "runs/001/checkpoints/fine-tuning").glob("ckpt-*.index")))
    process.kill()
    process.communicate()
    assert len(history_of(tmp_path / "runs/001")) < 5, "it was over before it was killed"
    run("train", "--resume", "--output", "runs")
    assert_same_fine_tuning(tmp_path / "runs/001", fine_tuned)


def test_a_fine_tuned_network_predicts_without_tensorflow_as_with_it(images, fine_tuned):
    photo = images / "dogs/dogs_1.jpg"
    one, other = (predictions(fine_tuned, photo, "--runtime", name)[str(photo)] for name in ("litert", "tensorflow"))
    assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    assert one["novelty"] == pytest.approx(other["novelty"], abs=2e-4)
    assert read_metadata(fine_tuned)["novelty"]["features"] == "maps"  # its last features know little but the classes now


def test_weights_that_cannot_be_had_are_one_clear_line(images, tmp_path, weights):
    def refused(*flags, code=3):
        return error_of(run("train", *SETTINGS, images, "--output", "runs", *flags, code=code))

    assert "does not fit vgg16" in refused("--network", "vgg16", "--weights", weights)
    assert "cannot read the weights nowhere.h5" in refused("--weights", "nowhere.h5")
    (tmp_path / "text.h5").write_text("no weights")
    assert "cannot read the weights text.h5" in refused("--weights", "text.h5")
    nobody_listens = os.environ | {"HTTPS_PROXY": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path)}
    offline = run("train", *SETTINGS, images, "--output", "runs", code=1, env=nobody_listens)
    assert f"cannot download what {tmp_path / 'models'} lacks" in error_of(offline)
    assert not list(Path("runs").glob("0*"))  # or --resume would choose one that never began


@pytest.mark.parametrize("kind", ["ExternalLink", "SoftLink", "external Dataset", "virtual Dataset"])
def test_weights_that_refer_to_other_files_are_refused(images, weights, kind):
    """Keras does that: see load_weights()."""
    shutil.copy(weights, "links.weights.h5")
    with h5py.File("links.weights.h5", "r+") as file:
        name = "layers/conv2d/vars/0"
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        if kind == "ExternalLink":
            file[name] = h5py.ExternalLink(str(weights), name)
        elif kind == "SoftLink":
            file[name] = h5py.SoftLink("/layers/conv2d_1/vars/0")
        elif kind == "external Dataset":
            file.create_dataset(name, shape, dtype, external="/etc/passwd")
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(str(weights), name, shape, dtype)
            file.create_virtual_dataset(name, layout)
    refused = run("train", *SETTINGS, images, "--weights", "links.weights.h5", "--output", "runs", code=3)
    assert f"Not allowed: H5 file with {kind}" in error_of(refused)


def test_settings_that_are_not_for_the_network(images):
    for flags in (("--fine-tune", "3"), ("--fine-tune-lr", 1), ("--weights", "none"), ("--start-size", 32)):
        assert flags[0] in error_of(run("train", "--data-dir", images, *flags, code=2))
    assert "at least 32x32" in error_of(run("train", *SETTINGS, images, "--image-size", 16, "--output", "runs", code=1))
    assert not list(Path("runs").glob("0*"))
    wrong = ("--weights", "none", "--fine-tune", "3")
    assert "--fine-tune" in error_of(run("train", *SETTINGS, images, *wrong, code=2))


def test_an_unknown_layer_is_named_with_some_that_are_there(images, weights):
    finished = run("train", *SETTINGS, images, "--weights", weights, "--output", "runs", "--fine-tune", "conv_99", code=2)
    assert "conv_pw_13_relu" in error_of(finished)
    assert not list(Path("runs").glob("0*"))


def test_fine_tuning_that_explodes_costs_nothing_and_can_be_tried_again(images, weights):
    run("train", *SETTINGS, images, "--weights", weights, "--output", "runs", "--epochs", 1)
    photo = images / "dogs/dogs_1.jpg"
    before = predictions("runs", photo)
    failed = run("train", "--resume", "--output", "runs", "--fine-tune", "9", "--fine-tune-lr", 1e30, code=1)
    assert "--resume, with a lower --fine-tune-lr than 1e+30" in error_of(failed)
    assert predictions("runs", photo) == before  # it is as finished as it was
    again = run("train", "--resume", "--output", "runs", "--fine-tune-lr", 1e-4)
    assert "epoch 6/6" in again.stdout


def test_a_phase_that_lost_its_checkpoints_is_not_trained_again(fine_tuned, tmp_path):
    shutil.copytree(fine_tuned, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/checkpoints/fine-tuning")
    assert "are gone" in error_of(run("train", "--resume", tmp_path / "copy", code=3))


def test_features_are_made_anew_by_another_opencv(images, monkeypatch):
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    features_of = keras.Model(inputs, keras.layers.Flatten()(keras.layers.Rescaling(1.0)(inputs)))
    sets = read_train_sets(images, 16)
    for version in ("1.0", "1.0", "2.0"):
        monkeypatch.setattr(cv2, "__version__", version)
        extract_features(sets, features_of, "cache")
    assert len(list(Path("cache").glob("*.features"))) == 2


def test_features_stay_in_memory_where_no_cache_can_be_written(images, weights, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.cache").write_text("a file")
    finished = run("train", *SETTINGS, images, "--weights", weights, "--output", "runs")
    assert "no cache of features" in finished.stderr


@pytest.mark.parametrize("source", ["imagenet", "file"])
def test_the_first_efficientnets_normalize_as_with_imagenets_weights(source, tmp_path, monkeypatch):
    """Keras' own loading of ImageNet's weights adds a layer, and sets up another, which other loading does not."""
    backbone, rng = create_network("efficientnet_b0", 64, 2).get_layer("backbone"), np.random.default_rng(1)
    normalization = next(layer for layer in backbone.layers if isinstance(layer, keras.layers.Normalization))
    statistics = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0)  # as in Keras' file
    normalization.set_weights([np.array(numbers, np.float32) for numbers in statistics])
    path = tmp_path / "b0.weights.h5"
    backbone.save_weights(path)
    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", lambda *args, **kwargs: str(path))
    original = keras.applications.EfficientNetB0(include_top=False, input_shape=(64, 64, 3), pooling="avg")
    network = create_network("efficientnet_b0", 64, 2)
    load_weights(network, "imagenet" if source == "imagenet" else path)
    pixels = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected = original(pixels.astype(np.float32), training=False)
    features = split_at_features(network)[0](pixels, training=False)
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


KINDS = ["convnext_tiny", "densenet121", "efficientnet_v2_b0", "mobilenet_v3_small", "nasnet_mobile", "resnet50",
         "resnet50_v2", "vgg16", "xception"]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_backbone_has_its_own_preprocessing(name):
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
    means, same = with_features(network, "maps")(pixels, training=False)
    np.testing.assert_allclose(same, logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())
    assert means.shape != features.shape or np.abs(means - features).max() > 1e-3 * np.abs(means).max()
