"""Folders: what is found, named, split and read in batches."""

import os
import shutil

import pytest
from conftest import draw_images, error_of, predictions, run, save, train

import dataset
from classifier import cpu, parallel
from classifier.console import UserError
from classifier.finding import find_images
from dataset import read_train_sets


def refusal(folder, **options):
    """The error of a training on a folder that is of no use."""
    return error_of(train(folder, code=3, **options))


def test_folders_that_are_of_no_use(images, tmp_path):
    assert "there is no folder" in refusal("nowhere", process=True)
    (tmp_path / "empty").mkdir()
    assert "no images" in refusal("empty")
    (tmp_path / "empty/notes.txt").write_text("no image")
    assert "no images" in refusal("empty")
    assert "is not a folder" in refusal("empty/notes.txt")
    draw_images("one", 3, ["cats"])
    assert "only one class, 'cats'" in refusal("one")
    draw_images("deep/train", 3)
    assert "are the classes in deep/train?" in refusal("deep")
    draw_images("deep/test", 2)
    assert "(test, train): give one of them; to train, --data-dir deep/train" in refusal("deep")
    draw_images(images, 1, ["birds"])
    assert "'birds'" in refusal(images)
    (images / "birds/birds_0.jpg").write_bytes(b"")
    assert "no usable images" in refusal(images)
    shutil.copytree(images / "cats", images / "Cats")
    assert "'Cats' and 'cats' differ only by case" in refusal(images)
    assert not list((tmp_path / "runs").glob("[0-9]*")), "no run folder is left behind"


def test_links_are_followed_circles_end_and_what_is_ignored_or_odd_is_said(images, tmp_path):
    (images / "dogs").rename("dogs")
    (images / "dogs").symlink_to(tmp_path / "dogs")
    (images / "dogs/circle").symlink_to(tmp_path / "dogs")
    (images / "empty_class").mkdir()
    save(images / ".hidden" / "a.jpg")
    save(images / "cats" / "._cats_1.jpg")
    save(images / "stray.jpg")
    (images / "cats" / "Thumbs.db").write_bytes(b"")
    shutil.copy(images / "cats/cats_3.jpg", images / "dogs/no_dog.jpg")
    said = train(images).stderr.replace(str(images.parent) + os.sep, "")
    assert "cats 10 + 2, dogs 10 + 3 (training" in said
    assert "folder images/empty_class" in said
    assert "1 images in images that" in said
    assert "stray.jpg" in said
    assert "1 .db" in said
    assert "warning: 1 images are in two classes, such as images/dogs/no_dog.jpg, a copy of images/cats/cats_3.jpg" in said


def test_kaggles_flat_names_and_the_first_of_each_class_in_natural_order(images, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in images.rglob("*.jpg"):
        path.rename(flat / path.name.replace("s_", "."))
    assert "cat 10 + 2, dog 10 + 2" in train(flat).stderr
    names = [path.name for path in find_images(flat, limit_per_class=3).paths]
    assert names == [f"{kind}.{k}.jpg" for kind in ("cat", "dog") for k in range(3)]  # not cat.10 after cat.1
    assert "cat 2 + 1, dog 2 + 1" in train(flat, "--limit-per-class", 3).stderr


def test_natural_order_is_total(tmp_path):
    for name in ("cat.1.jpg", "cat.01.jpg", "cat.2.jpg", "cat.10.jpg", "cat.1²2.jpg", "dog.1.jpg"):
        save(tmp_path / name)
    order = [path.name for path in find_images(tmp_path).paths]
    assert order == ["cat.01.jpg", "cat.1.jpg", "cat.1²2.jpg", "cat.2.jpg", "cat.10.jpg", "dog.1.jpg"]


def test_non_ascii_paths(tmp_path):
    folder = draw_images(tmp_path / "Bilder – 写真 😀" / "größe")
    (folder / "cats").rename(folder / "кошки")
    output = tmp_path / "Ausgäng'e $x"
    assert "кошки 10 + 2" in train(folder, "--output", output).stderr
    photo = next((folder / "кошки").iterdir())
    photo = photo.rename(photo.with_name("ß ñ.jpg"))
    assert predictions(output / "001", photo)[str(photo)]["class"] in ("кошки", "dogs")
    undecodable = os.fsencode(folder) + b"/dogs/\xff\xfe.jpg"
    shutil.copy(photo, undecodable)
    assert os.fsdecode(undecodable) in run("predict", "--model", output / "001", os.fsdecode(undecodable)).stdout
    train(folder, "--output", output)


def sides(folder, **options):
    sets = read_train_sets(folder, 16, **options)
    return tuple({path.name for path in data_set.paths} for data_set in (sets.train, sets.valid))


def test_the_split_is_stratified_repeatable_and_keeps_its_sides():
    folder = draw_images("images", 40, size=20)
    training, validation = sides(folder)
    assert [sum(name.startswith(kind) for name in validation) for kind in ("cats", "dogs")] == [8, 8]
    assert not training & validation
    assert len(training | validation) == 80
    assert sides(folder) == (training, validation)
    assert len(sides(folder, validation_size=0.5)[1]) == 40

    more_training, more_validation = sides(draw_images("more", 48, size=20))  # the same, and eight others of each class
    moved = len(training & more_validation) + len(validation & more_training)
    assert moved <= 6, "only images next to the border may change sides"
    for path in folder.rglob("*.jpg"):
        path.rename(path.with_name("renamed_" + path.name))  # names have no say
    assert {name.removeprefix("renamed_") for name in sides(folder)[1]} == validation


def test_copies_of_an_image_stay_on_one_side(images):
    assert dataset.split([0, 1, 2, 3], ["a", "b", "b", "b"], 0.5) == ([1, 2, 3], [0])
    assert dataset.split([0, 1, 2, 3], ["a", "a", "a", "b"], 0.2) == ([3], [0, 1, 2])
    for path in list(images.rglob("*.jpg")):
        for copy in "abc":
            shutil.copy(path, path.with_name(f"{path.stem}_{copy}.jpg"))
    originals = [{"_".join(name.split("_")[:2]).removesuffix(".jpg") for name in side} for side in sides(images)]
    assert not set.intersection(*originals)
    for name in ("first.jpg", "second.jpg"):
        save(images / "birds" / name)
    with pytest.raises(UserError, match="'birds' in .* has only copies of one image"):
        read_train_sets(images, 16)


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
