"""Folders: what is found, named, split and read in batches."""

import os
import shutil

import pytest
from conftest import DRAWING, QUICK, draw_images, error_of, predictions, run, save

import dataset
from classifier import cpu, parallel
from classifier.console import UserError
from dataset import find_images, read_train_sets

# --- Folders ----------------------------------------------------------------------------------------------------------


def test_missing_and_empty_folders(tmp_path):
    assert "there is no folder" in error_of(run("train", "--data-dir", "nowhere", "--output", "runs", code=3, process=True))
    (tmp_path / "empty").mkdir()
    assert "no images" in error_of(run("train", "--data-dir", "empty", "--output", "runs", code=3))
    (tmp_path / "empty/notes.txt").write_text("no image")
    assert "no images" in error_of(run("train", "--data-dir", "empty", "--output", "runs", code=3))
    assert "is not a folder" in error_of(run("train", "--data-dir", "empty/notes.txt", "--output", "runs", code=3))
    assert not list((tmp_path / "runs").glob("[0-9]*")), "no run folder is left behind"


def test_one_class_only(tmp_path):
    draw_images(tmp_path / "one", 3, ["cats"])
    assert "only one class, 'cats'" in error_of(run("train", "--data-dir", "one", "--output", "runs", code=3))
    draw_images(tmp_path / "deep/train", 3)
    assert "are the classes in deep/train?" in error_of(run("train", "--data-dir", "deep", "--output", "runs", code=3))


def test_a_class_with_one_image_or_none_that_is_usable(images):
    draw_images(images, 1, ["birds"])
    assert "'birds'" in error_of(run("train", "--data-dir", images, "--output", "runs", code=3))
    (images / "birds/birds_0.jpg").write_bytes(b"")
    assert "no usable images" in error_of(run("train", "--data-dir", images, "--output", "runs", code=3))


def test_class_names_that_differ_only_by_case(images):
    shutil.copytree(images / "cats", images / "Cats")
    finished = run("train", "--data-dir", images, "--output", "runs", code=3)
    assert "'Cats' and 'cats' differ only by case" in error_of(finished)


def test_what_is_ignored_is_said(images):
    (images / "empty_class").mkdir()
    (images / ".hidden").mkdir()
    save(images / ".hidden" / "a.jpg", DRAWING)
    save(images / "cats" / "._cats_1.jpg", DRAWING)
    save(images / "stray.jpg", DRAWING)
    (images / "cats" / "Thumbs.db").write_bytes(b"")
    finished = run("train", "--data-dir", images, "--output", "runs", *QUICK)
    assert "cats 10 + 2, dogs 10 + 2 (training" in finished.stderr
    assert "folder images/empty_class" in finished.stderr.replace(str(images.parent) + os.sep, "")
    assert "1 images" in finished.stderr
    assert "stray.jpg" in finished.stderr
    assert "1 .db" in finished.stderr


def test_kaggles_flat_names_and_the_first_of_each_class_in_natural_order(tmp_path):
    folder = draw_images(tmp_path / "made")
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("cats", "dogs"):
        for k in range(12):
            shutil.copy(folder / name / f"{name}_{k}.jpg", flat / f"{name[:-1]}.{k}.jpg")
    finished = run("train", "--data-dir", flat, "--output", "runs", *QUICK)
    assert "cat 10 + 2, dog 10 + 2" in finished.stderr
    names = [path.name for path in find_images(flat, limit_per_class=3).paths]
    assert names == [f"{kind}.{k}.jpg" for kind in ("cat", "dog") for k in range(3)]  # not cat.10 after cat.1
    finished = run("train", "--data-dir", flat, "--output", "runs", *QUICK, "--limit-per-class", 3)
    assert "cat 2 + 1, dog 2 + 1" in finished.stderr


def test_links_are_followed_and_circles_end(images, tmp_path):
    (tmp_path / "links").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "links" / name).symlink_to(images / name)
    (images / "cats" / "circle").symlink_to(images / "cats")
    assert "cats 10 + 2, dogs 10 + 2" in run("train", "--data-dir", "links", "--output", "runs", *QUICK).stderr


def test_natural_order_is_total(tmp_path):
    names = ["cat.1.jpg", "cat.01.jpg", "cat.2.jpg", "cat.10.jpg", "cat.1²2.jpg", "dog.1.jpg"]
    for name in names:
        save(tmp_path / "flat" / name, DRAWING)
    order = [path.name for path in find_images(tmp_path / "flat").paths]
    assert order == ["cat.01.jpg", "cat.1.jpg", "cat.1²2.jpg", "cat.2.jpg", "cat.10.jpg", "dog.1.jpg"]


def test_non_ascii_paths(tmp_path):
    folder = draw_images(tmp_path / "Bilder – 写真 😀" / "größe")
    (folder / "cats").rename(folder / "кошки")
    output = tmp_path / "Ausgäng'e $x"
    finished = run("train", "--data-dir", folder, "--output", output, *QUICK)
    assert "кошки 10 + 2" in finished.stderr
    photo = next((folder / "кошки").iterdir())
    photo = photo.rename(photo.with_name("ß ñ.jpg"))
    assert predictions(output / "001", photo)[str(photo)]["class"] in ("кошки", "dogs")
    undecodable = os.fsencode(folder) + b"/dogs/\xff\xfe.jpg"
    shutil.copy(photo, undecodable)
    assert os.fsdecode(undecodable) in run("predict", "--model", output / "001", os.fsdecode(undecodable)).stdout
    run("train", "--data-dir", folder, "--output", output, *QUICK)


# --- Split and order --------------------------------------------------------------------------------------------------


def sides(folder, **options):
    sets = read_train_sets(folder, 16, **options)
    return tuple({path.name for path in data_set.paths} for data_set in (sets.train, sets.valid))


def test_the_split_is_stratified_repeatable_and_keeps_its_sides(tmp_path):
    folder = draw_images(tmp_path / "images", 40, size=20)
    train, valid = sides(folder)
    assert [sum(name.startswith(kind) for name in valid) for kind in ("cats", "dogs")] == [8, 8]
    assert not train & valid
    assert len(train | valid) == 80
    assert sides(folder) == (train, valid)
    assert len(sides(folder, validation_size=0.5)[1]) == 40

    more = draw_images(tmp_path / "more", 48, size=20)  # the same, and eight others of each class
    train_of_more, valid_of_more = sides(more)
    moved = len(train & valid_of_more) + len(valid & train_of_more)
    assert moved <= 6, "only images next to the border may change sides"
    for path in folder.rglob("*.jpg"):
        path.rename(path.with_name("renamed_" + path.name))  # names have no say
    assert {name.removeprefix("renamed_") for name in sides(folder)[1]} == valid


def test_copies_of_a_image_stay_on_one_side(tmp_path):
    folder = draw_images(tmp_path / "images", 10, size=20)
    for path in list(folder.rglob("*.jpg")):
        for copy in "abc":
            shutil.copy(path, path.with_name(f"{path.stem}_{copy}.jpg"))
    train, valid = ({"_".join(name.split("_")[:2]).removesuffix(".jpg") for name in side} for side in sides(folder))
    assert not train & valid


def test_copies_that_come_last_stay_together(images):
    assert dataset.split([0, 1, 2, 3], ["a", "b", "b", "b"], 0.5) == ([1, 2, 3], [0])
    assert dataset.split([0, 1, 2, 3], ["a", "a", "a", "b"], 0.2) == ([3], [0, 1, 2])
    for name in ("first.jpg", "second.jpg"):
        save(images / "birds" / name, DRAWING)
    with pytest.raises(UserError, match="'birds' in .* has only copies of one image"):
        read_train_sets(images, 16)


def test_an_image_in_two_classes_is_named(images, capsys):
    shutil.copy(images / "cats/cats_3.jpg", images / "dogs/no_dog.jpg")
    read_train_sets(images, 16)
    said = capsys.readouterr().err
    assert "warning: 1 images are in two classes, such as " in said
    assert "dogs/no_dog.jpg, a copy of " in said


def test_what_is_read_ahead_is_bounded_on_many_cores(images, monkeypatch):
    data_set = read_train_sets(images, 16).train
    monkeypatch.setattr(cpu, "cores", lambda: 64)
    for budget, most in ((3 * 16**2 * 2 * 5, 5), (1, 2)):
        monkeypatch.setattr(parallel, "PREFETCHED_BYTES", budget)
        seen = []
        batches = data_set.batches(2, seed=0, augment=lambda image, rng, seen=seen: seen.append(rng) or image)
        next(batches)
        batches.close()  # waits for what has begun
        assert 1 <= len(seen) / 2 <= most + 1  # one takes the place of what was read


def test_batches_depend_on_seed_and_epoch_alone(images):
    data_set = read_train_sets(images, 16).train
    labels = lambda **order: [batch.tolist() for _, batch in data_set.batches(6, **order)]  # noqa: E731
    first = labels(seed=1, epoch=0)
    assert [len(batch) for batch in first] == [6, 6, 6, 2]
    assert labels(seed=1, epoch=0) == first
    assert labels(seed=1, epoch=1) != first
    assert labels(seed=2, epoch=0) != first
    assert labels(seed=1, epoch=0, first=2) == first[2:]  # resumed in the middle
    assert sum(labels(), []) == data_set.labels.tolist()
