"""What makes networks better, and what their answers mean: class weights, temperature, test-time augmentation, unknown."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_images, predictions, run, save, train
from run_folders import assert_runtimes_agree, change_metadata, history_of, metadata_of

from classifier.data.images import load_image


def test_three_classes_are_learnt_and_predict_from_anywhere_without_the_training_folder(tmp_path):
    names = ("cats", "dogs", "stripes")
    folder = draw_images(tmp_path / "three", 60, names)
    photos = {shutil.copy(folder / name / f"{name}_7.jpg", tmp_path): name for name in names}
    train(folder, "--image-size", 48, "--epochs", 15)
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "runs/.cache")
    (tmp_path / "elsewhere").mkdir()
    predicted = predictions(tmp_path / "runs/001", *photos, cwd=tmp_path / "elsewhere")
    for path, name in photos.items():
        probabilities = predicted[path]["probabilities"]
        assert max(probabilities, key=probabilities.get) == name


def test_what_is_unlike_the_classes_is_unknown(trained, run_folder, photo, tmp_path):
    noise = save(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    pink = save(tmp_path / "pink.png", np.full((64, 64, 3), (255, 0, 255), np.uint8))
    for by_path in assert_runtimes_agree(trained, photo, noise, pink):
        of_photo, *others = by_path.values()
        assert of_photo["class"] in ("cats", "dogs")
        assert of_photo["ood_score"] < 1 < min(prediction["ood_score"] for prediction in others)
        assert [prediction["class"] for prediction in others] == ["unknown", "unknown"]
        assert sum(others[0]["probabilities"].values()) == pytest.approx(1)
    assert f"{noise}: unknown (" in run("predict", "--model", trained, noise).stdout
    assert f"{noise},unknown," in run("predict", "--model", trained, noise, "--format", "csv").stdout
    assert predictions(trained, photo, "--min-confidence", 1)[str(photo)]["class"] == "unknown"
    shutil.rmtree(run_folder / "checkpoints/ood")  # without it every image has a class
    finished = run("predict", "--model", run_folder, noise)
    assert "unknown" not in finished.stdout
    assert "no image will be unknown" in finished.stderr


def test_how_far_to_trust_unknown_is_said(trained):
    said = (trained.parent / "stdout.txt").read_text()
    left_out = metadata_of(trained)["ood"]["left_out_area_under_roc"]
    assert "unknown: do not rely on it: a network from scratch" in said
    assert f"(area under the ROC curve {left_out:.2f} if a class is left out" in said


@pytest.mark.usefixtures("no_litert")
def test_class_weights_let_a_small_class_count():
    """Eight cats to each dog: a network that has learnt little predicts cats, unless dogs count eight times."""
    draw_images("images", 48)
    for k in range(6, 48):
        Path(f"images/dogs/dogs_{k}.jpg").unlink()
    plain, weighted = (
        train("images", "--epochs", 1, "--lr", 1e-4, "--batch-size", 32, "--class-weights", how)
        for how in ("none", "balanced")
    )
    assert "predicts 'cats' for every validation image" in plain.stderr
    assert "always predicting the largest class: 90.9%" in plain.stdout
    assert "always predicting the largest class: 50.0%" in weighted.stdout
    mean_recall = float(history_of("runs/002")[0]["val_accuracy"])
    assert mean_recall * 20 == pytest.approx(round(mean_recall * 20), abs=1e-4)  # of ten cats, and of one dog
    dog = "images/dogs/dogs_1.jpg"
    by_plain, by_weighted = (predictions(f"runs/00{n}", dog)[dog]["probabilities"]["dogs"] for n in (1, 2))
    assert by_weighted > by_plain


def test_the_residual_network_trains_and_predicts(images, photo):
    train(images, "--network", "resnet", "--image-size", 40, "--start-size", 32, "--epochs", 1)
    assert_runtimes_agree("runs", photo)


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
