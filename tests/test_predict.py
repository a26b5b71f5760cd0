"""predict.py and evaluate.py as a user runs them."""

import contextlib
import csv
import json
import math
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import HANGING, PROJECT, draw_images, error_of, predictions, rows_of, run, save, start
from run_folders import change_metadata, damage, metadata_of

from dataset import read_train_sets


def test_text_names_the_most_likely_class_first(trained, photo):
    path, prediction = run("predict", "--model", trained, photo, process=True).stdout.strip().rsplit(": ", 1)
    assert path == str(photo)
    (first, p_first), (second, p_second) = (part.split() for part in prediction.split(", "))
    assert {first, second} == {"cats", "dogs"}
    assert float(p_first.rstrip("%")) >= float(p_second.rstrip("%"))
    assert "," not in run("predict", "--model", trained, "--top", 1, photo).stdout


def test_csv_and_json_tell_the_same(trained, images):
    lines = run("predict", "--model", trained, "--format", "csv", images).stdout.splitlines()
    rows = list(csv.DictReader(lines))
    assert lines[0] == "path,class,probability,cats,dogs"
    predicted = predictions(trained, images)
    assert [row["path"] for row in rows] == list(predicted)
    assert len(rows) == 24
    for row in rows:
        prediction = predicted[row["path"]]
        assert set(prediction) == {"path", "class", "probability", "probabilities", "ood_score"}
        likeliest = max(prediction["probabilities"], key=prediction["probabilities"].get)
        assert row["class"] == prediction["class"] == ("unknown" if prediction["ood_score"] > 1 else likeliest)
        assert sum(prediction["probabilities"].values()) == pytest.approx(1)
        assert float(row["probability"]) == pytest.approx(prediction["probability"], rel=1e-5)
        assert float(row["dogs"]) == pytest.approx(prediction["probabilities"]["dogs"], rel=1e-5)


def test_shards_together_are_the_whole(trained, images):
    predict = ("predict", "--model", trained, "--format", "csv", images)
    whole = run(*predict).stdout
    for shards in (5, 30):  # of 24 images: unequal shares, and empty ones
        parts = [run(*predict, "--shard", f"{k + 1}/{shards}").stdout for k in range(shards)]
        assert "".join(parts) == whole
        assert sorted({part.count(".jpg") for part in parts}) == ([4, 5] if shards == 5 else [0, 1])
    for wrong in ("0/3", "4/3", "1/0", "3", "a/b"):
        assert "such as 3/16" in run(*predict, "--shard", wrong, code=2).stderr
    refused = run(*predict, "--shard", "1/2", "--submission", "submission.csv", code=2)
    assert "--submission needs all images" in error_of(refused)


def test_paths_on_standard_input_and_some_that_cannot_be_predicted(trained, images, photo):
    paths = [str(photo), str(images / "cats/cats_3.jpg")]
    assert list(predictions(trained, "-", text="\n".join(paths) + "\n")) == paths
    assert "standard input" in error_of(run("predict", "--model", trained, "-", text="", code=3))

    finished = run("predict", "--model", trained, "nowhere.jpg", photo, images / "cats", code=1)
    assert error_of(finished) == "error: nowhere.jpg: No such file or directory"
    assert len(finished.stdout.splitlines()) == 13  # the rest is predicted
    Path("empty").mkdir()
    assert "no images in empty" in error_of(run("predict", "--model", trained, "empty", code=3))
    Path("bad.jpg").write_bytes(b"")
    assert predictions(trained, "bad.jpg", code=1)["bad.jpg"] == {"path": "bad.jpg", "error": "empty file"}


def test_the_newest_finished_run_is_used(run_folder, photo):
    shutil.copytree(run_folder, "runs/002")
    change_metadata("runs/002", finished=False, classes=["x", "y"])
    assert set(predictions("runs", photo)[str(photo)]["probabilities"]) == {"cats", "dogs"}
    assert set(predictions("runs/002", photo)[str(photo)]["probabilities"]) == {"x", "y"}  # asked for by name
    shutil.rmtree("runs/001")
    assert "no finished run in runs" in error_of(run("predict", "--model", "runs", photo, code=3))


def test_damaged_run_folders(trained, photo):
    def broken(change=lambda: None, process=False, **metadata):
        shutil.rmtree("copy", ignore_errors=True)
        shutil.copytree(trained, "copy")
        change_metadata("copy", **metadata)
        change()
        finished = run("predict", "--model", "copy", photo, code=3, process=process)
        assert "WARNING" not in finished.stderr
        assert finished.stderr.splitlines()[-1] == error_of(finished)
        return error_of(finished)

    def empty_checkpoints():
        for path in Path("copy").rglob("ckpt-*"):
            path.write_bytes(b"")  # the LiteRT file does not belong to these any more

    assert "there is no run folder" in error_of(run("predict", "--model", "nowhere", photo, code=3))
    file = Path("copy/model.json")
    assert "not a run folder" in broken(file.unlink)
    damaged = "model.json is damaged"
    assert damaged in broken(lambda: file.write_text('{"network": "cnn", "cla'))
    assert damaged in broken(lambda: file.write_text("[" * 100_000))
    assert damaged in broken(classes="ab")
    assert damaged in broken(image_size=10**9)
    assert damaged in broken(ood={"threshold": math.nan, "features": "last"})
    assert "does not fit" in broken(classes=["a", "b", "c"])
    assert "no network 'transformer'" in broken(network="transformer", litert=None)
    assert "no checkpoint" in broken(lambda: shutil.rmtree("copy/checkpoints"))
    assert "no sound checkpoint" in broken(classes=["a", "b", "c"], litert=None, process=True)  # TensorFlow warns there
    assert "no sound checkpoint" in broken(image_size=64, litert=None)
    assert "no sound checkpoint" in broken(empty_checkpoints)


def test_a_damaged_selected_checkpoint_falls_back_to_the_newest_and_says_so(run_folder, photo):
    (data,), (index,) = ((run_folder / "checkpoints/selected").glob(f"ckpt-*.{suffix}") for suffix in ("data*", "index"))
    whole = data.read_bytes()
    for harm in (lambda: damage(data), lambda: data.write_bytes(whole[:1000]), lambda: damage(index)):
        data.write_bytes(whole)
        harm()
        finished = run("predict", "--model", run_folder, "--runtime", "tensorflow", photo)
        assert "is damaged" in finished.stderr
        assert "training" in finished.stderr


def test_submission_for_kaggle(trained, run_folder, images):
    Path("test1").mkdir()
    for number, name in enumerate(["cats/cats_1.jpg", "dogs/dogs_1.jpg", "dogs/dogs_2.jpg"], start=9):
        shutil.copy(images / name, f"test1/{number}.jpg")
    predicted = predictions(trained, "test1", "--submission", "submission.csv")
    rows = rows_of("submission.csv")
    assert [row["id"] for row in rows] == ["9", "10", "11"]
    for row in rows:
        assert float(row["label"]) == pytest.approx(predicted[f"test1/{row['id']}.jpg"]["probabilities"]["dogs"], abs=1e-6)
    change_metadata(run_folder, temperature=1e-6)  # certain of everything
    limits = run("predict", "--model", run_folder, "test1", "--submission", "sure.csv", "--runtime", "tensorflow").stderr
    assert "labels from 0.166667 to 0.833333" in limits  # of four validation images
    assert {row["label"] for row in rows_of("sure.csv")} <= {"0.166667", "0.833333"}
    Path("link.csv").symlink_to("submission.csv")
    run("predict", "--model", trained, "test1/9.jpg", "--submission", "link.csv")
    assert Path("link.csv").is_symlink()
    assert len(rows_of("submission.csv")) == 1
    assert "9," in run("predict", "--model", trained, "test1/9.jpg", "--submission", "/dev/stdout", process=True).stdout
    assert list(predictions(trained, "test1/9.jpg", "--submission", "test1", code=1)) == ["test1/9.jpg"]  # a folder

    assert "numbered" in error_of(run("predict", "--model", trained, images, "--submission", "other.csv", code=2))
    assert "no folder no" in error_of(run("predict", "--model", trained, "test1", "--submission", "no/where.csv", code=2))
    change_metadata(run_folder, classes=["cats", "stripes"])
    assert "class dog" in error_of(run("predict", "--model", run_folder, "test1", "--submission", "other.csv", code=2))


def test_a_class_called_unknown_is_told_from_no_class(trained, run_folder, photo):
    change_metadata(run_folder, classes=["Unknown", "dogs"])
    for model, no_class in ((trained, "unknown"), (run_folder, "(unknown)")):
        arguments = ("predict", "--model", model, photo, "--min-confidence", 1)
        assert json.loads(run(*arguments, "--format", "json").stdout)[0]["class"] == no_class
        assert f"{photo}: {no_class} (" in run(*arguments).stdout
        assert f"{photo},{no_class}," in run(*arguments, "--format", "csv").stdout


def test_a_progress_bar_on_a_terminal_leaves_results_alone(trained, images, tmp_path):
    """Standard error is a terminal, standard output a file: every result is in the file, the bar is not."""
    terminal, other_end = pty.openpty()
    with open("out.txt", "w") as out:
        process = start("predict", "--model", trained, images, stdout=out, stderr=other_end)
    os.close(other_end)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is closed
        while part := os.read(terminal, 1024):
            shown += part
    assert process.wait(HANGING) == 0
    os.close(terminal)
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 24
    assert b"predicting" in shown


def test_odd_standard_streams_and_a_reader_that_has_seen_enough(trained, photo):
    Path("paths").write_text(f"{photo}\n" * 3000)  # more lines than a pipe holds
    with open("paths") as paths:
        process = start("predict", "--model", trained, "-", stdin=paths)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(HANGING) == 1
    shell = f"{sys.executable} {PROJECT / 'predict.py'} --model {trained} {photo}"
    for redirection in (">&-", "2>&-", "<&-"):
        assert subprocess.run(f"{shell} {redirection}", shell=True).returncode == 0
    renamed = photo.rename(photo.with_name("größe.jpg"))
    assert "größe.jpg" in run("predict", "--model", trained, renamed, env=os.environ | {"PYTHONIOENCODING": "ascii"}).stdout


@pytest.mark.parametrize("script", ["train", "predict", "evaluate", "export", "explain"])
@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--nonsense", 2)])
def test_help_and_a_wrong_flag_answer_at_once(script, flag, code):
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1", "TF_CPP_MIN_LOG_LEVEL": "1"}
    finished = run(script, flag, code=code, env=environment)
    assert "usage" in finished.stdout + finished.stderr
    assert "import time" in finished.stderr
    assert "numpy" not in finished.stderr  # nor what imports it, OpenCV and TensorFlow


def test_evaluation_agrees_with_the_predictions(trained, images):
    result = json.loads(run("evaluate", "--model", trained, "--format", "json", images).stdout)
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


def test_evaluation_of_the_validation_images_is_the_validation_accuracy(trained, run_folder, tmp_path):
    """The way of training and the way of prediction come to the same figures."""
    sets = read_train_sets(trained.parent.parent / "images", 32)
    for path, label in zip(sets.valid.paths, sets.valid.labels, strict=True):
        copy = tmp_path / "valid" / sets.classes[label] / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    change_metadata(run_folder, temperature=1.0)  # there is none in training
    result = json.loads(run("evaluate", "--model", run_folder, "--format", "json", "valid").stdout)
    selected = metadata_of(trained)["selected"]
    assert result["accuracy"] == pytest.approx(selected["val_accuracy"], abs=1e-6)
    assert result["log_loss"] == pytest.approx(selected["val_loss"], abs=1e-5)


def test_a_demanded_accuracy(trained, images):
    run("evaluate", "--model", trained, "--min-accuracy", 0, images)
    accuracy = json.loads(run("evaluate", "--model", trained, "--format", "json", images).stdout)["accuracy"]
    if accuracy > 0.5:  # with the classes' names exchanged, most predictions are incorrect
        (images / "cats").rename(images / "x")
        (images / "dogs").rename(images / "cats")
        (images / "x").rename(images / "dogs")
    finished = run("evaluate", "--model", trained, "--min-accuracy", 0.51, images, code=4, process=True)
    assert "below the required" in finished.stderr
    assert "accuracy" in finished.stdout, "the figures are printed all the same"
    run("evaluate", "--min-accuracy", 90, images, code=2)


def test_images_of_other_things_are_told_from_those_of_the_classes(trained, images, tmp_path):
    for k in range(6):
        noise = np.random.default_rng(k).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        save(tmp_path / f"noise/{k}.png", noise if k else np.zeros_like(noise))
    (tmp_path / "noise/bad.jpg").write_bytes(b"")
    arguments = ("--model", trained, images, "--ood-dir", "noise", images)
    result = json.loads(run("evaluate", *arguments, "--format", "json").stdout)["out_of_distribution"]
    ordinary = [prediction["ood_score"] for prediction in predictions(trained, images).values()]
    odd = [prediction["ood_score"] for prediction in predictions(trained, "noise", code=1).values() if "class" in prediction]
    pairs = [other > one for one in ordinary for other in odd]
    assert result["noise"]["area_under_roc"] == pytest.approx(np.mean(pairs), abs=0.01)
    assert (result["noise"]["scored"], result["noise"]["skipped"]) == (6, 1)
    assert result["noise"]["unknown"] == sum(ood_score > 1 for ood_score in odd)
    assert result[str(images)]["area_under_roc"] == pytest.approx(0.5)
    assert "of 6 images in noise would be predicted as unknown" in run("evaluate", *arguments).stdout
    assert "no folder nowhere" in error_of(run("evaluate", *arguments[:3], "--ood-dir", "nowhere", code=3))
    assert "--ood-dir" in error_of(run("evaluate", images, "--zero-shot", "mobilenet_v2", "--ood-dir", "noise", code=2))


def test_evaluation_of_one_class_and_of_unusable_folders(trained, images):
    assert "no folder" in error_of(run("evaluate", "--model", trained, "nowhere", code=3))
    draw_images(images, 2, ["birds"])
    assert "'birds' is not one of the model's: cats, dogs" in error_of(run("evaluate", "--model", trained, images, code=3))
    shutil.rmtree(images / "birds")
    shutil.rmtree(images / "dogs")
    result = json.loads(run("evaluate", "--model", trained, "--format", "json", images).stdout)
    assert result["scored"] == 12
    assert result["per_class"]["dogs"]["recall"] is None
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"")
    assert "none of the 12 images" in run("evaluate", "--model", trained, images, code=3).stderr
