"""What becomes of every kind of picture and every kind of bad file, in training and in prediction."""

import csv
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import PROJECT, QUICK, REAL_DATA, draw_pictures, error_of, needs_real_data, predictions, run, save

import cpu
import dataset
from console import UserError
from dataset import find_pictures, load_picture, read_train_sets
from draw_samples import draw

DRAWING = cv2.resize(draw("dog", np.random.default_rng(5)), (90, 70), interpolation=cv2.INTER_AREA)


def encoded(suffix, picture=DRAWING, *parameters):
    return cv2.imencode(suffix, picture[:, :, ::-1] if picture.ndim == 3 else picture, parameters)[1].tobytes()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb_png(side=60_000):
    """A file of a few hundred bytes that says it holds 3.6 billion pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(bytes(1000))), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BAD_FILES = {
    "empty.jpg": (b"", "empty file"),
    "text.jpg": (b"this is not a picture", "not a picture of a known kind"),
    "renamed.jpg": (encoded(".gif"), "a GIF renamed .jpg"),
    "bomb.png": (bomb_png(), "too large"),
    "half.jpg": (encoded(".jpg")[:1500], "damaged, truncated or unsupported JPEG"),
    "end_missing.jpg": (encoded(".jpg")[:-2], "damaged, truncated or unsupported JPEG"),
    "half.png": (encoded(".png")[:2000], "damaged, truncated or unsupported PNG"),
    "half.bmp": (encoded(".bmp")[:2000], "damaged, truncated or unsupported BMP"),
    "half.gif": (encoded(".gif")[:2000], "damaged, truncated or unsupported GIF"),
    "half.webp": (encoded(".webp")[:1000], "damaged, truncated or unsupported WebP"),
    "half.tiff": (encoded(".tiff")[:2000], "damaged, truncated or unsupported TIFF"),
}


@pytest.mark.parametrize("module", ["augment", "draw_samples", "dataset"])
def test_opencv_knows_our_limit_whichever_module_imports_it(module, tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb_png(side=20_000))  # OpenCV's own limit is a billion pixels
    script = f"import {module}, cv2, numpy; cv2.imdecode(numpy.fromfile('{tmp_path}/bomb.png', 'u1'), 1)"
    finished = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True)
    assert "CV_IO_MAX_IMAGE_PIXELS" in finished.stderr


@pytest.fixture
def bad_files(tmp_path):
    """A folder with a file of every bad kind."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for name, (data, _) in BAD_FILES.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.jpg")  # reading it would never end
    (folder / "gone.jpg").symlink_to("nowhere")
    return folder


REASONS = {name: reason for name, (_, reason) in BAD_FILES.items()} | {"pipe.jpg": "not a file", "gone.jpg": "No such file"}


def test_training_skips_bad_files_and_names_each_with_its_reason(pictures, bad_files, tmp_path):
    for path in bad_files.iterdir():
        shutil.move(path, pictures / "cats" / path.name)
    before = {path: path.lstat().st_mtime_ns for path in pictures.rglob("*")}
    finished = run("train", "--data-dir", pictures, "--output", "runs", *QUICK)
    assert f"skipped    {len(REASONS)}: " in finished.stderr
    assert "6 damaged, truncated or unsupported" not in finished.stderr  # each kind is counted by itself
    assert "2 damaged, truncated or unsupported JPEG" in finished.stderr
    assert "cats 10 + 2" in finished.stderr
    with open(tmp_path / "runs/001/skipped.csv", newline="") as file:
        rows = {os.path.basename(row["path"]): row["reason"] for row in csv.DictReader(file)}
    assert rows.keys() == REASONS.keys()
    assert all(rows[name].startswith(reason) for name, reason in REASONS.items())
    assert {path: path.lstat().st_mtime_ns for path in pictures.rglob("*")} == before  # nothing of the user's is touched


def test_prediction_names_bad_files_and_goes_on(trained, bad_files):
    save(bad_files / "good.jpg", DRAWING)
    answers = predictions(trained, bad_files, code=1)
    assert answers.pop(str(bad_files / "good.jpg"))["class"] in ("cats", "dogs")
    assert {os.path.basename(path) for path in answers} == REASONS.keys()
    for path, answer in answers.items():
        assert answer["error"].startswith(REASONS[os.path.basename(path)])


def test_evaluation_skips_bad_files_and_counts_them(trained, pictures, bad_files):
    for path in bad_files.iterdir():
        shutil.move(path, pictures / "dogs" / path.name)
    result = json.loads(run("evaluate", "--model", trained, "--format", "json", pictures).stdout)
    assert (result["scored"], result["skipped"]) == (24, len(REASONS))


def test_native_libraries_keep_quiet(trained, tmp_path):
    """libjpeg and libpng write warnings straight to file descriptor 2; the user sees our line and nothing else."""
    damaged = bytearray(encoded(".png"))
    damaged[1000] ^= 255
    (tmp_path / "damaged.png").write_bytes(damaged)
    stray = encoded(".jpg")
    (tmp_path / "stray.jpg").write_bytes(stray[:-2] + bytes(50) + stray[-2:])
    finished = run("predict", "--model", trained, "damaged.png", "stray.jpg", code=1, process=True)
    assert finished.stderr.splitlines() == ["error: damaged.png: damaged, truncated or unsupported PNG"]


def test_a_damaged_picture_shows_nothing_of_the_one_before(tmp_path):
    """OpenCV 4.10 filled the damaged part of a JPEG with pixels of whatever it had decoded before."""
    data = encoded(".jpg")
    path = tmp_path / "damaged.jpg"
    path.write_bytes(data[: len(data) // 2] + b"\xff\xd9")  # half of the picture, and an end as if it were whole
    others = [save(tmp_path / f"{value}.png", np.full((70, 90, 3), value, np.uint8)) for value in (0, 255)]
    seen = []
    for other in others:
        load_picture(other, 64)
        seen.append(load_picture(path, 64))
    np.testing.assert_array_equal(*seen)


# --- Kinds of pictures ------------------------------------------------------------------------------------------------


def with_alpha(picture):
    return np.dstack([picture, np.full(picture.shape[:2], 128, np.uint8)])


def exif(orientation):
    """An Exif segment for a JPEG that says which side is up."""
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff


def palette_png(picture):
    """The picture in 216 colours as a palette PNG, and those pixels."""
    levels = (picture.astype(int) + 25) // 51
    indexes = (levels * [36, 6, 1]).sum(axis=2).astype(np.uint8)
    colours = bytes(51 * level for rgb in itertools.product(range(6), repeat=3) for level in rgb)
    height, width = indexes.shape
    rows = b"".join(b"\0" + row.tobytes() for row in indexes)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)), (b"PLTE", colours),
              (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks), (levels * 51).astype(np.uint8)


def ordinary_pictures():
    """{name: (bytes, the RGB pixels that should be seen)}."""
    grey = cv2.cvtColor(DRAWING, cv2.COLOR_RGB2GRAY)
    as_grey = np.dstack([grey] * 3)
    palette, palette_pixels = palette_png(DRAWING)
    bgra = with_alpha(DRAWING[:, :, ::-1])
    return {
        "grey.png": (encoded(".png", grey), as_grey),
        "sixteen.png": (encoded(".png", DRAWING.astype(np.uint16) * 257), DRAWING),
        "sixteen.tiff": (encoded(".tiff", DRAWING.astype(np.uint16) * 257), DRAWING),
        "grey16.png": (encoded(".png", grey.astype(np.uint16) * 257), as_grey),
        "palette.png": (palette, palette_pixels),
        "alpha.png": (cv2.imencode(".png", bgra)[1].tobytes(), DRAWING),
        "colour.bmp": (encoded(".bmp"), DRAWING),
        "colour.tif": (encoded(".tiff"), DRAWING),
        "UPPER.PNG": (encoded(".png"), DRAWING),
        "lossless.webp": (encoded(".webp", DRAWING, cv2.IMWRITE_WEBP_QUALITY, 101), DRAWING),
    }


@pytest.mark.parametrize("name", ordinary_pictures())
def test_ordinary_pictures_come_out_as_the_same_rgb(tmp_path, name):
    data, pixels = ordinary_pictures()[name]
    (tmp_path / name).write_bytes(data)
    expected = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(load_picture(tmp_path / name, 32), expected)


def test_a_jpeg_without_a_jfif_marker_is_sound(tmp_path):
    jpeg = encoded(".jpg")
    (tmp_path / "with.jpg").write_bytes(jpeg)
    (tmp_path / "without.jpg").write_bytes(jpeg[:2] + jpeg[20:])
    np.testing.assert_array_equal(*(load_picture(tmp_path / name, 32) for name in ("with.jpg", "without.jpg")))


def test_red_is_red(tmp_path):
    """RGB, not OpenCV's own BGR."""
    red = np.zeros((20, 20, 3), np.uint8)
    red[:, :, 0] = 255
    np.testing.assert_array_equal(load_picture(save(tmp_path / "red.png", red), 8)[0, 0], [255, 0, 0])


def test_cmyk():
    """tests/cmyk.jpg is red, green, blue and white in four quarters, saved as an inverted (Adobe) CMYK JPEG."""
    pixels = load_picture(Path(__file__).parent / "cmyk.jpg", 32)
    quarters = [pixels[y, x] for y in (4, 28) for x in (4, 28)]
    np.testing.assert_allclose(quarters, [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    flips = {1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud,
             5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p, 1), 7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
             8: lambda p: np.rot90(p, 3)}  # fmt: skip
    jpeg = encoded(".jpg", np.ascontiguousarray(flips[orientation](DRAWING)), cv2.IMWRITE_JPEG_QUALITY, 100)
    (tmp_path / "turned.jpg").write_bytes(jpeg[:2] + exif(orientation) + jpeg[2:])
    upright = cv2.resize(DRAWING, (32, 32), interpolation=cv2.INTER_AREA)
    difference = np.abs(load_picture(tmp_path / "turned.jpg", 32).astype(int) - upright)
    assert difference.mean() < 3


@pytest.mark.parametrize("size", [(64, 90), (300, 128), (513, 700), (1100, 1030)])
def test_a_large_jpeg_decoded_at_reduced_size_looks_the_same(tmp_path, size):
    large = cv2.GaussianBlur(cv2.resize(DRAWING, size), (0, 0), 2)
    jpeg = encoded(".jpg", large, cv2.IMWRITE_JPEG_QUALITY, 95)
    (tmp_path / "large.jpg").write_bytes(jpeg[:2] + exif(6) + b"\xff" + jpeg[2:])  # a padded marker, too
    upright = np.rot90(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB), 3)
    expected = cv2.resize(upright, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(load_picture(tmp_path / "large.jpg", 64).astype(int) - expected).mean() < 2.5
    (tmp_path / "large.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    with pytest.raises(UserError, match="truncated"):
        load_picture(tmp_path / "large.jpg", 64)


def test_training_sees_what_prediction_sees(tmp_path):
    """The same pixels on both ways, for every kind of picture."""
    for name, (data, _) in ordinary_pictures().items():
        for kind in ("cats", "dogs"):
            path = tmp_path / "pictures" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    sets = read_train_sets(tmp_path / "pictures", 32, cache_dir=tmp_path / "cache")
    for data_set in (sets.train, sets.valid):
        pixels = np.concatenate([pixels for pixels, _ in data_set.batches(4)])
        for path, seen in zip(data_set.paths, pixels, strict=True):
            np.testing.assert_array_equal(seen, load_picture(path, 32))


# --- Folders ----------------------------------------------------------------------------------------------------------


def test_missing_and_empty_folders(tmp_path):
    assert "there is no folder" in error_of(run("train", "--data-dir", "nowhere", "--output", "runs", code=3, process=True))
    (tmp_path / "empty").mkdir()
    assert "no pictures" in error_of(run("train", "--data-dir", "empty", "--output", "runs", code=3))
    (tmp_path / "empty/notes.txt").write_text("no picture")
    assert "no pictures" in error_of(run("train", "--data-dir", "empty", "--output", "runs", code=3))
    assert "is not a folder" in error_of(run("train", "--data-dir", "empty/notes.txt", "--output", "runs", code=3))
    assert not list((tmp_path / "runs").glob("[0-9]*")), "no run folder is left behind"


def test_one_class_only(tmp_path):
    draw_pictures(tmp_path / "one", 3, ["cats"])
    assert "only one class, 'cats'" in error_of(run("train", "--data-dir", "one", "--output", "runs", code=3))
    draw_pictures(tmp_path / "deep/train", 3)
    assert "are the classes in deep/train?" in error_of(run("train", "--data-dir", "deep", "--output", "runs", code=3))


def test_a_class_with_one_picture_or_none_that_is_usable(pictures):
    draw_pictures(pictures, 1, ["birds"])
    assert "'birds'" in error_of(run("train", "--data-dir", pictures, "--output", "runs", code=3))
    (pictures / "birds/birds_0.jpg").write_bytes(b"")
    assert "no usable pictures" in error_of(run("train", "--data-dir", pictures, "--output", "runs", code=3))


def test_class_names_that_differ_only_by_case(pictures):
    shutil.copytree(pictures / "cats", pictures / "Cats")
    finished = run("train", "--data-dir", pictures, "--output", "runs", code=3)
    assert "'Cats' and 'cats' differ only by case" in error_of(finished)


def test_what_is_ignored_is_said(pictures):
    (pictures / "empty_class").mkdir()
    (pictures / ".hidden").mkdir()
    save(pictures / ".hidden" / "a.jpg", DRAWING)
    save(pictures / "cats" / "._cats_1.jpg", DRAWING)
    save(pictures / "stray.jpg", DRAWING)
    (pictures / "cats" / "Thumbs.db").write_bytes(b"")
    finished = run("train", "--data-dir", pictures, "--output", "runs", *QUICK)
    assert "cats 10 + 2, dogs 10 + 2 (training" in finished.stderr
    assert "folder pictures/empty_class" in finished.stderr.replace(str(pictures.parent) + os.sep, "")
    assert "1 pictures" in finished.stderr
    assert "stray.jpg" in finished.stderr
    assert "1 .db" in finished.stderr


def test_kaggles_flat_names_and_the_first_of_each_class_in_natural_order(tmp_path):
    folder = draw_pictures(tmp_path / "made")
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("cats", "dogs"):
        for k in range(12):
            shutil.copy(folder / name / f"{name}_{k}.jpg", flat / f"{name[:-1]}.{k}.jpg")
    finished = run("train", "--data-dir", flat, "--output", "runs", *QUICK)
    assert "cat 10 + 2, dog 10 + 2" in finished.stderr
    names = [path.name for path in find_pictures(flat, limit_per_class=3).paths]
    assert names == [f"{kind}.{k}.jpg" for kind in ("cat", "dog") for k in range(3)]  # not cat.10 after cat.1
    finished = run("train", "--data-dir", flat, "--output", "runs", *QUICK, "--limit-per-class", 3)
    assert "cat 2 + 1, dog 2 + 1" in finished.stderr


def test_links_are_followed_and_circles_end(pictures, tmp_path):
    (tmp_path / "links").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "links" / name).symlink_to(pictures / name)
    (pictures / "cats" / "circle").symlink_to(pictures / "cats")
    assert "cats 10 + 2, dogs 10 + 2" in run("train", "--data-dir", "links", "--output", "runs", *QUICK).stderr


def test_natural_order_is_total(tmp_path):
    names = ["cat.1.jpg", "cat.01.jpg", "cat.2.jpg", "cat.10.jpg", "cat.1²2.jpg", "dog.1.jpg"]
    for name in names:
        save(tmp_path / "flat" / name, DRAWING)
    order = [path.name for path in find_pictures(tmp_path / "flat").paths]
    assert order == ["cat.01.jpg", "cat.1.jpg", "cat.1²2.jpg", "cat.2.jpg", "cat.10.jpg", "dog.1.jpg"]


def test_non_ascii_paths(tmp_path):
    folder = draw_pictures(tmp_path / "Bilder – 写真 😀" / "größe")
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
    folder = draw_pictures(tmp_path / "pictures", 40, size=20)
    train, valid = sides(folder)
    assert [sum(name.startswith(kind) for name in valid) for kind in ("cats", "dogs")] == [8, 8]
    assert not train & valid
    assert len(train | valid) == 80
    assert sides(folder) == (train, valid)
    assert len(sides(folder, validation_size=0.5)[1]) == 40

    more = draw_pictures(tmp_path / "more", 48, size=20)  # the same, and eight others of each class
    train_of_more, valid_of_more = sides(more)
    moved = len(train & valid_of_more) + len(valid & train_of_more)
    assert moved <= 6, "only pictures next to the border may change sides"
    for path in folder.rglob("*.jpg"):
        path.rename(path.with_name("renamed_" + path.name))  # names have no say
    assert {name.removeprefix("renamed_") for name in sides(folder)[1]} == valid


def test_copies_of_a_picture_stay_on_one_side(tmp_path):
    folder = draw_pictures(tmp_path / "pictures", 10, size=20)
    for path in list(folder.rglob("*.jpg")):
        for copy in "abc":
            shutil.copy(path, path.with_name(f"{path.stem}_{copy}.jpg"))
    train, valid = ({"_".join(name.split("_")[:2]).removesuffix(".jpg") for name in side} for side in sides(folder))
    assert not train & valid


def test_copies_that_come_last_stay_together(pictures):
    assert dataset.split([0, 1, 2, 3], ["a", "b", "b", "b"], 0.5) == ([1, 2, 3], [0])
    assert dataset.split([0, 1, 2, 3], ["a", "a", "a", "b"], 0.2) == ([3], [0, 1, 2])
    for name in ("first.jpg", "second.jpg"):
        save(pictures / "birds" / name, DRAWING)
    with pytest.raises(UserError, match="'birds' in .* has only copies of one picture"):
        read_train_sets(pictures, 16)


def test_a_picture_in_two_classes_is_named(pictures, capsys):
    shutil.copy(pictures / "cats/cats_3.jpg", pictures / "dogs/no_dog.jpg")
    read_train_sets(pictures, 16)
    said = capsys.readouterr().err
    assert "warning: pictures that are in two classes: 1, such as " in said
    assert "dogs/no_dog.jpg, a copy of " in said


def test_what_is_read_ahead_is_bounded_on_many_cores(pictures, monkeypatch):
    data_set = read_train_sets(pictures, 16).train
    monkeypatch.setattr(cpu, "cores", lambda: 64)
    for budget, most in ((3 * 16**2 * 2 * 5, 5), (1, 2)):
        monkeypatch.setattr(dataset, "READ_AHEAD_BYTES", budget)
        seen = []
        batches = data_set.batches(2, seed=0, view=lambda picture, rng, seen=seen: seen.append(rng) or picture)
        next(batches)
        batches.close()  # waits for what has begun
        assert 1 <= len(seen) / 2 <= most + 1  # one takes the place of what was read


def test_batches_depend_on_seed_and_epoch_alone(pictures):
    data_set = read_train_sets(pictures, 16).train
    labels = lambda **order: [batch.tolist() for _, batch in data_set.batches(6, **order)]  # noqa: E731
    first = labels(seed=1, epoch=0)
    assert [len(batch) for batch in first] == [6, 6, 6, 2]
    assert labels(seed=1, epoch=0) == first
    assert labels(seed=1, epoch=1) != first
    assert labels(seed=2, epoch=0) != first
    assert labels(seed=1, epoch=0, first=2) == first[2:]  # resumed in the middle
    assert sum(labels(), []) == data_set.labels.tolist()


# --- Real files -------------------------------------------------------------------------------------------------------


@needs_real_data
@pytest.mark.parametrize("folder", ["bad_images", "pngsuite"])
def test_real_bad_files_go_through(trained, folder):
    paths = sorted(str(path) for path in (REAL_DATA / folder).rglob("*") if path.is_file())
    answers = predictions(trained, "-", code=1, text="\n".join(paths))
    assert answers.keys() == set(paths)
    good = [path for path, answer in answers.items() if "class" in answer]
    assert 0 < len(good) < len(paths)
    if folder == "pngsuite":  # by its own rule: x… are corrupt, all others are sound
        bad = {os.path.basename(path) for path in set(paths) - set(good) if path.endswith(".png")}
        assert all(name.startswith("x") for name in bad), bad
        corrupt = {os.path.basename(path) for path in paths if os.path.basename(path).startswith("x")}
        assert corrupt == bad


@needs_real_data
@pytest.mark.parametrize("scene", ["Landscape", "Portrait"])
def test_real_exif_variants_give_the_same_prediction(trained, scene):
    answers = predictions(trained, *sorted((REAL_DATA / "exif_orientation").glob(f"{scene}_*.jpg")))
    assert len(answers) == 9
    assert len({answer["class"] for answer in answers.values()}) == 1
    first = next(iter(answers.values()))["probabilities"]
    for answer in answers.values():
        assert answer["probabilities"] == pytest.approx(first, abs=0.02)
