"""evaluate.py for many classes, its table of predictions, and the ranking of labels that may be wrong."""

import json
import shutil
import sys
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_images, error_of, predictions, rows_of, run, train

from classifier.base.metrics import accuracy_interval
from classifier.data.finding import Found, Paths
from classifier.predicting.classifier import Prediction
from classifier.predicting.evaluation import Scored
from classifier.predicting.suspects import fit_heads, folds_of, out_of_fold


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
    scores = json.loads(run("evaluate", images, "--model", trained, "--predictions", "p.csv", "--format", "json").stdout)
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
    missing = ("--predictions", "no/where.csv")
    assert "no folder no" in error_of(run("evaluate", images, "--model", trained, *missing, code=2))


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
    page = ("--report", "page.html")
    result = json.loads(run("evaluate", folder, "--model", "runs", "--format", "json", *page).stdout)
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


@pytest.fixture
def labelled():
    """Drawings and stripes, of which two copies have the label of the drawings, and one damaged file."""
    folder = draw_images("labelled", 12, ["cats", "stripes"])
    for name in ("wrong", "copy"):
        shutil.copy(folder / "stripes/stripes_3.jpg", folder / f"cats/{name}.jpg")
    (folder / "stripes/stripes_3.jpg").unlink()
    (folder / "cats/bad.jpg").write_bytes(b"")
    return folder


def test_wrong_labels_are_the_first_suspects(run_folder, labelled, monkeypatch):
    """Whatever the classes of the run: here cats and dogs."""
    reports = []
    report = types.SimpleNamespace(write_report=lambda *arguments: reports.append(arguments))
    monkeypatch.setitem(sys.modules, "classifier.pages.report", report)
    finished = run("evaluate", labelled, "--model", run_folder, "--suspects", "s.csv")
    rows = rows_of("s.csv")
    assert list(rows[0]) == [
        "rank",
        "path",
        "label",
        "suggested_class",
        "label_probability",
        "suggested_probability",
        "score",
    ]
    assert [row["rank"] for row in rows] == [str(n) for n in range(1, 26)]
    assert {row["path"] for row in rows[:2]} == {str(labelled / f"cats/{name}.jpg") for name in ("wrong", "copy")}
    assert (rows[0]["label"], rows[0]["suggested_class"]) == ("cats", "stripes")
    figures = [[float(row[name]) for name in ("label_probability", "suggested_probability", "score")] for row in rows]
    for of_label, of_other, score in figures:
        assert of_label + of_other == pytest.approx(1, abs=1e-4)
        assert score == pytest.approx(1 - of_label, abs=1e-4)
    assert figures == sorted(figures, key=lambda row: -row[2])
    assert finished.stdout.splitlines()[0].endswith(rows[0]["path"])
    assert "25 images ranked, 1 skipped" in finished.stdout
    assert f"skipped: {labelled / 'cats/bad.jpg'}: empty file" in finished.stderr
    ((path, _, ((_, _, _, shown),)),) = reports
    assert path == Path("s.html")
    assert [str(image) for image, _ in shown] == [row["path"] for row in rows]

    for name in ("wrong", "copy"):  # corrected
        (labelled / f"cats/{name}.jpg").rename(labelled / f"stripes/{name}.jpg")
    before = sorted(Path("runs/.cache").glob("*.features"))
    result = run("evaluate", labelled, "--model", run_folder, "--suspects", "s.csv", "--format", "json").stdout
    assert sorted(Path("runs/.cache").glob("*.features")) == before
    assert json.loads(result)["scored"] == 25
    assert not any(row["path"].endswith(("wrong.jpg", "copy.jpg")) for row in rows_of("s.csv")[:2])


def test_suspects_that_cannot_be_ranked_are_one_line(trained, images):
    def refused(*arguments, code):
        return error_of(run("evaluate", images, "--model", trained, *arguments, code=code))

    assert "does not end in .csv" in refused("--suspects", "s.html", code=2)
    assert "no folder no" in refused("--suspects", "no/where.csv", code=2)
    assert "does not go with" in refused("--suspects", "s.csv", "--tta", code=2)
    for path in (images / "dogs").iterdir():
        shutil.copy(images / "dogs/dogs_1.jpg", path) if path.name != "dogs_1.jpg" else None
    assert "'dogs' in" in refused("--suspects", "s.csv", code=3)
    shutil.rmtree(images / "dogs")
    assert "only one class" in refused("--suspects", "s.csv", code=3)
    assert not Path("s.csv").exists()


def test_a_head_is_not_fitted_to_the_images_that_it_predicts():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    features = (rng.normal(size=(90, 4)) + 2 * np.eye(3, 4)[labels]).astype(np.float32)
    groups = [f"{i:02d}" for i in rng.permutation(90) // 2]
    folds = folds_of(labels, groups)
    assert all(len(set(folds[np.array(groups) == group])) == 1 for group in groups)
    assert np.bincount(folds).min() >= 14
    predicted = out_of_fold(features, labels, folds)
    assert np.exp(predicted).sum(axis=1) == pytest.approx(1)
    assert (predicted.argmax(axis=1) == labels).mean() > 0.7

    logits, _ = fit_heads(features, labels, folds, 0.1)
    changed = np.where(folds == 2, 0, labels)
    others, _ = fit_heads(features, changed, folds, 0.1)
    np.testing.assert_allclose(logits[:, 2], others[:, 2], atol=1e-3)
    assert np.abs(logits[:, 1] - others[:, 1]).max() > 0.1
    _, (kernel, bias) = fit_heads(features, labels, np.arange(90) % 2, 0.1)  # at the minimum, the gradient is 0
    mine = features[1::2] @ kernel.reshape(4, 2, 3)[:, 0] + bias[0]  # fold 0 learns from the others
    errors = np.exp(mine) / np.exp(mine).sum(axis=1, keepdims=True) - np.eye(3)[labels[1::2]]
    gradient = features[1::2].T @ errors / 45 + 0.1 * kernel.reshape(4, 2, 3)[:, 0]
    assert np.abs(gradient).max() < 1e-3
