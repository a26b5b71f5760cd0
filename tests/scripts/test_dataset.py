"""Folders of every shape, through the scripts."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import draw_images, error_of, predictions, rows_of, run, save, train
from run_folders import metadata_of


def nested(folder, *folders):
    """Three images in each folder below a folder, all different."""
    for k in range(3):
        for n, name in enumerate(folders):
            image = np.full((20, 20, 3), 20 * n, np.uint8)
            image[: k + 1] = 255
            save(Path(folder, name, f"{k}.png"), image)
    return Path(folder)


def add(folder, name):
    """Put a file without content into a folder of images."""
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


FOLDERS = {  # how a folder of images is changed, which one is trained on, and what is said
    "missing": (lambda: None, "nowhere", "there is no folder"),
    "empty": (lambda: Path("empty").mkdir(), "empty", "no images"),
    "text": (lambda: add("empty", "notes.txt"), "empty", "no images"),
    "a file": (lambda: add(".", "notes.txt"), "notes.txt", "is not a folder"),
    "one class": (lambda: shutil.rmtree("images/dogs"), "images", "only one class, 'cats'"),
    "above": (lambda: nested("deep", "train/cats", "train/dogs"), "deep", "are the classes in deep/train?"),
    "parts": (
        lambda: nested("a b", *(f"{part}/{kind}" for part in ("train", "val", "Test") for kind in ("cats", "dogs"))),
        "a b",
        "(Test, train, val): give one of them; to train, --data-dir 'a b/train' --validation-dir 'a b/val'",
    ),
    "one image": (lambda: draw_images("images", 1, ["birds"]), "images", "class 'birds' has"),
    "none usable": (
        lambda: add("images", "birds/0.jpg"),
        "images",
        "no usable images in images: it needs two, one to validate on; skipped: images/birds/0.jpg (empty file)",
    ),
    "case": (lambda: shutil.copytree("images/cats", "images/Cats"), "images", "'Cats' and 'cats' differ only by case"),
    "blanks": (lambda: nested("blanks", "red", "red "), "blanks", "'red' and 'red ' differ only by case or blanks"),
    "exports": (
        lambda: [add("exports", f"IMG_{k}_jpg.rf.{part}.jpg") for k in "123" for part in "ab"],
        "exports",
        "no class",
    ),
    "top or leaf": (
        lambda: nested("food", "fruit/apple/red", "fruit/apple/green", "fruit/pear", "milk/sour"),
        "food",
        "could be the top folders (2: fruit, milk) or those that hold the images (4: green, pear, red …)",
    ),
    "folds": (lambda: nested("folds", "fold1/cats", "fold1/dogs", "fold2/cats", "fold2/dogs"), "folds", "fold1"),
    "middle": (lambda: nested("middle", "farm/hen/images", "farm/cow/photos", "zoo/ape/images"), "middle", "(2: farm, zoo)"),
    "mixed": (lambda: nested("mixed", "cats", "dogs/poodle", "dogs/terrier"), "mixed", "cats"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_of_no_use_or_unclear_is_refused_in_one_line(images, kind):
    change, folder, problem = FOLDERS[kind]
    change()
    assert problem in error_of(train(folder, code=3))
    assert not list(Path("runs").glob("[0-9]*")), "no run folder is left behind"


def test_classes_below_others_are_those_that_are_asked_for(trained):
    food = nested("food", "fruit/apple/red", "fruit/apple/green", "fruit/pear", "milk/sour")
    assert error_of(train(food, code=3)).endswith("--classes-from top or --classes-from leaf")
    assert "green 2 + 1, pear 2 + 1, red 2 + 1, sour 2 + 1" in train(food, "--classes-from", "leaf", "--epochs", 1).stderr
    result = json.loads(run("evaluate", "--model", "runs", "--format", "json", food).stdout)  # the network knows its classes
    assert result["scored"] == 12
    assert [row["images"] for row in result["per_class"].values()] == [3, 3, 3, 3]
    assert run("export", "--model", "runs").stderr.startswith("litert: probabilities of 4 images")
    parts = nested("a b", "train/cats", "train/dogs", "val/cats", "val/dogs")
    assert "give one of them" in error_of(run("evaluate", "--model", trained, parts, code=3))


def test_tars_and_tables_are_read_as_if_they_were_folders(images, trained):
    paths = sorted(images.rglob("*.jpg"))
    Path("tars").mkdir()
    for number in range(3):
        with tarfile.open(f"tars/train-{number:03}.tar", "w") as tar:
            for path in paths[number::3]:
                tar.add(path, path.relative_to(images))
    predicted = predictions(trained, "tars")
    assert len(predicted) == 24
    member = "tars/train-000.tar/cats/cats_0.jpg"
    assert predicted[member]["probabilities"] == predictions(trained, paths[0])[str(paths[0])]["probabilities"]
    assert "24 images scored" in run("evaluate", "tars", "--model", trained).stdout
    missing = run("predict", "--model", trained, "tars/train-000.tar/cats/nothing.jpg", code=1)
    assert "nothing.jpg: no such file in the tar" in error_of(missing)
    os.truncate("tars/train-002.tar", 1000)
    assert "train-002.tar: not a sound tar file" in run("evaluate", "tars", "--model", trained).stderr
    rows = [f"{path.relative_to(Path.cwd())},{path.parent.name}" for path in paths]
    Path("labels.csv").write_text("\n".join(["path,label", *rows]))
    assert json.loads(run("evaluate", "--model", trained, "--format", "json", "labels.csv").stdout)["scored"] == 24


def test_non_ascii_paths(tmp_path):
    folder = draw_images(tmp_path / "Bilder – 写真 😀" / "größe")
    (folder / "cats").rename(folder / "кошки")
    photo = save(folder / "dogs/ß ñ.jpg")
    undecodable = os.fsencode(folder) + b"/dogs/\xff\xfe.jpg"
    shutil.copy(folder / "dogs/dogs_1.jpg", undecodable)
    output = tmp_path / "Ausgäng'e $x"
    assert "кошки 10 + 2" in train(folder, "--output", output, "--epochs", 1).stderr
    assert predictions(output / "001", photo)[str(photo)]["class"] in ("кошки", "dogs")
    assert os.fsdecode(undecodable) in run("predict", "--model", output / "001", os.fsdecode(undecodable)).stdout


def test_group_by_a_part_of_the_path(images):
    for path in list(images.rglob("*.jpg")):
        number = int(path.stem.split("_")[1])
        path.rename(path.with_name(f"owner{number // 3} {number}.jpg"))
    finished = train(images, "--group-by", r"owner(\d) ", "--epochs", 1)
    assert "split      4 groups of images, each on one side" in finished.stderr
    assert "cats 9 + 3, dogs 9 + 3" in finished.stderr
    assert metadata_of("runs/001")["split"] == {"by": "group", "group_by": r"owner(\d) ", "groups": 4}
    assert run("export", "--model", "runs/001").stderr.startswith("litert: probabilities of 6 images")
    refused = error_of(train(images, "--group-by", "cats|dogs", code=3))
    assert "all 12 images of class 'cats' are in one group" in refused
    assert "not a regular expression" in train(images, "--group-by", "(", code=2).stderr


@pytest.mark.usefixtures("no_litert")
def test_near_copies_stay_on_one_side_and_are_kept_in_the_run(images):
    originals = [images / f"{name}s/{name}s_{k}.jpg" for name in ("cat", "dog") for k in range(4)]
    for path in originals:
        image = cv2.flip(cv2.imread(str(path)), 1)
        cv2.imwrite(str(path.with_name(f"mirrored_{path.name}")), image)
    finished = train(images, "--epochs", 1)
    assert "split      8 images are near-copies of others: kept together" in finished.stderr
    split = metadata_of("runs/001")["split"]
    assert (split["by"], split["near_copies"], split["together"]) == ("image", 8, True)
    near_copies = {Path(row["path"]).name: row["group"] for row in rows_of("runs/001/near_copies.csv")}
    assert sorted(near_copies) == sorted(name for path in originals for name in (path.name, f"mirrored_{path.name}"))
    for path in originals:
        assert near_copies[path.name] == near_copies[f"mirrored_{path.name}"]
    assert "epoch 2/2" in run("train", "--resume", "--output", "runs", "--epochs", 2).stdout  # it is the same split
    assert "kept together" not in train(images, "--epochs", 1, "--no-group-near-copies").stderr
    Path("runs/001/near_copies.csv").unlink()
    assert "near_copies.csv is missing or damaged" in error_of(run("train", "--resume", "runs/001", "--epochs", 3, code=3))


def test_a_validation_folder_of_ones_own(images, tmp_path):
    others = draw_images(tmp_path / "others", 15)
    for path in list(others.rglob("*_[0-9].jpg"))[2:]:
        path.unlink()
    shutil.copy(images / "cats/cats_1.jpg", others / "cats/copy.jpg")
    said = train(images, "--validation-dir", others, "--epochs", 1).stderr
    trained_on = {path.read_bytes() for path in images.rglob("*.jpg")}
    copies = sum(path.read_bytes() in trained_on for path in others.rglob("*.jpg"))
    assert f"warning: {copies} validation images are trained on, too, such as " in said
    count = {name: len(list((others / name).iterdir())) for name in ("cats", "dogs")}
    assert f"cats 12 + {count['cats']}, dogs 12 + {count['dogs']}" in said
    assert metadata_of("runs/001")["split"] == {"by": "folder", "validation_dir": str(others)}
    assert f"of {sum(count.values())} images differ" in run("export", "--model", "runs/001").stderr
    for flags in (("--validation-split", 0.3), ("--group-by", "cat")):
        refused = error_of(train(images, "--validation-dir", others, *flags, code=2))
        assert f"{flags[0]} is for images without --validation-dir" in refused
    draw_images(others, 2, ["birds"])
    assert "class 'birds'" in error_of(train(images, "--validation-dir", others, code=3))
    shutil.rmtree(others / "birds")
    shutil.rmtree(others / "dogs")
    assert "class 'dogs' has no usable images in" in error_of(train(images, "--validation-dir", others, code=3))
    assert not Path("runs/002").exists()
