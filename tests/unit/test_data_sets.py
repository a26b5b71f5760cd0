"""Folders: what is found, named, split and read in batches."""

import io
import os
import shutil
import tarfile
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import DRAWING, draw_images, encoded, save

from classifier.base.console import UserError
from classifier.base.files import digest_of
from classifier.data import splitting
from classifier.data.finding import find_images
from classifier.data.images import load_image
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
    for name in ("IMG_3.jpg", "other.jpg"):
        path = save(Path("clear", name))
        with pytest.raises(UserError, match=f"have no class, because {name} is not named like the others"):
            find_images("clear")
        path.unlink()


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


def test_tars_are_read_in_place_as_if_they_were_folders(images, tmp_path, capsys):
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
    told = "ignored: 2 links and other special files in {}, such as ../../outside.jpg"
    assert told.format(tmp_path / "tars/train-002.tar") in capsys.readouterr().err
    for one, other in ((in_tars.train, in_folders.train), (in_tars.valid, in_folders.valid)):
        assert sorted(one.digests) == sorted(other.digests)


def test_a_file_with_two_names_is_in_a_tar_twice():
    nested("x", "a", "b")
    os.link("x/a/0.png", "x/b/link.png")
    with tarfile.open("x.tar", "w") as tar:
        tar.add("x", "")
    assert classes_in("x.tar") == {"a": 3, "b": 4}
    assert len({load_image(path, 16).tobytes() for path in find_images("x.tar").paths}) == 3


def test_a_csv_file_of_labels_names_the_classes(images, tmp_path):
    rows = [(path.relative_to(tmp_path), "feline" if "cats" in path.parts else "canine") for path in images.rglob("*.jpg")]
    rows += [rows[0], ("images/gone.jpg", "feline")]
    text = "".join(f"{line}\n" for line in ["label,other,path", *(f"{label},,{path}" for path, label in rows)])
    Path("labels.csv").write_text(text, encoding="utf-8-sig")
    sets = read_sets("labels.csv")
    assert (sets.classes, len(sets.train), len(sets.valid)) == (["canine", "feline"], 20, 4)
    assert "No such file" in sets.skipped[0][1]


TABLES = {  # that are read: the header, and the row of an image
    "Kaggle": ("id,breed", "{k},{label}"),
    "no folder": ("Image,Id", "{k}.png,{label}"),
    "no suffix": ("path,label", "photos/{k},{label}"),
    "capitals and spaces": ("Image Path, Class ", "photos/{k}.png, {label}"),
    "more columns": ("id,file_name,width,label,target", "{k},photos/{k}.png,20,{label},0"),
    "names": ("name,image,id,breed", "Rex,http://x/{k},{k},{label}"),
    "pandas": (",filename,category", "{k},photos/{k}.png,{label}"),
    "a column for each": ("image_id,cat,dog", "{k},{cat},{dog}.0"),
    "semicolons": ("path;label", "photos/{k}.png;{label}"),
    "tabs": ("name\tlabel", "photos/{k}.png\t{label}"),
    "Windows": ("path,label", "photos\\{k}.png,{label}"),
    "absolute": ("path,label", "{folder}/photos/{k}.png,{label}"),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_other_programs_are_read(kind, encoding, tmp_path):
    header, row = TABLES[kind]
    nested(tmp_path, "photos", "photos/more")
    labels = ["cat", "dog", "cat"]
    values = [{"cat": int(label == "cat"), "dog": int(label == "dog"), "label": label} for label in labels]
    (tmp_path / "photos/more").rename(tmp_path / "others")
    for path in (tmp_path / "others").glob("*.png"):
        path.rename(path.with_name(f"other {path.name}"))
    lines = [header, *(row.format(k=k, folder=tmp_path, **value) for k, value in enumerate(values))]
    (tmp_path / "labels.TSV").write_text("\r\n".join(lines), encoding=encoding)
    found = find_images(tmp_path / "labels.TSV")
    assert [found.classes[label] for label in found.labels] == ["cat", "cat", "dog"]
    assert [found.relative(i) for i in range(3)] == ["photos/0.png", "photos/2.png", "photos/1.png"]


WRONG_TABLES = {  # what is wrong: the lines, and what is said
    "outside": ("label,path\nfeline,../x.jpg", "line 2: ../x.jpg is outside the folder"),
    "absolute": ("label,path\nfeline,/x.jpg", "line 2: /x.jpg is outside"),
    "Windows": ("label,path\nfeline,C:\\x.jpg", "line 2: C:\\x.jpg is outside"),
    "no path": ("label,path\nfeline,x.jpg\nfeline,", "line 3 has no path"),
    "no label": ("label,path\n ,x.jpg", "line 2 has no label"),
    "two labels": ("label,path\nfeline,x.jpg\nbirds,x.jpg", "has two labels"),
    "two images": ("label,id\nfeline,0", "line 2: 0 can be one/0.png or two/0.png: write that, or move"),
    "several labels": ('path,label\nx.jpg,"cat,cute"\ny.jpg,"dog,cute"', "cute' seems to be several labels"),
    "words": ("path,label\nx.jpg,cat cute\ny.jpg,cat\nz.jpg,cute", "'cat cute' seems to be several labels"),
    "two columns": ("path,cat,dog\nx.jpg,1,1\ny.jpg,1,0", "'cat,dog' seems to be several labels"),
    "no rows": ("label,path", "no images in labels.csv"),
    "no files": ("label,path\nfeline,x.jpg", "no images in labels.csv: x.jpg is not in ., where its paths begin"),
    "columns": (
        "species,size,weight",
        "needs a first line with the columns path and label: it has 'species', 'size', 'weight'",
    ),
    "classes": ("path,class,target\nx.jpg,a,1", "it has 'path', 'class', 'target'"),
    "no header": ("one/0.png,feline", "it has 'one/0.png', 'feline'"),
    "a comma": ("path,label\none/0.png,feline,tabby", "line 2 has 3 columns, the first line has 2"),
    "parts": ("path,label,split\nx.jpg,a,train\ny.jpg,a,test", "'split' tells which part of a data set an image is in"),
    "fastai": ("fname,labels,is_valid\nx.jpg,a,True\ny.jpg,a,False", "'is_valid' tells which part"),
    "encoding": ("label,path\nfeline,é.jpg", "not a CSV file in UTF-8"),
    "nothing": ("", "it has none"),
}


@pytest.mark.parametrize("wrong", WRONG_TABLES)
def test_a_wrong_csv_file_is_refused(wrong):
    text, problem = WRONG_TABLES[wrong]
    nested(".", "one", "two")
    Path("labels.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as refusal:
        find_images(Path("labels.csv"))
    assert problem in str(refusal.value)


PARTS = {  # folders of a data set: what is said
    "course": (["training_set/cats", "test_set/cats", "single_prediction"], "x/training_set; to test, x/test_set"),
    "scenes": (["seg_train/seg_train/sea", "seg_test/seg_test/sea", "seg_pred/seg_pred"], "x/seg_train/seg_train; to test,"),
    "letters": (
        ["asl_alphabet_train/asl_alphabet_train/A", "asl_alphabet_test/asl_alphabet_test"],
        "_train/asl_alphabet_train;",
    ),
    "capitals": (["Train/a", "Valid/a", "Test/a"], "--data-dir x/Train --validation-dir x/Valid; to test, x/Test"),
    "deeper": (["dataset/train/cats", "dataset/test/cats"], "--data-dir x/dataset/train; to test, x/dataset/test"),
    "years": (["images/train2017", "images/val2017"], "--data-dir x/images/train2017 --validation-dir x/images/val2017"),
    "Kaggle": (["train_images", "test_images"], "x/train_images; to test, x/test_images, or give x/labels.csv if"),
    "below": (["cats/train", "cats/test", "dogs/train", "dogs/test"], "put their images into train/cats and so on"),
    "no parts": (["train", "bus", "car"], None),
    "shoes": (["training_shoes", "test_tube"], None),
}


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("classes_from", [None, "leaf"])
def test_parts_of_a_data_set_are_no_classes(kind, classes_from):
    folders, said = PARTS[kind]
    nested("x", *folders)
    Path("x/labels.csv").touch()
    if said is None:
        assert classes_in("x", classes_from=classes_from) == dict.fromkeys(sorted(folders), 3)
        return
    with pytest.raises(UserError, match="x holds the parts of a data set") as refusal:
        find_images("x", classes_from=classes_from)
    assert said in str(refusal.value)


def test_names_in_two_forms_of_unicode_are_one_class(capsys):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    nested("x", f"1/{composed}", f"2/{apart}", "3/tea")
    assert classes_in("x", classes_from="leaf") == {composed: 6, "tea": 3}
    shutil.move(f"x/1/{composed}", f"x/{composed}")
    shutil.move(f"x/2/{apart}", f"x/{apart}")
    assert classes_in("x", [apart, "3"]) == {apart: 6, "3": 3}  # of a model that was trained on such a name
    assert f"2 folders are one class, '{composed}', such as" in capsys.readouterr().err
    save(Path(f"y/{composed}.png"))
    Path("labels.csv").write_text(f"path,label\nx/{composed}/0.png,{apart}\ny/{apart}.png,{composed}")
    assert classes_in("labels.csv") == {composed: 2}
    assert splitting.group_names_of([f"{apart} 1", f"{composed} 2"], f"({composed}).*") == [composed] * 2


def tar_of(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


SAMPLES = {  # what is beside an image in a tar, of two kinds of images: the class
    "number": ("cls", [b"0", b"1\n"], ["0", "1"]),
    "text": ("cls", ["Bär".encode(), b"tench, Tinca tinca"], ["Bär", "tench, Tinca tinca"]),
    "JSON": ("json", [b'{"label": 3, "size": 9}', b'{"label": 4}'], ["3", "4"]),
    "a word in JSON": ("json", [b'{"Class Name": "a", "x": []}', b'{"class_name": "b"}'], ["a", "b"]),
    "words": ("txt", [b"golden retriever\n", b"cat"], ["cat", "golden retriever"]),
    "caption": ("txt", [b"a golden retriever on grass", b"two\nlines"], None),
    "other JSON": ("json", [b'{"label": [1, 2]}', b"[1]"], None),
    "damaged JSON": ("json", [b'{"label"', b""], None),
    "nothing": ("xml", [b"<x/>"] * 2, None),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_labels_beside_images_in_a_tar(kind, capsys):
    suffix, labels, classes = SAMPLES[kind]
    members = {f"{k:03}.jpg": encoded(".jpg", DRAWING[:20, k : 20 + k]) for k in range(6)}
    tar = tar_of(Path("x/train-000.tar"), members | {f"{k:03}.{suffix}": labels[k % 2] for k in range(6)})
    for folder in (tar.parent, tar):
        if classes:
            assert classes_in(folder) == dict.fromkeys(classes, 3)
            assert load_image(find_images(folder).paths[5], 16).shape == (16, 16, 3)
            assert "ignored" not in capsys.readouterr().err
        else:
            with pytest.raises(UserError, match=r"name them like cats/1.jpg in the tar, or add the label of 1.jpg as 1.cls"):
                find_images(folder)


def test_labels_beside_images_tell_more_than_folders_that_are_no_classes(capsys):
    image = encoded(".png", DRAWING[:20, :20])
    for place, classes in (("{c}", "ab"), ("part{half}", "01"), ("train", "01")):  # folders that tell the same are classes
        samples = [(f"{place.format(c='ab'[k % 2], half=k // 3)}/{k}", b"%d" % (k % 2)) for k in range(6)]
        members = {name + suffix: data for name, label in samples for suffix, data in ((".png", image), (".cls", label))}
        assert classes_in(tar_of(Path("x/0.tar"), members)) == dict.fromkeys(classes, 3)
    tar_of(Path("x/0.tar"), dict(list(members.items())[:-1]))
    assert classes_in("x") == {"0": 3, "1": 2}
    assert "ignored: 1 images in x that have no label beside them (0.tar/train/5.png)" in capsys.readouterr().err
    nested("few", "cats", "dogs")
    Path("few/cats/0.cls").write_text("of something else")
    assert classes_in("few") == {"cats": 3, "dogs": 3}
    assert "ignored: 1 files in few that are not images (1 .cls)" in capsys.readouterr().err


def test_images_are_found_by_their_content_where_the_suffix_is_unknown(capsys):
    jpeg = encoded(".jpg", DRAWING)
    names = ("a/none", "a/photo.jpg_large", "b/photo.jpg?size=1", "b/photo.jif")
    others = {
        "a/empty": b"",
        "a/notes": b"BMW, and more",
        "b/P5": b"P5 is good",
        "b/cut.txt": jpeg,
        "b/preview.NEF": b"II*\0" * 9,
    }
    members = dict.fromkeys(names, jpeg) | {"b/grey.pgm": encoded(".pgm", DRAWING[:, :, 0])} | others
    tar_of(Path("tars/1.tar"), members)
    for name, data in members.items():
        Path("folder", name).parent.mkdir(parents=True, exist_ok=True)
        Path("folder", name).write_bytes(data)
    os.mkfifo("folder/a/pipe")  # opening it would wait for ever
    for folder, count in (("tars", 5), ("folder", 6)):
        assert classes_in(folder) == {"a": 2, "b": 3}
        assert f"ignored: {count} files in {folder} that are not images (" in capsys.readouterr().err
        assert {load_image(path, 16).shape for path in find_images(folder).paths} == {(16, 16, 3)}


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
