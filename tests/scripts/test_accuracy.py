"""What makes networks better, and what their answers mean: class weights, temperature, test-time augmentation, unknown."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_images, predictions, run, save, train
from run_folders import assert_runtimes_agree, assert_same_run, change_metadata, history_of, metadata_of, newest_checkpoint

from classifier.data.images import load_image


@pytest.fixture(scope="module")
def learnt(made_once):
    """The folder of a run that has learnt three classes, and nothing else: its images and caches are gone."""

    def make(folder):
        names = ("cats", "dogs", "stripes")
        images = draw_images(folder / "images", 60, names)
        train(images, "--image-size", 48, "--epochs", 25, "--output", folder / "runs")
        for name in names:
            shutil.copy(images / name / f"{name}_7.jpg", folder / f"{name}.jpg")
        shutil.rmtree(images)
        shutil.rmtree(folder / "runs/.cache")

    return made_once("learnt", make) / "runs" / "001"


def test_a_trained_network_predicts_from_anywhere_and_what_is_unlike_its_classes_is_unknown(learnt, tmp_path):
    photos = [learnt.parent.parent / f"{name}.jpg" for name in ("cats", "dogs", "stripes")]
    noise = save(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    smooth = save(tmp_path / "smooth.png", np.repeat(np.linspace(60, 180, 64 * 64, dtype=np.uint8), 3).reshape(64, 64, 3))
    for prediction in assert_runtimes_agree(learnt, *photos, noise, smooth):
        for photo in photos:
            assert prediction[str(photo)]["class"] == photo.stem
            assert prediction[str(photo)]["ood_score"] < 1
        for unlike in (noise, smooth):
            assert prediction[str(unlike)]["class"] == "unknown"
            assert prediction[str(unlike)]["ood_score"] > 1
            assert sum(prediction[str(unlike)]["probabilities"].values()) == pytest.approx(1)
    assert f"{noise}: unknown (" in run("predict", "--model", learnt, noise).stdout
    assert f"{noise},unknown," in run("predict", "--model", learnt, noise, "--format", "csv").stdout
    assert predictions(learnt, photos[0], "--min-confidence", 1)[str(photos[0])]["class"] == "unknown"
    blind = shutil.copytree(learnt, "runs/001")
    shutil.rmtree(blind / "checkpoints/ood")
    finished = run("predict", "--model", blind, noise)
    assert "unknown" not in finished.stdout
    assert "no image will be unknown" in finished.stderr


def test_how_far_to_trust_unknown_is_said(trained):
    said = (trained.parent / "stdout.txt").read_text()
    left_out = metadata_of(trained)["ood"]["left_out_area_under_roc"]
    assert "unknown: do not rely on it: a network from scratch" in said
    assert f"(area under the ROC curve {left_out:.2f} if a class is left out" in said


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


def test_the_residual_network_resumes_in_growing_images_and_predicts(images, photo):
    train(images, "--network", "resnet", "--image-size", 40, "--start-size", 32)
    shutil.copytree("runs/001", "whole")
    newest_checkpoint("runs/001").with_suffix(".index").unlink()  # as if it had been killed in the second epoch
    assert "epoch 2/2" in run("train", "--resume", "--output", "runs").stdout
    assert_same_run("runs/001", "whole")
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
