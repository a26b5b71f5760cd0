"""predict.py as a user runs it, and the --help of scripts."""

import contextlib
import csv
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import HANGING, PROJECT, error_of, predictions, rows_of, run, start
from run_folders import change_metadata

SCRIPTS = ("train", "predict", "evaluate", "explain", "export", "demo")


def test_text_csv_and_json_tell_the_same(trained, images, photo):
    path, prediction = run("predict", "--model", trained, photo, process=True).stdout.strip().rsplit(": ", 1)
    assert path == str(photo)
    (first, p_first), (second, p_second) = (part.split() for part in prediction.split(", "))
    assert {first, second} == {"cats", "dogs"}
    assert float(p_first.rstrip("%")) >= float(p_second.rstrip("%"))
    assert "," not in run("predict", "--model", trained, "--top", 1, photo).stdout

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
    for shards, shares in ((5, [4, 5]), (30, [0, 1])):  # of 24 images: unequal shares, and empty ones
        parts = [run(*predict, "--shard", f"{k + 1}/{shards}").stdout for k in range(shards)]
        assert "".join(parts) == whole
        assert sorted({part.count(".jpg") for part in parts}) == shares
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
    for name in ("no suffix", "photo.jpg_large", "photo.jif"):
        shutil.copy(photo, images / "cats" / name)
    (images / "cats/notes.txt").write_text("my cats")
    finished = run("predict", "--model", trained, images / "cats")
    assert len(finished.stdout.splitlines()) == 15
    assert "ignored: 1 files in " in finished.stderr
    with tarfile.open("cats.tar", "w") as tar:
        tar.add(images / "cats", "cats")
    assert len(run("predict", "--model", trained, "cats.tar").stdout.splitlines()) == 15
    Path("empty").mkdir()
    assert "no images in empty" in error_of(run("predict", "--model", trained, "empty", code=3))
    Path("bad.jpg").write_bytes(b"")
    assert predictions(trained, "bad.jpg", code=1)["bad.jpg"] == {"path": "bad.jpg", "error": "empty file"}


def test_paths_as_people_and_programs_write_them(trained, photo):
    """A list as find -print0, Windows, PowerShell and file managers write it; arguments that no shell expanded."""
    Path("BM ß").mkdir()
    paths = [shutil.copy(photo, f"BM ß/{name}.jpg") for name in ("2", "10", "[1]")]
    for text in (
        "\0".join(paths) + "\0",
        "\ufeff" + "\r\n".join(f'"{path}"' for path in paths),
        os.fsdecode("\ufeff".encode("utf-16-le") + "\r\n".join(paths).encode("utf-16-le")),
    ):
        assert list(predictions(trained, "-", text=text)) == paths
    assert list(predictions(trained, "-", text=Path(paths[0]).absolute().as_uri())) == [f"{Path.cwd()}/{paths[0]}"]
    assert list(predictions(trained, "BM*/*.jpg")) == paths
    assert list(predictions(trained, "BM ß/[1].jpg", "'BM ß/2.jpg'")) == [paths[2], paths[0]]
    assert error_of(run("predict", "--model", trained, "no/*.jpg", photo, code=3)) == "error: no file matches no/*.jpg"
    assert "download it" in error_of(run("predict", "--model", trained, "https://example.org/a.jpg", code=2))
    image = os.fsdecode(photo.read_bytes())
    assert "standard input is an image" in error_of(run("predict", "--model", trained, "-", text=image, code=2))


def test_the_newest_finished_run_is_used(run_folder, photo):
    shutil.copytree(run_folder, "runs/002")
    change_metadata("runs/002", finished=False, classes=["x", "y"])
    assert set(predictions("runs", photo)[str(photo)]["probabilities"]) == {"cats", "dogs"}
    assert set(predictions("runs/002", photo)[str(photo)]["probabilities"]) == {"x", "y"}  # asked for by name
    shutil.rmtree("runs/001")
    assert "no finished run in runs" in error_of(run("predict", "--model", "runs", photo, code=3))


def empty_checkpoints():
    for path in Path("runs/001").rglob("ckpt-*"):
        path.write_bytes(b"")  # the LiteRT file does not belong to these any more


RECORD = Path("runs/001/model.json")
DAMAGED = "model.json is damaged"


@pytest.mark.parametrize(
    ("change", "metadata", "problem"),
    [
        (lambda: shutil.rmtree("runs"), {}, "there is no run folder"),
        (RECORD.unlink, {}, "not a run folder"),
        (lambda: RECORD.write_text('{"network": "cnn", "cla'), {}, DAMAGED),
        (None, {"classes": "ab"}, DAMAGED),
        (None, {"classes": ["a", "b", "c"]}, "does not fit"),
        (None, {"settings": {"network": "transformer"}}, DAMAGED),
        (lambda: shutil.rmtree("runs/001/checkpoints"), {}, "no checkpoint"),
        (None, {"classes": ["a", "b", "c"], "litert": None}, "no sound checkpoint"),
        (None, {"settings": {"image_size": 64}, "litert": None}, "no sound checkpoint"),
        (empty_checkpoints, {}, "no sound checkpoint"),
    ],
)
def test_a_damaged_run_folder_is_one_clear_line(run_folder, photo, capfd, change, metadata, problem):
    change_metadata(run_folder, **metadata)
    if change:
        change()
    finished = run("predict", "--model", run_folder, photo, code=3)
    assert problem in error_of(finished)
    assert finished.stderr.splitlines()[-1] == error_of(finished)
    assert "WARNING:tensorflow" not in finished.stderr + capfd.readouterr().err


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
    shutil.copy("test1/9.jpg", "9.png")
    same = error_of(run("predict", "--model", trained, "test1/9.jpg", "9.png", "--submission", "other.csv", code=2))
    assert "test1/9.jpg and 9.png have the same number" in same
    assert "does not end in .csv" in error_of(
        run("predict", "--model", trained, "test1/9.jpg", "--submission", "9.png", code=2)
    )

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


@pytest.mark.parametrize(("flag", "problem"), [("-S", "No module named 'numpy'"), ("-B", "cv2.abi3.so: file too short")])
def test_a_package_that_is_missing_or_cannot_be_loaded_is_one_line(trained, photo, flag, problem):
    """Of Python's flags, -S hides installed packages; a library of the system is missing in the same way as half of one."""
    Path("cv2.abi3.so").write_bytes(b"half")
    command = [sys.executable, flag, PROJECT / "predict.py", "--model", trained, photo]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    finished = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert finished.returncode == 1
    assert re.fullmatch(f"error: .*{problem}: .*(python|pip install).*\n", finished.stderr)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_a_wrong_flag_answer_at_once(script):
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1", "TF_CPP_MIN_LOG_LEVEL": "1"}
    for flag, code in (("--help", 0), ("--nonsense", 2)):
        finished = run(script, flag, code=code, env=environment)
        assert "usage" in finished.stdout + finished.stderr
        assert "import time" in finished.stderr
        assert "numpy" not in finished.stderr  # nor what imports it, OpenCV and TensorFlow
