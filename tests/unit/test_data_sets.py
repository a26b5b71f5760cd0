"""Folders: what is found, named, split and read in batches."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import DRAWING, draw_images, save

from classifier.base.console import UserError
from classifier.base.files import digest_of
from classifier.data import splitting
from classifier.data.finding import find_images
from classifier.runs.settings import Settings
from dataset import read_images, split_images


def read_sets(folder, image_size=16, cache_dir=Path("cache"), near_copies=None, **flags):
    """What train.py reads of a folder with these settings."""
    settings = Settings(data_dir=Path(folder), image_size=image_size, **flags)
    return split_images(read_images(settings, cache_dir), settings, near_copies or {})


def sides(folder, **flags):
    sets = read_sets(folder, **flags)
    return tuple({path.name for path in data_set.paths} for data_set in (sets.train, sets.valid))


def classes_in(folder, *arguments, **options):
    """{class: how many images} in a folder."""
    found = find_images(folder, *arguments, **options)
    return {name: found.labels.count(label) for label, name in enumerate(found.classes)}


def nested(folder, *folders):
    """Three images in each folder below a folder."""
    for name in folders:
        for k in range(3):
            save(Path(folder, name, f"{k}.png"), DRAWING[:20, k : 20 + k])
    return Path(folder)


def test_the_first_of_each_class_in_natural_order_which_is_total(images, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in images.rglob("*.jpg"):
        path.rename(flat / path.name.replace("s_", "."))  # as Kaggle names them
    assert classes_in(flat) == {"cat": 12, "dog": 12}
    names = [path.name for path in find_images(flat, limit_per_class=3).paths]
    assert names == [f"{kind}.{k}.jpg" for kind in ("cat", "dog") for k in range(3)]  # not cat.10 after cat.1
    assert [len(side) for side in sides(flat, limit_per_class=3)] == [4, 2]
    for name in ("cat.1.jpg", "cat.01.jpg", "cat.2.jpg", "cat.10.jpg", "cat.1²2.jpg", "dog.1.jpg"):
        save(tmp_path / "odd" / name)
    order = [path.name for path in find_images(tmp_path / "odd").paths]
    assert order == ["cat.01.jpg", "cat.1.jpg", "cat.1²2.jpg", "cat.2.jpg", "cat.10.jpg", "dog.1.jpg"]


GOLDEN = ("golden_retriever_1.jpg", "golden_retriever_12.jpg")


UNCLEAR = (
    (*GOLDEN, "cat_1.png", "other.jpg"),
    ("IMG_1.jpg", "DSC_2.jpg"),
    ("IMG_20210304_1.jpg", "cat_1.jpg"),
    GOLDEN,
    ("1_1.jpg", "2_1.jpg"),
    ("cat_1_1.jpg", "dog_1_1.jpg"),
    ("photo_1.jpg", "cat_2.jpg"),
)


def test_flat_names_with_a_number_are_classes_only_where_they_are_clear():
    for number, names in enumerate(UNCLEAR):
        for name in names:
            save(Path(f"unclear {number}", name))
        with pytest.raises(UserError, match="have no class"):
            find_images(f"unclear {number}")
    for name in (*GOLDEN, "cat_1.png", "cat_2.png"):
        save(Path("clear", name))
    assert classes_in("clear") == {"cat": 2, "golden_retriever": 2}
    assert classes_in("clear", ["cat", "golden_retriever", "dog"])["dog"] == 0


def test_folders_that_cannot_be_classes_belong_to_the_class_above(capsys):
    kinds = {"cats": 9, "dogs": 6}
    series = nested("series", "cats/session1", "cats/Session_2", "cats/video 3/frames", "dogs/session1", "dogs/images")
    assert classes_in(series) == kinds
    assert classes_in(nested("own", "cats", "cats/tabby", "cats/tabby/young", "dogs", "dogs/poodle")) == kinds
    assert classes_in("series", classes_from="leaf")["session1"] == 6
    assert "note: 2 folders are one class, 'session1', such as cats/session1 and dogs/session1" in capsys.readouterr().err


def test_the_split_is_stratified_repeatable_and_keeps_its_sides():
    folder = draw_images("images", 40, size=20)
    training, validation = sides(folder)
    assert [sum(name.startswith(kind) for name in validation) for kind in ("cats", "dogs")] == [8, 8]
    assert not training & validation
    assert len(training | validation) == 80
    assert sides(folder) == (training, validation)
    assert len(sides(folder, validation_split=0.5)[1]) == 40
    assert len(sides(folder, validation_split=0.07)[1]) == 6  # 2.8 of each class are three

    more_training, more_validation = sides(draw_images("more", 48, size=20))  # the same, and eight others of each class
    moved = len(training & more_validation) + len(validation & more_training)
    assert moved <= 6, "only images next to the border may change sides"
    for path in folder.rglob("*.jpg"):
        path.rename(path.with_name("renamed_" + path.name))  # names have no say
    assert {name.removeprefix("renamed_") for name in sides(folder)[1]} == validation


def test_copies_of_an_image_stay_on_one_side(images):
    assert splitting.split([0, 1, 2, 3], ["a", "b", "b", "b"], 0.5) == ([1, 2, 3], [0])
    assert splitting.split([0, 1, 2, 3], ["a", "a", "a", "b"], 0.2) == ([3], [0, 1, 2])
    assert splitting.split(list(range(8)), ["a", *"bbbbbb", "c"], 0.25) == (list(range(1, 8)), [0])  # not 1 + 7
    for path in list(images.rglob("*.jpg")):
        for copy in "abc":
            shutil.copy(path, path.with_name(f"{path.stem}_{copy}.jpg"))
    originals = [{"_".join(name.split("_")[:2]).removesuffix(".jpg") for name in side} for side in sides(images)]
    assert not set.intersection(*originals)
    for name in ("first.jpg", "second.jpg"):
        save(images / "birds" / name)
    with pytest.raises(UserError, match="'birds' has only copies of one image in "):
        read_sets(images)


def test_groups_stay_on_one_side_whatever_is_added():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 60)
    names = [f"patient {n}" for n, size in enumerate(sizes) for _ in range(size)]
    digests = [digest_of(b"%d" % i) for i in range(len(names))]
    classes = {"ill": [], "well": []}
    for i, name in enumerate(names):
        classes["ill" if int(name.split()[1]) % 3 == 0 or i % 5 == 0 else "well"].append(i)

    def sides_of(count):
        usable = {name: [i for i in members if i < count] for name, members in classes.items()}
        training, validation, _ = splitting.split_groups(usable, digests, 0.2, names)
        for members in usable.values():
            assert 0.1 < len(set(members) & set(validation)) / len(members) < 0.3
        patients = [{names[i] for i in side} for side in (training, validation)]
        assert not set.intersection(*patients)
        return patients

    more, fewer = sides_of(len(names)), sides_of(len(names) - 40)
    assert sides_of(len(names)) == more
    assert len(more[0] & fewer[1]) + len(more[1] & fewer[0]) <= 6, "only groups next to the border may change sides"


def test_near_copies_stay_on_one_side_and_with_the_groups_of_their_paths(images):
    sets = read_sets(images)
    digests = sorted([*sets.train.digests, *sets.valid.digests])
    near_copies = {digest: f"group {k // 2}" for k, digest in enumerate(digests[:8])}
    for flags in ({}, {"group_by": r"_(\d+)\."}):  # number 1 of the cats, and number 1 of the dogs
        sets = read_sets(images, near_copies=near_copies, **flags)
        assert sets.split["together"] is True
        names = [{near_copies.get(digest, digest) for digest in side.digests} for side in (sets.train, sets.valid)]
        assert not set.intersection(*names)
        if flags:
            numbers = [{path.stem.split("_")[1] for path in side.paths} for side in (sets.train, sets.valid)]
            assert not set.intersection(*numbers)


def test_files_that_are_skipped_need_no_group(images):
    for path in list(images.rglob("*.jpg")):
        path.rename(path.with_name(f"owner{int(path.stem.split('_')[1]) // 3} {path.name}"))
    owners = [{name.split()[0] for name in side} for side in sides(images, group_by="owner.")]
    assert [len(side) for side in owners] == [3, 1]
    (images / "cats/stray.jpg").write_bytes(b"")
    assert len(sides(images, group_by="owner.")[1]) == 6
    shutil.copy(next(images.glob("cats/owner*")), images / "cats/stray.jpg")
    with pytest.raises(UserError, match="'owner' finds no group in cats/stray.jpg"):
        read_sets(images, group_by="owner")


def test_tars_are_read_in_place_as_if_they_were_folders(images, tmp_path):
    (tmp_path / "tars").mkdir()
    for number in range(3):
        with tarfile.open(tmp_path / f"tars/train-{number:03}.tar", "w") as tar:
            for path in sorted(images.rglob("*.jpg"))[number::3]:
                tar.add(path, path.relative_to(images))
            evil = tarfile.TarInfo("../../outside.jpg")
            evil.size = 3
            tar.addfile(evil, io.BytesIO(b"abc"))
            link = tarfile.TarInfo("cats/link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    huge, member = tmp_path / "tars/huge.tar", tarfile.TarInfo("dogs/huge.jpg")
    member.size = 2 << 30
    huge.write_bytes(member.tobuf())
    os.truncate(huge, 512 + member.size + 1024)  # it takes no place on the disk
    in_tars, in_folders = read_sets(tmp_path / "tars"), read_sets(images)
    assert [reason for _, reason in in_tars.skipped] == ["too large: more than 1 GiB"]
    for one, other in ((in_tars.train, in_folders.train), (in_tars.valid, in_folders.valid)):
        assert sorted(one.digests) == sorted(other.digests)


def test_a_csv_file_of_labels_names_the_classes(images, tmp_path):
    rows = [(path.relative_to(tmp_path), "feline" if "cats" in path.parts else "canine") for path in images.rglob("*.jpg")]
    rows += [rows[0], ("images/gone.jpg", "feline")]
    text = "".join(f"{line}\n" for line in ["label,other,path", *(f"{label},,{path}" for path, label in rows)])
    Path("labels.csv").write_text(text, encoding="utf-8-sig")
    sets = read_sets("labels.csv")
    assert (sets.classes, len(sets.train), len(sets.valid)) == (["canine", "feline"], 20, 4)
    assert "No such file" in sets.skipped[0][1]


WRONG_TABLES = {  # what is wrong: the lines, and what is said
    "outside": ("label,path\nfeline,../x.jpg", "line 2: ../x.jpg is outside the folder"),
    "absolute": ("label,path\nfeline,/x.jpg", "line 2: /x.jpg is outside"),
    "no path": ("label,path\nfeline,x.jpg\nfeline,", "line 3 has no path"),
    "no label": ("label,path\n ,x.jpg", "line 2 has no label"),
    "two labels": ("label,path\nfeline,x.jpg\nbirds,x.jpg", "has two labels"),
    "no rows": ("label,path", "no images in labels.csv"),
    "columns": ("class;filename", "needs the columns path and label, with a comma between: it has 'class;filename'"),
    "encoding": ("label,path\nfeline,é.jpg", "not a CSV file in UTF-8"),
    "nothing": ("", "it has none"),
}


@pytest.mark.parametrize("wrong", WRONG_TABLES)
def test_a_wrong_csv_file_is_refused(wrong):
    text, problem = WRONG_TABLES[wrong]
    Path("labels.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as refusal:
        find_images(Path("labels.csv"))
    assert problem in str(refusal.value)


def test_batches_depend_on_seed_and_epoch_alone(images):
    data_set = read_sets(images).train
    labels = lambda **order: [batch.tolist() for _, batch in data_set.batches(6, **order)]  # noqa: E731
    first = labels(seed=1, epoch=0)
    assert [len(batch) for batch in first] == [6, 6, 6, 2]
    assert labels(seed=1, epoch=0) == first
    assert labels(seed=1, epoch=1) != first
    assert labels(seed=2, epoch=0) != first
    assert labels(seed=1, epoch=0, first=2) == first[2:]  # resumed in the middle
    assert sum(labels(), []) == data_set.labels.tolist()
    named = [path.parent.name for path in data_set.paths_of_batch(2, 6, seed=1, epoch=0)]  # if its loss is not finite
    assert [["cats", "dogs"].index(name) for name in named] == first[2]


def test_images_are_decoded_once_and_again_if_they_changed_or_could_not_be_opened(images, monkeypatch):
    decoded, imdecode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: decoded.append(1) or imdecode(*arguments))
    pixels = lambda: next(read_sets(images).train.batches(100))[0]  # noqa: E731
    before, times = pixels(), len(decoded)
    assert times >= 24
    assert np.array_equal(pixels(), before)
    assert len(decoded) == times
    os.utime(images / "cats/cats_1.jpg")
    assert np.array_equal(pixels(), before)
    assert len(decoded) > times

    image = images / "cats/cats_1.jpg"
    image.unlink()
    image.symlink_to(image)  # "Too many levels of symbolic links": an error of the file system, not of the image
    assert len(read_sets(images, cache_dir=Path("other")).skipped) == 1
    assert not list(Path("other").glob("*.json"))
