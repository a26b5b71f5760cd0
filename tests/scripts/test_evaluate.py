"""evaluate.py: the figures, the table of predictions, images of other things, and labels that may be wrong."""

import json
import math
import shutil
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import draw_images, predictions, rows_of, run, save, train
from run_folders import change_metadata, metadata_of

from classifier.base.metrics import accuracy_interval
from classifier.data.finding import Found, Paths
from classifier.predicting.classifier import Prediction
from classifier.predicting.evaluation import Scored
from classifier.predicting.suspects import out_of_fold
from classifier.runs.settings import Settings
from dataset import read_images, split_images


def evaluation(model, folder, *flags):
    """What evaluate.py says of a folder, as an object."""
    return json.loads(run("evaluate", folder, "--model", model, "--format", "json", *flags).stdout)


def test_the_figures_agree_with_the_predictions(trained, images):
    result = evaluation(trained, images)
    confusion, loss = np.zeros((2, 2), int), 0
    for path, prediction in predictions(trained, images).items():
        true = "cats" if "/cats/" in path else "dogs"
        confusion[["cats", "dogs"].index(true), ["cats", "dogs"].index(prediction["class"])] += 1
        loss -= math.log(prediction["probabilities"][true]) / 24
    assert result["classes"] == ["cats", "dogs"]
    assert result["confusion_matrix"] == confusion.tolist()
    assert result["accuracy"] == pytest.approx(confusion.trace() / 24)
    assert result["log_loss"] == pytest.approx(loss, rel=1e-4)
    assert 0 < result["chance_error"] < 0.5
    assert (result["scored"], result["skipped"]) == (24, 0)
    assert result["per_class"]["dogs"]["recall"] == pytest.approx(confusion[1, 1] / 12)
    if confusion[:, 1].sum():
        assert result["per_class"]["dogs"]["precision"] == pytest.approx(confusion[1, 1] / confusion[:, 1].sum())

    table = run("evaluate", "--model", trained, images).stdout
    assert f"accuracy {result['accuracy']:.2%}" in table
    assert "24 images scored, 0 skipped" in table


def test_the_accuracy_on_the_validation_images_is_the_validation_accuracy(trained, run_folder, tmp_path):
    """The way of training and the way of prediction come to the same figures."""
    settings = Settings(data_dir=trained.parent.parent / "images", image_size=32)
    sets = split_images(read_images(settings, tmp_path / "cache"), settings, {})
    for path, label in zip(sets.valid.paths, sets.valid.labels, strict=True):
        copy = tmp_path / "valid" / sets.classes[label] / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    change_metadata(run_folder, temperature=1.0)  # there is none in training
    result, selected = evaluation(run_folder, "valid"), metadata_of(trained)["selected"]
    assert result["accuracy"] == pytest.approx(selected["val_accuracy"], abs=1e-6)
    assert result["log_loss"] == pytest.approx(selected["val_loss"], abs=1e-5)


def test_a_demanded_accuracy(trained, images):
    run("evaluate", "--model", trained, "--min-accuracy", 0, images)
    if evaluation(trained, images)["accuracy"] > 0.5:  # with the classes' names exchanged, most predictions are incorrect
        for old, new in (("cats", "x"), ("dogs", "cats"), ("x", "dogs")):
            (images / old).rename(images / new)
    finished = run("evaluate", "--model", trained, "--min-accuracy", 0.51, images, code=4, process=True)
    assert "below the required" in finished.stderr
    assert "accuracy" in finished.stdout, "the figures are printed all the same"


def test_images_of_other_things_are_told_from_those_of_the_classes(trained, images, tmp_path):
    for k in range(6):
        noise = np.random.default_rng(k).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        save(tmp_path / f"noise/{k}.png", noise if k else np.zeros_like(noise))
    (tmp_path / "noise/bad.jpg").write_bytes(b"")
    others = ("--ood-dir", "noise", images)
    result = evaluation(trained, images, *others)["out_of_distribution"]
    ordinary = [prediction["ood_score"] for prediction in predictions(trained, images).values()]
    odd = [prediction["ood_score"] for prediction in predictions(trained, "noise", code=1).values() if "class" in prediction]
    pairs = [other > one for one in ordinary for other in odd]
    assert result["noise"]["area_under_roc"] == pytest.approx(np.mean(pairs), abs=0.01)
    assert (result["noise"]["scored"], result["noise"]["skipped"]) == (6, 1)
    assert result["noise"]["unknown"] == sum(ood_score > 1 for ood_score in odd)
    assert result[str(images)]["area_under_roc"] == pytest.approx(0.5)
    table = run("evaluate", "--model", trained, images, *others).stdout
    assert "of 6 images in noise would be predicted as unknown" in table


def test_one_class_and_images_that_cannot_be_read(trained, images):
    shutil.rmtree(images / "dogs")
    result = evaluation(trained, images)
    assert result["scored"] == 12
    assert result["per_class"]["dogs"]["recall"] is None
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"")
    assert "none of the 12 images" in run("evaluate", "--model", trained, images, code=3).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["nowhere"], 3, "no folder"),
        (["birds"], 3, "'birds' is not one of the model's: cats, dogs"),
        (["images", "--min-accuracy", 90], 2, "--min-accuracy"),
        (["images", "--ood-dir", "nowhere"], 3, "no folder nowhere"),
        (["images", "--zero-shot", "mobilenet_v2", "--ood-dir", "images"], 2, "--ood-dir"),
        (["images", "--zero-shot", "mobilenet_v2", "--report", "r.html"], 2, "--report"),
        (["images", "--predictions", "no/where.csv"], 2, "no folder no"),
        (["images", "--report", "no/r.html"], 2, "no folder no for --report"),
        (["images", "--suspects", "no/where.csv"], 2, "no folder no"),
        (["labels.csv", "--suspects", "labels.csv"], 2, "--suspects would overwrite labels.csv"),
        (["images", "--predictions", "images/cats/cats_1.jpg"], 2, "cats_1.jpg does not end in .csv"),
        (["images", "--report", "labels.csv"], 2, "does not end in .html"),
        (["images", "--suspects", "s.html"], 2, "does not end in .csv"),
        (["images", "--suspects", "s.csv", "--tta"], 2, "does not go with"),
        (["same", "--suspects", "s.csv"], 3, "'dogs' has only copies"),
        (["one", "--suspects", "s.csv"], 3, "only one class"),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_line(trained, images, arguments, code, problem):
    draw_images("birds", 2, ["birds", "cats"])
    Path("labels.csv").write_text("path,label\nimages/cats/cats_1.jpg,cats\nimages/dogs/dogs_1.jpg,dogs\n")
    draw_images("one", 2, ["cats"])
    draw_images("same", 2)
    shutil.copy("same/dogs/dogs_0.jpg", "same/dogs/dogs_1.jpg")
    refused = run("evaluate", "--model", trained, *arguments, code=code)
    (error,) = [line for line in refused.stderr.splitlines() if "error: " in line]
    assert problem in error
    assert not Path("s.csv").exists()


def test_of_each_image_a_few_numbers_are_kept_however_many_classes_there_are():
    """All scores of 2,000 images would take 16 MB here."""
    found = Found(Path("images"), [f"class {i}" for i in range(1000)], Paths(["1.jpg"] * 2000), [0] * 2000)
    predictions = (Prediction("1.jpg", np.zeros(1000) - np.log(1000), None) for _ in found.labels)
    tracemalloc.start()
    try:
        assert len(Scored(predictions, found).labels) == 2000
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_the_table_of_predictions_has_the_surest_mistakes_first(trained, images):
    (images / "cats/bad.jpg").write_bytes(b"")
    (images / "cats/cats_1.jpg").rename(images / "dogs/cats_1.jpg")  # so that there is a mistake
    scores = evaluation(trained, images, "--predictions", "p.csv")
    rows = rows_of("p.csv")
    predicted = predictions(trained, images, code=1)
    assert len(rows) == 25
    assert (rows[-1]["path"], rows[-1]["reason"], rows[-1]["correct"]) == (str(images / "cats/bad.jpg"), "empty file", "")
    ranked = []
    for row in rows[:-1]:
        prediction = predicted[row["path"]]
        likeliest, true_class = next(iter(prediction["probabilities"])), Path(row["path"]).parent.name
        assert (row["true_class"], row["predicted_class"]) == (true_class, likeliest)
        assert float(row["probability"]) == pytest.approx(prediction["probability"], rel=1e-3)
        assert float(row["true_class_probability"]) == pytest.approx(prediction["probabilities"][true_class], rel=1e-3)
        assert float(row["ood_score"]) == pytest.approx(prediction["ood_score"], abs=1e-3)
        correct = row["correct"] == "yes"
        assert correct == (likeliest == true_class)
        ranked.append((correct, float(row["probability"]) if correct else -float(row["probability"])))
    assert ranked == sorted(ranked)
    assert scores["accuracy"] == pytest.approx(np.mean([correct for correct, _ in ranked]))
    assert not all(correct for correct, _ in ranked)


def test_many_classes_have_a_table_that_can_be_read_and_more_figures():
    names = [f"class_{k:02d}" for k in range(21)]
    folder = draw_images("images", 2, names, size=32)
    for k in range(3):
        shutil.copy(folder / "class_00/class_00_0.jpg", folder / f"class_00/{k}.jpg")
    train(folder, "--epochs", 1)
    finished = run("evaluate", folder, "--model", "runs")
    lines = finished.stdout.splitlines()
    assert lines[0].split() == ["true", "class", "images", "recall", "precision"]
    assert max(map(len, lines[:22])) < 60
    assert lines[1].split()[:2] == ["class_00", "5"]
    result = evaluation("runs", folder, "--report", "page.html")
    assert "Heat map of the confusion matrix of 21 classes" in Path("page.html").read_text()
    confusion = np.array(result["confusion_matrix"])
    most = (confusion - np.diag(confusion.diagonal())).max()
    assert lines[22].startswith(f"{most} × class_")
    recalls = confusion.diagonal() / confusion.sum(axis=1)
    assert result["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert f"balanced accuracy, the mean recall, {recalls.mean():.2%}" in finished.stdout
    likeliest = predictions("runs", folder)
    in_five = [Path(path).parent.name in list(answer["probabilities"])[:5] for path, answer in likeliest.items()]
    assert result["top5_accuracy"] == pytest.approx(np.mean(in_five))
    assert f"top-5 accuracy {np.mean(in_five):.2%}" in finished.stdout


def test_the_confidence_interval_of_an_accuracy():
    """Wilson's, as in Newcombe, "Two-Sided Confidence Intervals for the Single Proportion", 1998."""
    assert accuracy_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert accuracy_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert all(f"{accuracy_interval(0, count)[0]:.1%}" == "0.0%" for count in range(1, 50))  # not -0.0%


def test_wrong_labels_are_the_first_suspects(run_folder, monkeypatch):
    """Whatever the classes of the run: here cats and dogs. Two copies of stripes have the label of the drawings."""
    labelled = draw_images("labelled", 12, ["cats", "stripes"])
    for name in ("wrong", "copy"):
        shutil.copy(labelled / "stripes/stripes_3.jpg", labelled / f"cats/{name}.jpg")
    (labelled / "stripes/stripes_3.jpg").unlink()
    (labelled / "cats/bad.jpg").write_bytes(b"")
    finished = run("evaluate", labelled, "--model", run_folder, "--suspects", "s.csv")
    rows = rows_of("s.csv")
    figures = ["label_probability", "suggested_probability", "score"]
    assert list(rows[0]) == ["rank", "path", "label", "suggested_class", *figures]
    assert [row["rank"] for row in rows] == [str(n) for n in range(1, 26)]
    assert {row["path"] for row in rows[:2]} == {str(labelled / f"cats/{name}.jpg") for name in ("wrong", "copy")}
    assert (rows[0]["label"], rows[0]["suggested_class"]) == ("cats", "stripes")
    figures = [[float(row[name]) for name in figures] for row in rows]
    for of_label, of_other, score in figures:
        assert of_label + of_other == pytest.approx(1, abs=1e-4)
        assert score == pytest.approx(1 - of_label, abs=1e-4)
    assert figures == sorted(figures, key=lambda row: -row[2])
    assert finished.stdout.splitlines()[0].endswith(rows[0]["path"])
    assert "25 images ranked, 1 skipped" in finished.stdout
    assert f"skipped: {labelled / 'cats/bad.jpg'}: empty file" in finished.stderr
    sheet = Path("s.html").read_text()
    shown = [sheet.index(f"{row['rank']}. {row['label']} ") for row in rows]
    assert shown == sorted(shown)
    assert sheet.count('<img src="data:image/jpeg') == 25

    for name in ("wrong", "copy"):  # corrected
        (labelled / f"cats/{name}.jpg").rename(labelled / f"stripes/{name}.jpg")
    for version, files in ((cv2.__version__, 1), ("2.0", 2)):  # features are kept, but are others with another OpenCV
        monkeypatch.setattr(cv2, "__version__", version)
        assert evaluation(run_folder, labelled, "--suspects", "s.csv")["scored"] == 25
        assert len(list(Path("runs/.cache").glob("*.features"))) == files
    assert not any(row["path"].endswith(("wrong.jpg", "copy.jpg")) for row in rows_of("s.csv")[:2])


def test_a_head_is_not_fitted_to_the_images_that_it_predicts():
    """Nor to their copies: one with the same wrong label would vouch for it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    features = (rng.normal(size=(90, 40)) + 3 * np.eye(3, 40)[labels]).astype(np.float32)
    features[:, 7] = 3  # it tells nothing, and must do no harm
    features[1], labels[:2] = features[0], (labels[0] + 1) % 3
    names = np.array([f"{i:02d}" for i in range(90)])
    apart, together = (np.exp(out_of_fold(features, labels, each)) for each in (names, np.where(names == "01", "00", names)))
    assert together.sum(axis=1) == pytest.approx(1)
    assert (together.argmax(axis=1) == labels).mean() > 0.7
    assert (together[:2, labels[0]] < 0.1).all()
    assert (apart[:2, labels[0]] > 0.5).all()
    only_one_has_two = out_of_fold(features[:4], np.array([0, 0, 1, 1]), np.array(["a", "a", "a", "b"]))
    assert np.isfinite(only_one_has_two).all()
