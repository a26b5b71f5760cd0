"""What makes networks better: augmentation, class weights, weight averaging, calibration, test-time augmentation."""

import shutil

import numpy as np
import pytest
from conftest import PROJECT, draw_images, predictions, run, save, train
from run_folders import assert_runtimes_agree, assert_same_run, change_metadata, history_of, metadata_of, newest_checkpoint

from classifier.base.metrics import calibration_error, chance_error, log_softmax
from classifier.data.augmentation import augment, random_places
from classifier.data.images import load_image
from classifier.networks.by_name import create_network, with_features
from classifier.networks.out_of_distribution import OutOfDistributionScore, left_out_area_under_roc, usual_threshold
from classifier.runs.checkpoints import load_selected, save_ood
from classifier.training.calibration import fit_temperature, some_of_each
from classifier.training.settings import DEFAULTS
from classifier.training.state import Training, class_weights


def test_views_are_of_the_image_and_of_nothing_else():
    corners = np.array([[-0.5, -0.5, 1], [-0.5, 39.5, 1], [39.5, -0.5, 1], [39.5, 39.5, 1]]).T
    mirrored = 0
    for k in range(300):
        places = random_places(np.random.default_rng(k), 80, 40)
        ends = places @ corners
        assert ends.min() > -0.5 - 8
        assert ends.max() < 79.5 + 8  # turning may look a tenth over the edge: the image is continued by its reflection
        area = abs(np.linalg.det(places[:, :2])) * (40 / 80) ** 2
        assert 0.7**2 - 1e-9 <= area <= 1
        mirrored += np.linalg.det(places[:, :2]) < 0
    assert 110 < mirrored < 190


def test_a_view_depends_on_its_generator_alone(images):
    image = load_image(images / "cats/cats_1.jpg", 48)
    view, same, other = (augment(image, 40, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert view.shape == (40, 40, 3)
    assert view.dtype == np.uint8
    assert np.array_equal(view, same)
    assert np.abs(view.astype(int) - other).mean() > 3


def test_class_weights_let_a_small_class_count(tmp_path):
    """Eight cats to each dog: a network that has learnt little predicts cats, unless dogs count eight times."""
    labels = np.array([0, 0, 0, 0, 1])
    assert class_weights("balanced", labels, 2).tolist() == pytest.approx([0.625, 2.5])
    assert class_weights("auto", labels, 2).tolist() == pytest.approx([5 / 6, 5 / 3])
    assert class_weights("auto", labels[1:], 2) is class_weights("none", labels, 2) is None
    draw_images("images", 48)
    for k in range(6, 48):
        (tmp_path / f"images/dogs/dogs_{k}.jpg").unlink()
    settings = ("--data-dir", "images", "--image-size", 32, "--epochs", 1, "--lr", 1e-4)
    plain = run("train", *settings, "--output", "plain")
    assert "predicts 'cats' for every validation image" in plain.stderr
    assert "always predicting the largest class: 90.9%" in plain.stdout
    weighted = run("train", *settings, "--class-weights", "balanced", "--output", "weighted")
    assert "always predicting the largest class: 50.0%" in weighted.stdout
    mean_recall = float(history_of("weighted/001")[0]["val_accuracy"])
    assert mean_recall * 20 == pytest.approx(round(mean_recall * 20), abs=1e-4)  # of ten cats, and of one dog
    dog = "images/dogs/dogs_1.jpg"
    by_plain, by_weighted = (predictions(output, dog)[dog]["probabilities"]["dogs"] for output in ("plain", "weighted"))
    assert by_weighted > by_plain


def test_the_residual_network_trains_resumes_and_predicts(images, photo):
    train(images, "--network", "resnet", "--image-size", 40, "--start-size", 32)
    shutil.copytree("runs/001", "whole")
    newest_checkpoint("runs/001").with_suffix(".index").unlink()  # as if it had been killed in the second epoch
    assert "epoch 2/2" in run("train", "--resume", "--output", "runs").stdout
    assert_same_run("runs/001", "whole")
    assert_runtimes_agree("runs", photo)


def test_training_images_grow():
    training = Training.__new__(Training)

    def sizes(**settings):
        training.settings = DEFAULTS | {"epochs": 8} | settings
        return [training.training_image_size() for training._epoch in range(8)]

    assert sizes(start_size=64, image_size=128) == [64, 72, 80, 96, 104, 112, 128, 128]
    assert sizes(start_size=64, image_size=50) == [50] * 8  # they never shrink
    assert sizes(start_size=None, image_size=50) == [50] * 8


def test_temperature_fits_what_was_seen():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5000, 3)) * 6
    labels = np.array([rng.choice(3, p=np.exp(row)) for row in log_softmax(logits / 3)])  # three times too confident
    assert fit_temperature(logits, labels) == pytest.approx(3, rel=0.1)
    assert fit_temperature(logits[:2], logits[:2].argmax(axis=1)) > 0.5  # two correct predictions are little evidence


def test_the_temperature_is_the_best_of_all():
    """It is searched in two steps; here the losses of all temperatures are compared."""
    rng, temperatures = np.random.default_rng(2), np.geomspace(0.1, 10, 461)
    for scale in (0.01, 0.3, 1, 5, 50):
        labels = rng.integers(0, 5, 60)
        logits = scale * rng.normal(size=(60, 5)) + scale * np.eye(5)[labels]
        losses = [-log_softmax(logits / t)[np.arange(60), labels].sum() + np.log(t) ** 2 * 2 for t in temperatures]
        assert fit_temperature(logits, labels) == temperatures[np.argmin(losses)]


def test_chance_hardly_moves_the_temperature():
    """Of probabilities that are exactly right; the temperature with the least cross-entropy would be off by 0.34."""
    rng = np.random.default_rng(0)
    fitted = []
    for _ in range(100):
        logits = rng.normal(size=(40, 2)) * 3
        labels = (rng.random(40) < np.exp(log_softmax(logits))[:, 1]).astype(int)
        fitted.append(fit_temperature(logits, labels))
    assert np.abs(np.log(fitted)).mean() < 0.25


def test_calibration_error_by_hand_and_what_chance_alone_makes_it():
    assert calibration_error([0.9, 0.9, 0.6, 0.6], [True, True, True, False]) == pytest.approx(0.1)
    assert calibration_error([1.0, 1.0], [True, False]) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 1, 300)
    seen = [calibration_error(confidences, rng.random(300) < confidences) for _ in range(500)]
    assert chance_error(confidences) == pytest.approx(np.mean(seen), rel=0.05)
    assert chance_error([1.0, 1.0]) == 0


def test_the_temperature_is_in_every_prediction(trained, run_folder, photo):
    """At twice the temperature the logarithm of the odds is half; LiteRT has it in its file, which is then of no use."""
    change_metadata(run_folder, temperature=2 * metadata_of(trained)["temperature"])

    def log_odds(*flags):
        by_class = predictions(*flags, photo)[str(photo)]["probabilities"]
        return np.log(by_class["cats"] / by_class["dogs"])

    assert log_odds(trained) == pytest.approx(log_odds(trained, "--runtime", "tensorflow"), abs=1e-4)
    assert log_odds(run_folder) == pytest.approx(log_odds(trained) / 2, abs=1e-4)


def test_with_tta_an_image_and_its_mirror_image_are_the_same(trained, images, tmp_path):
    image = load_image(images / "cats/cats_1.jpg", 32)
    photo, mirrored = save(tmp_path / "a.png", image), save(tmp_path / "b.png", image[:, ::-1])
    plain = predictions(trained, photo, mirrored)
    both = predictions(trained, photo, mirrored, "--tta")
    first, second = (plain[str(path)]["probabilities"]["cats"] for path in (photo, mirrored))
    assert first != second
    for path in (photo, mirrored):
        assert both[str(path)]["probabilities"]["cats"] == pytest.approx((first + second) / 2, abs=1e-6)
    assert "24 images scored" in run("evaluate", images, "--model", trained, "--tta").stdout


def test_the_ood_score_is_the_distance_to_the_nearest_class():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    labels = rng.integers(0, 2, 4000)
    features = (rng.normal(size=(4000, 5)) + 6 * labels[:, None]) @ mixing
    ood_score = OutOfDistributionScore(2)
    ood_score.fit(features.astype(np.float32), labels)
    distances = ood_score(features.astype(np.float32)).numpy()
    assert np.mean(distances**2) == pytest.approx(1, rel=0.1)  # in standard deviations
    between = (3 * np.ones((1, 5)) @ mixing).astype(np.float32)  # as far from one class as from the other
    assert ood_score(between).numpy()[0] == pytest.approx(3, rel=0.1)
    threshold = usual_threshold(distances)
    assert (distances > threshold).mean() < 0.02
    assert usual_threshold(np.append(distances, 1e6)) == pytest.approx(threshold, rel=0.01)  # one odd image moves nothing
    assert threshold < ood_score(between).numpy()[0]
    apart = ood_score.distances(features.astype(np.float32)).numpy()
    np.testing.assert_allclose(apart.min(axis=1), distances)
    assert left_out_area_under_roc(apart, labels) > 0.999  # the classes are 6 standard deviations apart
    assert left_out_area_under_roc(rng.normal(size=(4000, 2)), labels) == pytest.approx(0.5, abs=0.05)
    assert left_out_area_under_roc(apart, np.zeros(4000, int)) == 0.5  # there is nothing to compare with


@pytest.mark.parametrize("kind", ["last", "maps"])
def test_an_older_run_keeps_its_ood_score(run_folder, images, kind):
    """These features have no logarithms."""
    network = create_network("cnn", 32, 2)
    load_selected(run_folder, network)
    paths = [images / f"{name}/{name}_{k}.jpg" for name in ("cats", "dogs") for k in range(12)]
    features, _ = with_features(network, kind)(np.stack([load_image(path, 32) for path in paths]), training=False)
    ood_score = OutOfDistributionScore(2)
    ood_score.fit(features.numpy()[::2], np.repeat([0, 1], 6))  # of half of them: or all would be as far away
    save_ood(run_folder, ood_score, metadata_of(run_folder)["selected"]["epoch"])
    change_metadata(run_folder, ood={"threshold": 2.0, "features": kind})
    predicted = predictions(run_folder, *paths)
    for path, expected in zip(paths, ood_score(features).numpy(), strict=True):
        assert predicted[str(path)]["ood_score"] == pytest.approx(expected / 2, rel=1e-3)
    assert np.ptp(ood_score(features)) > 0.01


def test_every_class_is_among_the_images_that_the_ood_score_is_fitted_to():
    labels = np.array([0] * 5000 + [1] + [2] * 4000)
    chosen = some_of_each(labels, 3000, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [1000, 1, 1000]
    assert len(set(chosen)) == 2001
    assert len(some_of_each(np.arange(5000), 3000, np.random.default_rng(0))) == 5000


def test_the_drawn_samples_are_learnt_and_an_image_unlike_them_is_unknown(tmp_path):
    """At 64 px; .ci/run holds the README's promise for a fresh clone: the defaults, on the committed drawings, over 90 %."""
    finished = run("train", "--output", "runs", "--image-size", 64, "--epochs", 20)
    left_out = metadata_of("runs/001")["ood"]["left_out_area_under_roc"]
    assert "unknown: do not rely on it: a network from scratch" in finished.stdout
    assert f"(area under the ROC curve {left_out:.2f} if a class is left out" in finished.stdout
    assert "160 images scored" in run("evaluate", "--model", "runs", "--min-accuracy", "0.9").stdout
    noise = save(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    smooth = save(tmp_path / "smooth.png", np.repeat(np.linspace(60, 180, 64 * 64, dtype=np.uint8), 3).reshape(64, 64, 3))
    drawing = PROJECT / "testing_data/dogs/dog_002.jpg"
    for runtime in ("litert", "tensorflow"):
        of_noise, of_smooth, of_drawing = predictions("runs", noise, smooth, drawing, "--runtime", runtime).values()
        assert of_noise["class"] == of_smooth["class"] == "unknown"
        assert min(of_noise["ood_score"], of_smooth["ood_score"]) > 1 > of_drawing["ood_score"]
        assert sum(of_noise["probabilities"].values()) == pytest.approx(1)
        assert of_drawing["class"] in ("cats", "dogs")
    assert f"{noise}: unknown (" in run("predict", "--model", "runs", noise).stdout
    assert f"{noise},unknown," in run("predict", "--model", "runs", noise, "--format", "csv").stdout
    unsure = predictions("runs", drawing, "--min-confidence", 1)
    assert unsure[str(drawing)]["class"] == "unknown"

    shutil.rmtree("runs/001/checkpoints/ood")  # without it every image has a class
    finished = run("predict", "--model", "runs", noise)
    assert "unknown" not in finished.stdout
    assert "no image will be unknown" in finished.stderr
