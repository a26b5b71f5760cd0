"""Folders: what is found, named, split and read in batches."""

import io
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

import dataset
from classifier.base import cpu
from classifier.base import prefetch as parallel
from classifier.base.console import UserError
from classifier.base.files import digest_of
from classifier.data import splitting
from classifier.data.finding import find_images
from classifier.data.near_copies import near_copies_reader
from dataset import read_train_sets


def refusal(folder, *flags, code=3, **options):
    """The error of a training on a folder that is of no use, or with wrong flags."""
    return error_of(train(folder, *flags, code=code, **options))


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


def test_tars_are_read_in_place_as_if_they_were_folders(images, tmp_path):
    paths = sorted(images.rglob("*.jpg"))
    (tmp_path / "tars").mkdir()
    for number in range(3):
        with tarfile.open(tmp_path / f"tars/train-{number:03}.tar", "w") as tar:
            for path in paths[number::3]:
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
    finished = train(tmp_path / "tars")
    assert "cats 10 + 2, dogs 10 + 2" in finished.stderr
    assert "skipped    1: 1 too large: more than 1 GiB" in finished.stderr
    huge.unlink()
    sets, expected = (read_train_sets(folder, 32) for folder in (tmp_path / "tars", images))
    assert sorted(sets.valid.digests) == sorted(expected.valid.digests)
    predicted = predictions("runs/001", "tars")
    assert len(predicted) == 24
    member = "tars/train-000.tar/cats/cats_0.jpg"
    assert predicted[member]["probabilities"] == predictions("runs/001", paths[0])[str(paths[0])]["probabilities"]
    assert "24 images scored" in run("evaluate", "tars", "--model", "runs").stdout
    missing = run("predict", "--model", "runs", "tars/train-000.tar/cats/nothing.jpg", code=1)
    assert "nothing.jpg: no such file in the tar" in error_of(missing)
    os.truncate("tars/train-002.tar", 1000)
    assert "train-002.tar: not a sound tar file" in run("evaluate", "tars", "--model", "runs").stderr


def test_kaggles_flat_names_and_the_first_of_each_class_in_natural_order(images, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in images.rglob("*.jpg"):
        path.rename(flat / path.name.replace("s_", "."))
    assert "cat 10 + 2, dog 10 + 2" in train(flat).stderr
    names = [path.name for path in find_images(flat, limit_per_class=3).paths]
    assert names == [f"{kind}.{k}.jpg" for kind in ("cat", "dog") for k in range(3)]  # not cat.10 after cat.1
    assert "cat 2 + 1, dog 2 + 1" in train(flat, "--limit-per-class", 3).stderr


def nested(folder, *folders, per_folder=3):
    """Images in folders below a folder, all different."""
    for k in range(per_folder):
        for n, name in enumerate(folders):
            image = np.full((20, 20, 3), 20 * n, np.uint8)
            image[: k + 1] = 255
            save(Path(folder, name, f"{k}.png"), image)
    return Path(folder)


def classes_in(folder, *arguments, **options):
    """{class: how many images} in a folder."""
    found = find_images(folder, *arguments, **options)
    return {name: found.labels.count(label) for label, name in enumerate(found.classes)}


def test_classes_below_others_are_asked_for(tmp_path):
    food = nested("food", "fruit/apple/red", "fruit/apple/green", "fruit/pear", "milk/sour")
    asked = refusal(food)
    assert "could be the top folders (2: fruit, milk) or those that hold the images (4: green, pear, red …)" in asked
    assert asked.endswith("--classes-from top or --classes-from leaf")
    assert classes_in(food, classes_from="top") == {"fruit": 9, "milk": 3}
    assert "green 2 + 1, pear 2 + 1, red 2 + 1, sour 2 + 1" in train(food, "--classes-from", "leaf", "--epochs", 1).stderr
    result = json.loads(run("evaluate", "--model", "runs", "--format", "json", food).stdout)  # the network knows its classes
    assert result["scored"] == 12
    assert [row["images"] for row in result["per_class"].values()] == [3, 3, 3, 3]
    assert run("export", "--model", "runs").stderr.startswith("litert: probabilities of 4 images")

    assert "fold1" in refusal(nested("folds", "fold1/cats", "fold1/dogs", "fold2/cats", "fold2/dogs"))
    assert "(2: farm, zoo)" in refusal(nested("middle", "farm/hen/images", "farm/cow/photos", "zoo/ape/images"))
    assert "cats" in refusal(nested("mixed", "cats", "dogs/poodle", "dogs/terrier"))


def test_folders_that_cannot_be_classes_belong_to_the_class_above(capsys):
    kinds = {"cats": 9, "dogs": 6}
    series = nested("series", "cats/session1", "cats/Session_2", "cats/video 3/frames", "dogs/session1", "dogs/images")
    assert classes_in(series) == kinds
    assert classes_in(nested("own", "cats", "cats/tabby", "cats/tabby/young", "dogs", "dogs/poodle")) == kinds
    assert classes_in("series", classes_from="leaf")["session1"] == 6
    assert "note: 2 folders are one class, 'session1', such as cats/session1 and dogs/session1" in capsys.readouterr().err


def test_the_parts_of_a_data_set_are_not_its_classes(images, trained):
    parts = ("train/cats", "train/dogs", "val/cats", "val/dogs", "Test/cats", "Test/dogs")
    for command in (("train", "--data-dir"), ("evaluate", "--model", trained)):
        said = error_of(run(*command, nested("a b", *parts), code=3))
        assert "(Test, train, val): give one of them; to train, --data-dir 'a b/train' --validation-dir 'a b/val'" in said
    for name in ("val", "Test"):
        shutil.rmtree(Path("a b", name))
    assert "are the classes in a b/train?" in refusal("a b")


def test_a_csv_file_of_labels(images, tmp_path):
    rows = [(path.relative_to(tmp_path), "feline" if "cats" in path.parts else "canine") for path in images.rglob("*.jpg")]
    table = Path("labels.csv")

    def write(rows, header="label,other,path", encoding="utf-8-sig"):
        table.write_bytes("".join(f"{line}\n" for line in [header, *(f"{b},,{a}" for a, b in rows)]).encode(encoding))

    write([*rows, rows[0], ("images/gone.jpg", "feline")])
    assert "canine 10 + 2, feline 10 + 2" in train(table, "--epochs", 1).stderr
    assert "No such file" in rows_of("runs/001/skipped.csv")[0]["reason"]
    assert json.loads(run("evaluate", "--model", "runs", "--format", "json", table).stdout)["scored"] == 24
    for wrong, reason in (
        ([("../x.jpg", "feline")], "line 2: ../x.jpg is outside the folder"),
        ([("/x.jpg", "feline")], "line 2: /x.jpg is outside"),
        ([rows[0], ("", "feline")], "line 3 has no path"),
        ([("x.jpg", " ")], "line 2 has no label"),
        ([rows[0], (rows[0][0], "birds")], "has two labels"),
        ([], "no images in labels.csv"),
    ):
        write(wrong)
        assert reason in refusal(table)
    write(rows, header="class;filename")
    assert "needs the columns path and label, with a comma between: it has 'class;filename'" in refusal(table)
    write([("é.jpg", "feline")], encoding="latin-1")
    assert "not a CSV file in UTF-8" in refusal(table)
    table.write_bytes(b"")
    assert "it has none" in refusal(table)


def test_flat_names_with_a_number_where_they_are_clear(tmp_path):
    def folder_of(*names):
        shutil.rmtree("flat", ignore_errors=True)
        for name in names:
            save(Path("flat", name))
        return "flat"

    names = ("golden_retriever_1.jpg", "golden_retriever_12.jpg", "cat_1.png", "cat_2.png")
    assert classes_in(folder_of(*names)) == {"cat": 2, "golden_retriever": 2}
    assert classes_in(folder_of("cat_1.png"), ["cat", "dog"]) == {"cat": 1, "dog": 0}
    for unclear in (
        (*names, "other.jpg"),
        ("IMG_1.jpg", "DSC_2.jpg"),
        ("IMG_20210304_1.jpg", "cat_1.jpg"),
        names[:2],
        ("1_1.jpg", "2_1.jpg"),
        ("cat_1_1.jpg", "dog_1_1.jpg"),
        ("photo_1.jpg", "cat_2.jpg"),
    ):
        assert "have no class" in refusal(folder_of(*unclear))


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
    one_each = {name: members[:20] for name, members in classes.items()}
    training, validation, groups = splitting.split_groups(one_each, digests, 0.2)
    plain = [dataset.split(members, digests, 0.2) for members in one_each.values()]
    assert (training, validation, groups) == (plain[0][0] + plain[1][0], plain[0][1] + plain[1][1], 40)
    joined = splitting.join_groups([0, 1, 2, 3, 4], "aabcd", [None, 7, 7, None, None])
    assert joined == [[0, 1, 2], [3], [4]]


def test_group_by_a_part_of_the_path(images):
    for path in list(images.rglob("*.jpg")):
        number = int(path.stem.split("_")[1])
        path.rename(path.with_name(f"owner{number // 3} {number}.jpg"))
    finished = train(images, "--group-by", r"owner(\d) ", "--epochs", 1)
    assert "split      4 groups of images, each on one side" in finished.stderr
    assert "cats 9 + 3, dogs 9 + 3" in finished.stderr
    assert metadata_of("runs/001")["split"] == {"by": "group", "group_by": r"owner(\d) ", "groups": 4}
    owners = [{name.split()[0] for name in side} for side in sides(images, group_by="owner.")]
    assert [len(side) for side in owners] == [3, 1]
    assert run("export", "--model", "runs/001").stderr.startswith("litert: probabilities of 6 images")
    assert "all 12 images of class 'cats' are in one group" in refusal(images, "--group-by", "cats|dogs")
    (images / "cats/stray.jpg").write_bytes(b"")
    assert len(sides(images, group_by="owner.")[1]) == 3  # a file that is skipped needs no group
    shutil.copy(images / "cats/owner0 1.jpg", images / "cats/stray.jpg")
    assert "'owner' finds no group in cats/stray.jpg" in refusal(images, "--group-by", "owner", code=2)
    assert "not a regular expression" in train(images, "--group-by", "(", code=2).stderr


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
    sets = read_train_sets(images, 32, near_copies_of=near_copies_reader(Path("runs/001")))
    names = [{path.name for path in side.paths} for side in (sets.train, sets.valid)]
    for path in originals:
        assert near_copies[path.name] == near_copies[f"mirrored_{path.name}"]
        assert (path.name in names[0]) == (f"mirrored_{path.name}" in names[0])
    assert "epoch 2/2" in run("train", "--resume", "--output", "runs", "--epochs", 2).stdout
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
    assert "epoch 2/2" in run("train", "--resume", "runs/001", "--epochs", 2).stdout
    assert f"of {sum(count.values())} images differ" in run("export", "--model", "runs/001").stderr
    for flags in (("--validation-split", 0.3), ("--group-by", "cat")):
        assert f"{flags[0]} is for images without --validation-dir" in refusal(
            images, "--validation-dir", others, *flags, code=2
        )
    draw_images(others, 2, ["birds"])
    assert "class 'birds'" in refusal(images, "--validation-dir", others)
    shutil.rmtree(others / "birds")
    shutil.rmtree(others / "dogs")
    assert "class 'dogs' has no usable images in" in refusal(images, "--validation-dir", others)
    assert not Path("runs/002").exists()


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
