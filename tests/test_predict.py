"""predict.py and evaluate.py as a user runs them."""

import contextlib
import csv
import io
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
from conftest import HANGING, PROJECT, QUICK, draw_images, error_of, predictions, run, save, start

from classifier.images import load_image
from dataset import read_train_sets


@pytest.fixture
def photo(images):
    return images / "cats" / "cats_3.jpg"


def test_text_names_the_classes_best_first(trained, photo):
    path, answer = run("predict", "--model", trained, photo, process=True).stdout.strip().rsplit(": ", 1)
    assert path == str(photo)
    (first, p_first), (second, p_second) = (part.split() for part in answer.split(", "))
    assert {first, second} == {"cats", "dogs"}
    assert float(p_first.rstrip("%")) >= float(p_second.rstrip("%"))
    assert "," not in run("predict", "--model", trained, "--top", 1, photo).stdout


def test_csv_and_json_tell_the_same(trained, images):
    table = run("predict", "--model", trained, "--format", "csv", images).stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert table.splitlines()[0] == "path,class,probability,cats,dogs"
    answers = predictions(trained, images)
    assert [row["path"] for row in rows] == list(answers)
    assert len(rows) == 24
    for row in rows:
        answer = answers[row["path"]]
        assert set(answer) == {"path", "class", "probability", "probabilities", "novelty"}
        likeliest = max(answer["probabilities"], key=answer["probabilities"].get)
        assert row["class"] == answer["class"] == ("unknown" if answer["novelty"] > 1 else likeliest)
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert float(row["probability"]) == pytest.approx(answer["probability"], rel=1e-5)
        assert float(row["dogs"]) == pytest.approx(answer["probabilities"]["dogs"], rel=1e-5)


def test_paths_on_standard_input(trained, images, photo):
    answers = predictions(trained, "-", text=f"{photo}\n{images / 'dogs/dogs_1.jpg'}\n")
    assert list(answers) == [str(photo), str(images / "dogs/dogs_1.jpg")]
    assert "standard input" in error_of(run("predict", "--model", trained, "-", text="", code=3))


def test_a_bad_file_does_not_stop_the_rest(trained, photo, tmp_path):
    finished = run("predict", "--model", trained, "nowhere.jpg", photo, tmp_path / "images/cats", code=1)
    assert error_of(finished) == "error: nowhere.jpg: No such file or directory"
    assert len(finished.stdout.splitlines()) == 13
    (tmp_path / "empty").mkdir()
    assert "no images in empty" in error_of(run("predict", "--model", trained, "empty", code=3))
    (tmp_path / "bad.jpg").write_bytes(b"")
    assert predictions(trained, "bad.jpg", code=1)["bad.jpg"] == {"path": "bad.jpg", "error": "empty file"}


def test_the_newest_finished_run_is_used(trained, photo, tmp_path):
    shutil.copytree(trained, "runs/001")
    shutil.copytree(trained, "runs/002")
    card = json.loads((tmp_path / "runs/002/model.json").read_text())
    (tmp_path / "runs/002/model.json").write_text(json.dumps(card | {"finished": False, "classes": ["x", "y"]}))
    assert set(predictions("runs", photo)[str(photo)]["probabilities"]) == {"cats", "dogs"}
    assert set(predictions("runs/002", photo)[str(photo)]["probabilities"]) == {"x", "y"}  # asked for by name
    shutil.rmtree("runs/001")
    assert "no finished run in runs" in error_of(run("predict", "--model", "runs", photo, code=3))


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def test_damaged_run_folders(trained, photo, tmp_path):
    def broken(name, change, **card):
        folder = tmp_path / name
        shutil.copytree(trained, folder)
        known = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(known | card))
        change(folder)
        finished = run("predict", "--model", folder, photo, code=3, process=name == "other_shape")  # TensorFlow warns there
        assert "WARNING" not in finished.stderr
        assert finished.stderr.splitlines()[-1] == error_of(finished)
        return error_of(finished)

    assert "there is no run folder" in error_of(run("predict", "--model", "nowhere", photo, code=3))
    assert "not a run folder" in broken("no_card", lambda folder: (folder / "model.json").unlink())
    damaged = "model.json is damaged"
    assert damaged in broken("half_card", lambda folder: (folder / "model.json").write_text('{"network": "cnn", "cla'))
    assert damaged in broken("deep_card", lambda folder: (folder / "model.json").write_text("[" * 100_000))
    assert damaged in broken("odd_classes", lambda folder: None, classes="ab")
    assert damaged in broken("odd_size", lambda folder: None, image_size=10**9)
    assert damaged in broken("odd_limit", lambda folder: None, novelty={"limit": math.nan, "features": "last"})
    assert "does not fit" in broken("other_classes", lambda folder: None, classes=["a", "b", "c"])
    no_litert = {"litert": None}
    assert "no network 'transformer'" in broken("other_network", lambda folder: None, network="transformer", **no_litert)
    assert "no checkpoint" in broken("no_checkpoint", lambda folder: shutil.rmtree(folder / "checkpoints"))
    assert "no sound checkpoint" in broken("other_shape", lambda folder: None, classes=["a", "b", "c"], **no_litert)
    assert "no sound checkpoint" in broken("other_size", lambda folder: None, image_size=64, **no_litert)

    def empty_all(folder):
        for path in folder.rglob("ckpt-*"):
            path.write_bytes(b"")  # the LiteRT file does not belong to these any more

    assert "no sound checkpoint" in broken("empty", empty_all)


def test_a_damaged_best_checkpoint_falls_back_to_the_newest_and_says_so(trained, photo):
    shutil.copytree(trained, "run")
    best = Path("run/checkpoints/best")
    (data,), (index,) = best.glob("ckpt-*.data*"), best.glob("ckpt-*.index")
    whole = data.read_bytes()
    for harm in (lambda: damage(data), lambda: data.write_bytes(whole[:1000]), lambda: damage(index)):
        data.write_bytes(whole)
        harm()
        finished = run("predict", "--model", "run", "--runtime", "tensorflow", photo)
        assert "is damaged" in finished.stderr
        assert "newest" in finished.stderr


def test_submission_for_kaggle(trained, images, tmp_path):
    for k, name in enumerate(["cats/cats_1.jpg", "dogs/dogs_1.jpg", "dogs/dogs_2.jpg"]):
        (tmp_path / "test1").mkdir(exist_ok=True)
        shutil.copy(images / name, tmp_path / "test1" / f"{9 + k}.jpg")
    answers = predictions(trained, "test1", "--submission", "submission.csv")
    rows = list(csv.DictReader((tmp_path / "submission.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == ["9", "10", "11"]
    for row in rows:
        assert float(row["label"]) == pytest.approx(answers[f"test1/{row['id']}.jpg"]["probabilities"]["dogs"], abs=1e-6)
    shutil.copytree(trained, "sure")
    card = json.loads((trained / "model.json").read_text())
    (tmp_path / "sure/model.json").write_text(json.dumps(card | {"temperature": 1e-6}))  # certain of everything
    limits = run("predict", "--model", "sure", "test1", "--submission", "sure.csv", "--runtime", "tensorflow").stderr
    assert "labels from 0.166667 to 0.833333" in limits  # of four validation images
    labels = {row["label"] for row in csv.DictReader((tmp_path / "sure.csv").read_text().splitlines())}
    assert labels <= {"0.166667", "0.833333"}
    assert "numbered" in error_of(run("predict", "--model", trained, images, "--submission", "other.csv", code=2))
    assert "no folder no" in error_of(run("predict", "--model", trained, "test1", "--submission", "no/where.csv", code=2))
    (tmp_path / "link.csv").symlink_to("submission.csv")
    run("predict", "--model", trained, "test1/9.jpg", "--submission", "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert len((tmp_path / "submission.csv").read_text().splitlines()) == 2
    assert "9," in run("predict", "--model", trained, "test1/9.jpg", "--submission", "/dev/stdout", process=True).stdout


def test_a_class_called_unknown_is_told_from_no_class(trained, photo, tmp_path):
    shutil.copytree(trained, "copy")
    card = json.loads((trained / "model.json").read_text())
    (tmp_path / "copy/model.json").write_text(json.dumps(card | {"classes": ["Unknown", "dogs"]}))
    for path in (trained, "copy"):
        no_class = "unknown" if path == trained else "(unknown)"
        arguments = ("predict", "--model", path, photo, "--min-confidence", 1)
        assert json.loads(run(*arguments, "--format", "json").stdout)[0]["class"] == no_class
        assert f"{photo}: {no_class} (" in run(*arguments).stdout
        assert f"{photo},{no_class}," in run(*arguments, "--format", "csv").stdout


def test_submission_needs_a_dog(tmp_path):
    folder = draw_images(tmp_path / "images", 4, ("cats", "stripes"))
    run("train", "--data-dir", folder, "--output", "runs", *QUICK)
    shutil.copy(folder / "cats/cats_1.jpg", "1.jpg")
    assert "class dog" in error_of(run("predict", "--model", "runs", "1.jpg", "--submission", "other.csv", code=2))


def test_a_reader_that_has_seen_enough(trained, photo, tmp_path):
    (tmp_path / "paths").write_text(f"{photo}\n" * 3000)  # more answers than a pipe holds
    with open("paths") as paths:
        process = start("predict", "--model", trained, "-", stdin=paths)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(HANGING) == 1


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


def test_odd_standard_streams(trained, photo):
    shell = f"{sys.executable} {PROJECT / 'predict.py'} --model {trained} {photo}"
    for redirection in (">&-", "2>&-", "<&-"):
        assert subprocess.run(f"{shell} {redirection}", shell=True).returncode == 0
    renamed = photo.rename(photo.with_name("größe.jpg"))
    answer = subprocess.run([sys.executable, PROJECT / "predict.py", "--model", trained, renamed], check=True,
                            capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert "größe.jpg" in answer.stdout.decode()


@pytest.mark.parametrize("script", ["train", "predict", "evaluate", "export", "tools.benchmark", "tools.learning_curve",
                                    "tools.score_table", "tools.readme_pictures"])
@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--nonsense", 2)])
def test_help_and_a_wrong_flag_answer_at_once(script, flag, code):
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1", "TF_CPP_MIN_LOG_LEVEL": "1"}
    finished = run(script, flag, code=code, env=environment)
    assert "usage" in finished.stdout + finished.stderr
    assert "import time" in finished.stderr
    assert "numpy" not in finished.stderr  # nor what imports it, OpenCV and TensorFlow


# --- evaluate.py ------------------------------------------------------------------------------------------------------


def test_evaluation_agrees_with_the_predictions(trained, images):
    result = json.loads(run("evaluate", "--model", trained, "--format", "json", images).stdout)
    answers = predictions(trained, images)
    confusion, loss = np.zeros((2, 2), int), 0
    for path, answer in answers.items():
        true = "cats" if "/cats/" in path else "dogs"
        confusion[["cats", "dogs"].index(true), ["cats", "dogs"].index(answer["class"])] += 1
        loss -= math.log(answer["probabilities"][true]) / len(answers)
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


def test_evaluation_of_the_validation_images_is_the_validation_accuracy(trained, tmp_path):
    """The way of training and the way of prediction come to the same figures."""
    sets = read_train_sets(trained.parent.parent / "images", 32)
    for path, label in zip(sets.valid.paths, sets.valid.labels, strict=True):
        copy = tmp_path / "valid" / sets.classes[label] / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    card = json.loads((trained / "model.json").read_text())
    shutil.copytree(trained, "copy")
    (tmp_path / "copy/model.json").write_text(json.dumps(card | {"temperature": 1.0}))  # there is none in training
    result = json.loads(run("evaluate", "--model", "copy", "--format", "json", "valid").stdout)
    best = card["best"]
    assert result["accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-6)
    assert result["log_loss"] == pytest.approx(best["val_loss"], abs=1e-5)


def test_a_demanded_accuracy(trained, images):
    run("evaluate", "--model", trained, "--min-accuracy", 0, images)
    right = json.loads(run("evaluate", "--model", trained, "--format", "json", images).stdout)["accuracy"]
    if right > 0.5:  # with the classes' names exchanged, it is wrong more often than right
        (images / "cats").rename(images / "x")
        (images / "dogs").rename(images / "cats")
        (images / "x").rename(images / "dogs")
    finished = run("evaluate", "--model", trained, "--min-accuracy", 0.51, images, code=4, process=True)
    assert "below the demanded" in finished.stderr
    assert "accuracy" in finished.stdout, "the figures are printed all the same"
    run("evaluate", "--min-accuracy", 90, images, code=2)


def test_images_of_other_things_are_told_from_those_of_the_classes(trained, images, tmp_path):
    for k in range(6):
        noise = np.random.default_rng(k).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        save(tmp_path / f"noise/{k}.png", noise if k else np.zeros_like(noise))
    (tmp_path / "noise/bad.jpg").write_bytes(b"")
    arguments = ("--model", trained, images, "--ood-dir", "noise", images)
    result = json.loads(run("evaluate", *arguments, "--format", "json").stdout)["out_of_distribution"]
    ordinary, odd = ([answer["novelty"] for answer in predictions(trained, folder, code=code).values() if "class" in answer]
                     for folder, code in ((images, 0), ("noise", 1)))  # fmt: skip
    pairs = [other > one for one in ordinary for other in odd]
    assert result["noise"]["area_under_roc"] == pytest.approx(np.mean(pairs), abs=0.01)
    assert (result["noise"]["scored"], result["noise"]["skipped"]) == (6, 1)
    assert result["noise"]["unknown"] == sum(novelty > 1 for novelty in odd)
    assert result[str(images)]["area_under_roc"] == pytest.approx(0.5)
    assert "of 6 images in noise would be predicted as unknown" in run("evaluate", *arguments).stdout
    assert "no folder nowhere" in error_of(run("evaluate", *arguments[:3], "--ood-dir", "nowhere", code=3))
    assert "--ood-dir" in error_of(run("evaluate", images, "--zero-shot", "mobilenet_v2", "--ood-dir", "noise", code=2))


def test_evaluation_of_unusable_folders(trained, images):
    assert "no folder" in error_of(run("evaluate", "--model", trained, "nowhere", code=3))
    draw_images(images, 2, ["birds"])
    assert "'birds' is not one of the model's: cats, dogs" in error_of(run("evaluate", "--model", trained, images, code=3))
    shutil.rmtree(images / "birds")
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"")
    assert "none of the 24 images" in run("evaluate", "--model", trained, images, code=3).stderr


def test_one_class_can_be_evaluated(trained, images):
    shutil.rmtree(images / "dogs")
    result = json.loads(run("evaluate", "--model", trained, "--format", "json", images).stdout)
    assert result["scored"] == 12
    assert result["per_class"]["dogs"]["recall"] is None


def test_the_drawings_can_be_drawn_again(tmp_path):
    """The committed samples are what draw_samples.py makes, and it overwrites nothing."""
    command = [sys.executable, "-m", "tools.draw_samples", "--output", tmp_path]
    subprocess.run([*command, "--per-class", "2", "--testing-per-class", "1"], check=True, cwd=PROJECT)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jpg"))
    assert len(made) == 6
    for path in made:
        np.testing.assert_array_equal(load_image(path, 64), load_image(PROJECT / path, 64))
    again = subprocess.run([*command, "--per-class", "2"], capture_output=True, text=True, cwd=PROJECT)
    assert again.returncode == 1
    assert "exist already" in again.stderr
