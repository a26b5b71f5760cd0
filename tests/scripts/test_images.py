"""Bad and odd image files, in training, prediction and evaluation."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
from conftest import DRAWING, encoded, error_of, predictions, rows_of, run, save, train
from image_files import REASONS, add_bad_files
from run_folders import metadata_of

from classifier.runs.settings import Settings
from dataset import read_images


def test_training_skips_bad_files_and_says_what_it_ignores(images, tmp_path):
    (images / "dogs").rename("dogs")
    (images / "dogs").symlink_to(tmp_path / "dogs")  # links are followed
    (images / "dogs/circle").symlink_to(tmp_path / "dogs")  # circles end
    (images / "empty_class").mkdir()
    save(images / ".hidden" / "a.jpg")
    save(images / "cats" / "._cats_1.jpg")
    save(images / "stray.jpg")
    (images / "cats" / "Thumbs.db").write_bytes(b"")
    (images / "dogs/no_dog.jpg").write_bytes((images / "cats/cats_3.jpg").read_bytes())
    add_bad_files(images / "cats")
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    said = train(images).stderr.replace(str(images.parent) + os.sep, "")
    assert {path: path.lstat().st_mtime_ns for path in before} == before  # nothing of the user's is touched
    for told in (
        "cats 10 + 2, dogs 10 + 3 (training",
        "folder images/empty_class",
        "1 images in images that",
        "stray.jpg",
        "1 .db",
        "warning: 1 images are in two classes, such as images/dogs/no_dog.jpg, a copy of images/cats/cats_3.jpg",
        f"skipped    {len(REASONS)}: ",
        "2 damaged or truncated JPEG",  # each kind is counted by itself
    ):
        assert told in said
    assert "6 damaged or truncated" not in said
    rows = {os.path.basename(row["path"]): row["reason"] for row in rows_of("runs/001/skipped.csv")}
    assert rows.keys() == REASONS.keys()
    assert all(rows[name].startswith(reason) for name, reason in REASONS.items())


def test_prediction_and_evaluation_name_bad_files_and_score_the_others(trained, images):
    good = save(images / "dogs/good.jpg")
    add_bad_files(images / "dogs")
    predicted = predictions(trained, images, code=1)
    assert predicted[str(good)]["class"] in ("cats", "dogs")
    errors = {os.path.basename(path): prediction["error"] for path, prediction in predicted.items() if "error" in prediction}
    assert errors.keys() == REASONS.keys()
    assert all(errors[name].startswith(reason) for name, reason in REASONS.items())
    result = json.loads(run("evaluate", "--model", trained, "--format", "json", images).stdout)
    assert (result["scored"], result["skipped"]) == (25, len(REASONS))


def test_images_that_change_places_are_decoded_anew_and_dim_ones_are_named():
    """Bitmaps of one size and time: without their places on the disk, the cache could not tell them apart."""
    paths = [Path(f"images/{kind}/{k}.bmp") for kind in ("cats", "dogs") for k in range(3)]
    for k, path in enumerate(paths):
        save(path, np.full((16, 16, 3), 1 + k, np.uint8) + np.eye(16, dtype=np.uint8)[..., None])
        os.utime(path, (0, 0))
    settings = Settings(data_dir=Path("images"), image_size=16)
    said = train("images", "--image-size", 16).stderr
    assert "warning: all 6 images, such as images/cats/0.bmp, use only the lowest 1/16" in said
    read = lambda: read_images(settings, Path("runs/.cache")).data.load(np.arange(6))  # noqa: E731
    before = read()
    paths[0].rename("free")
    paths[5].rename(paths[0])
    Path("free").rename(paths[5])
    np.testing.assert_array_equal(read(), before[[5, 1, 2, 3, 4, 0]])


def test_native_libraries_keep_quiet(trained, tmp_path):
    """libjpeg and libpng write warnings straight to file descriptor 2; the user sees our line and nothing else."""
    damaged = bytearray(encoded(".png"))
    damaged[1000] ^= 255
    (tmp_path / "damaged.png").write_bytes(damaged)
    stray = encoded(".jpg")
    (tmp_path / "stray.jpg").write_bytes(stray[:-2] + bytes(50) + stray[-2:])
    finished = run("predict", "--model", trained, "damaged.png", "stray.jpg", code=1, process=True)
    assert finished.stderr.splitlines() == ["error: damaged.png: damaged or truncated PNG"]


def test_a_run_keeps_its_fit_and_every_script_takes_it_from_there(images, tmp_path, monkeypatch):
    wide = save(images / "dogs/wide.png")
    square = cv2.resize(DRAWING[:, 10:80], (32, 32), interpolation=cv2.INTER_AREA)
    cropped = save(tmp_path / "cropped.png", square)
    train(images, "--fit", "crop", "--epochs", 1)
    predicted = predictions("runs/001", wide, cropped)
    assert predicted[str(wide)]["probabilities"] == predicted[str(cropped)]["probabilities"]
    assert metadata_of("runs/001")["settings"]["fit"] == "crop"
    assert "cannot change on --resume" in error_of(run("train", "--resume", "runs/001", "--fit", "pad", code=2))
    for path in images.rglob("*.*"):  # evaluation finds in a square what it finds in the wide image
        path.unlink()
    save(images / "dogs/wide.png")
    save(images / "cats/cropped.png", square)
    result = json.loads(run("evaluate", "--model", "runs/001", images, "--predictions", "p.csv", "--format", "json").stdout)
    assert result["accuracy"] == 0.5
    wide, cropped = rows_of("p.csv")
    assert wide["probability"] == cropped["probability"]
