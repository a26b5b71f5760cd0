"""What makes networks better: augmentation, weights of classes, averages, calibration, mirror images."""

import json
import shutil

import numpy as np
import pytest
from conftest import PROJECT, QUICK, assert_same_run, draw_images, history_of, predictions, run, save

from classifier.augmentation import augment, random_places
from classifier.calibration import fit_temperature, some_of_each
from classifier.images import load_image
from classifier.metrics import area_under_roc, calibration_error, chance_error, log_softmax
from classifier.out_of_distribution import OutOfDistributionScore, usual_threshold
from classifier.settings import DEFAULTS
from classifier.training import Training, balanced_weights


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
    views = [augment(image, 40, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert views[0].shape == (40, 40, 3)
    assert views[0].dtype == np.uint8
    assert np.array_equal(views[0], views[1])
    assert np.abs(views[0].astype(int) - views[2]).mean() > 3


def test_augmentation_can_be_turned_off(trained, images, tmp_path):
    run("train", "--data-dir", images, "--output", "runs", *QUICK, "--no-augment")
    assert history_of(tmp_path / "runs/001") != history_of(trained)


def test_class_weights_let_a_small_class_count(tmp_path):
    """Eight cats to each dog: a network that has learnt little says cat, unless dogs count eight times."""
    assert balanced_weights(np.array([0, 0, 0, 1]), 2).tolist() == pytest.approx([2 / 3, 2])
    draw_images(tmp_path / "many", 48)
    draw_images(tmp_path / "few", 6)
    (tmp_path / "many/dogs").rename("gone")
    (tmp_path / "few/dogs").rename("many/dogs")
    settings = ("--data-dir", "many", "--image-size", 32, "--epochs", 1, "--lr", 1e-4)
    plain = run("train", *settings, "--output", "plain")
    assert "predicts 'cats' for every validation image" in plain.stderr
    assert "always predicting the largest class: 90.9%" in plain.stdout
    weighted = run("train", *settings, "--class-weights", "--output", "weighted")
    assert "always predicting the largest class: 50.0%" in weighted.stdout
    mean_recall = float(history_of(tmp_path / "weighted/001")[0]["val_accuracy"])
    assert mean_recall * 20 == pytest.approx(round(mean_recall * 20), abs=1e-4)  # of ten cats, and of one dog
    dogs = [answer["probabilities"]["dogs"] for output in ("plain", "weighted") for answer in
            predictions(output, "many/dogs/dogs_1.jpg").values()]  # fmt: skip
    assert dogs[1] > dogs[0]


def test_the_residual_network_trains_resumes_and_predicts(images, tmp_path):
    run("train", "--data-dir", images, *QUICK, "--network", "resnet", "--image-size", 40, "--start-size", 32,
        "--output", "runs")  # fmt: skip
    shutil.copytree("runs/001", "whole")
    newest = max((tmp_path / "runs/001/checkpoints/newest").glob("*.index"), key=lambda path: int(path.stem.split("-")[1]))
    newest.unlink()  # as if it had been killed in the second epoch
    assert "epoch 2/2" in run("train", "--resume", "--output", "runs").stdout
    assert_same_run(tmp_path / "runs/001", tmp_path / "whole")
    photo = images / "dogs/dogs_1.jpg"
    one, other = (predictions("runs", photo, "--runtime", runtime)[str(photo)] for runtime in ("litert", "tensorflow"))
    assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_training_images_grow():
    training = Training.__new__(Training)

    def sizes(**settings):
        training.settings = DEFAULTS | {"epochs": 8} | settings
        return [training.image_size() for training._epoch in range(8)]

    assert sizes(start_size=64, image_size=128) == [64, 72, 80, 96, 104, 112, 128, 128]
    assert sizes(start_size=64, image_size=50) == [50] * 8  # they never shrink
    assert sizes(start_size=None, image_size=50) == [50] * 8


def test_temperature_fits_what_was_seen():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5000, 3)) * 6
    labels = np.array([rng.choice(3, p=np.exp(row)) for row in log_softmax(logits / 3)])  # three times too sure
    assert fit_temperature(logits, labels) == pytest.approx(3, rel=0.1)
    assert fit_temperature(logits[:2], logits[:2].argmax(axis=1)) > 0.5  # two right answers are no reason to be sure


def test_chance_hardly_moves_the_temperature():
    """Of probabilities that are exactly right; the temperature with the least cross-entropy would be off by 0.34."""
    rng = np.random.default_rng(0)
    fitted = []
    for _ in range(100):
        logits = rng.normal(size=(40, 2)) * 3
        labels = (rng.random(40) < np.exp(log_softmax(logits))[:, 1]).astype(int)
        fitted.append(fit_temperature(logits, labels))
    assert np.abs(np.log(fitted)).mean() < 0.25


def test_calibration_error_by_hand():
    assert calibration_error([0.9, 0.9, 0.6, 0.6], [True, True, True, False]) == pytest.approx(0.1)
    assert calibration_error([1.0, 1.0], [True, False]) == pytest.approx(0.5)


def test_chance_error_is_what_right_confidences_show():
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 1, 300)
    seen = [calibration_error(confidences, rng.random(300) < confidences) for _ in range(500)]
    assert chance_error(confidences) == pytest.approx(np.mean(seen), rel=0.05)
    assert chance_error([1.0, 1.0]) == 0


def test_the_temperature_is_in_every_answer(trained, images, tmp_path):
    """At twice the temperature the logarithm of the odds is half; LiteRT has it in its file, which is then of no use."""
    shutil.copytree(trained, "copy")
    card = json.loads((trained / "model.json").read_text())
    (tmp_path / "copy/model.json").write_text(json.dumps(card | {"temperature": 2 * card["temperature"]}))
    photo = images / "dogs/dogs_1.jpg"

    def log_odds(*flags):
        by_class = predictions(*flags, photo)[str(photo)]["probabilities"]
        return np.log(by_class["cats"] / by_class["dogs"])

    assert log_odds(trained) == pytest.approx(log_odds(trained, "--runtime", "tensorflow"), abs=1e-4)
    assert log_odds("copy") == pytest.approx(log_odds(trained) / 2, abs=1e-4)


def test_with_tta_a_image_and_its_mirror_image_are_the_same(trained, images, tmp_path):
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
    novelty = OutOfDistributionScore(2)
    novelty.fit(features.astype(np.float32), labels)
    distances = novelty(features.astype(np.float32)).numpy()
    assert np.mean(distances**2) == pytest.approx(1, rel=0.1)  # in standard deviations
    between = (3 * np.ones((1, 5)) @ mixing).astype(np.float32)  # as far from one class as from the other
    assert novelty(between).numpy()[0] == pytest.approx(3, rel=0.1)
    limit = usual_threshold(distances)
    assert (distances > limit).mean() < 0.02
    assert usual_threshold(np.append(distances, 1e6)) == pytest.approx(limit, rel=0.01)  # one odd image moves nothing
    assert limit < novelty(between).numpy()[0]


def test_every_class_is_among_the_images_that_the_ood_score_is_fitted_to():
    labels = np.array([0] * 5000 + [1] + [2] * 4000)
    chosen = some_of_each(labels, 3000, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [1000, 1, 1000]
    assert len(set(chosen)) == 2001
    assert len(some_of_each(np.arange(5000), 3000, np.random.default_rng(0))) == 5000


def test_the_drawn_samples_are_learnt_and_a_image_unlike_them_is_unknown(tmp_path):
    """At 64 px; .ci/run holds the README's promise for a fresh clone: the defaults, on the committed drawings, over 90 %."""
    run("train", "--output", "runs", "--image-size", 64)
    assert "160 images scored" in run("evaluate", "--model", "runs", "--min-accuracy", "0.9").stdout
    noise = save(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    drawing = PROJECT / "testing_data/dogs/dog_002.jpg"
    for runtime in ("litert", "tensorflow"):
        answers = predictions("runs", noise, drawing, "--runtime", runtime)
        assert answers[str(noise)]["class"] == "unknown"
        assert answers[str(noise)]["novelty"] > 1 > answers[str(drawing)]["novelty"]
        assert sum(answers[str(noise)]["probabilities"].values()) == pytest.approx(1)
        assert answers[str(drawing)]["class"] in ("cats", "dogs")
    assert f"{noise}: unknown (" in run("predict", "--model", "runs", noise).stdout
    assert f"{noise},unknown," in run("predict", "--model", "runs", noise, "--format", "csv").stdout
    unsure = predictions("runs", drawing, "--min-confidence", 1)
    assert unsure[str(drawing)]["class"] == "unknown"

    shutil.rmtree("runs/001/checkpoints/novelty")  # without it every image has a class
    finished = run("predict", "--model", "runs", noise)
    assert "unknown" not in finished.stdout
    assert "no image will be unknown" in finished.stderr


def test_the_area_under_the_roc_curve_is_the_part_of_pairs_in_order():
    assert area_under_roc([1, 2, 3], [4, 5]) == 1
    assert area_under_roc([1, 2, 3], [0, 0]) == 0
    assert area_under_roc([1, 2, 3, 3], [2, 3]) == pytest.approx(((1 + 0.5) / 4 + (2 + 1) / 4) / 2)
