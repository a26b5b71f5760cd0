"""What becomes of every kind of image and every kind of bad file, in training and in prediction."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import (
    DRAWING,
    PROJECT,
    REAL_DATA,
    encoded,
    error_of,
    exif,
    needs_real_data,
    predictions,
    rows_of,
    run,
    save,
    train,
)
from run_folders import change_metadata

import classifier.data.images as decoding
from classifier.base.console import UserError
from classifier.data.images import load_image
from dataset import read_train_sets


def png(width, height, colour_type, *chunks):
    """A PNG file of 8 bits a sample with these chunks, (name, data)."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        file += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return file


def bomb_png(side=60_000):
    """A file of a few hundred bytes that says it holds 3.6 billion pixels."""
    return png(side, side, 2, (b"IDAT", zlib.compress(bytes(1000))))


BAD_FILES = {
    "empty.jpg": (b"", "empty file"),
    "text.jpg": (b"this is not an image", "not an image of a known kind"),
    "renamed.jpg": (encoded(".gif"), "GIF data in a .jpg file"),
    "bomb.png": (bomb_png(), "too large"),
    "end_missing.jpg": (encoded(".jpg")[:-2], "damaged, truncated or unsupported JPEG"),
}
for kind in ("JPEG", "PNG", "BMP", "GIF", "WebP", "TIFF"):
    whole = encoded(f".{kind.lower()}")
    BAD_FILES[f"half.{kind.lower()}"] = whole[: len(whole) // 2], f"damaged, truncated or unsupported {kind}"
REASONS = {name: reason for name, (_, reason) in BAD_FILES.items()} | {"pipe.jpg": "not a file", "gone.jpg": "No such file"}


@pytest.mark.parametrize("module", ["classifier.data.augmentation", "experiments.draw_samples", "dataset"])
def test_opencv_knows_our_limit_whichever_module_imports_it(module, tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb_png(side=20_000))  # OpenCV's own limit is a billion pixels
    script = f"import {module}, cv2, numpy; cv2.imdecode(numpy.fromfile('{tmp_path}/bomb.png', 'u1'), 1)"
    finished = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True)
    assert "CV_IO_MAX_IMAGE_PIXELS" in finished.stderr


def add_bad_files(folder):
    """Put a file of every bad kind into a folder."""
    for name, (data, _) in BAD_FILES.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.jpg")  # reading it would never end
    (folder / "gone.jpg").symlink_to("nowhere")


def test_training_skips_bad_files_and_names_each_with_its_reason(images):
    add_bad_files(images / "cats")
    before = {path: path.lstat().st_mtime_ns for path in images.rglob("*")}
    finished = train(images)
    assert f"skipped    {len(REASONS)}: " in finished.stderr
    assert "6 damaged, truncated or unsupported" not in finished.stderr  # each kind is counted by itself
    assert "2 damaged, truncated or unsupported JPEG" in finished.stderr
    assert "cats 10 + 2" in finished.stderr
    rows = {os.path.basename(row["path"]): row["reason"] for row in rows_of("runs/001/skipped.csv")}
    assert rows.keys() == REASONS.keys()
    assert all(rows[name].startswith(reason) for name, reason in REASONS.items())
    assert {path: path.lstat().st_mtime_ns for path in images.rglob("*")} == before  # nothing of the user's is touched


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


MEMORY_FOR = """
import resource, sys
from classifier.data.images import BadImageError, load_image
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = used()
for path in sys.argv[1:]:
    try:
        print(load_image(path, 32).shape)
    except BadImageError as error:
        print(error.reason)
print(used() - before)
"""


def test_small_files_that_claim_much_are_refused_before_their_decoder_makes_room(tmp_path):
    """Found by mutating files: OpenCV made room for 2 GiB of a chunk, and for all pixels of a JPEG that had hardly any."""
    png, jpeg = encoded(".png"), bytearray(encoded(".jpg"))
    (tmp_path / "chunk.png").write_bytes(png[:-12] + struct.pack(">I4s", 0x7FFFFFFF, b"tEXt"))
    (tmp_path / "end.png").write_bytes(png[:-12] + struct.pack(">I4sI", 0x7FFFFFFF, b"IEND", 0))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, 13_000, 13_000)
    (tmp_path / "frame.jpg").write_bytes(jpeg)
    end = 4 + int.from_bytes(jpeg[4:6], "big")  # of the first segment; the decoder skips what belongs to none
    (tmp_path / "garbage.jpg").write_bytes(jpeg[:end] + bytes(5) + jpeg[end:])
    command = [sys.executable, "-c", MEMORY_FOR, *sorted(tmp_path.glob("*.*g"))]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(PROJECT)})
    *reasons, megabytes = finished.stdout.splitlines()
    assert [reason.split(",")[0] for reason in reasons] == ["damaged"] * 4
    assert int(megabytes) < 50


def test_native_libraries_keep_quiet(trained, tmp_path):
    """libjpeg and libpng write warnings straight to file descriptor 2; the user sees our line and nothing else."""
    damaged = bytearray(encoded(".png"))
    damaged[1000] ^= 255
    (tmp_path / "damaged.png").write_bytes(damaged)
    stray = encoded(".jpg")
    (tmp_path / "stray.jpg").write_bytes(stray[:-2] + bytes(50) + stray[-2:])
    finished = run("predict", "--model", trained, "damaged.png", "stray.jpg", code=1, process=True)
    assert finished.stderr.splitlines() == ["error: damaged.png: damaged, truncated or unsupported PNG"]


def test_a_damaged_image_shows_nothing_of_the_one_before(tmp_path):
    """OpenCV 4.10 filled the damaged part of a JPEG with pixels of whatever it had decoded before."""
    data = encoded(".jpg")
    path = tmp_path / "damaged.jpg"
    path.write_bytes(data[: len(data) // 2] + b"\xff\xd9")  # half of the image, and an end as if it were whole
    seen = []
    for value in (0, 255):
        load_image(save(tmp_path / f"{value}.png", np.full((70, 90, 3), value, np.uint8)), 64)
        seen.append(load_image(path, 64))
    np.testing.assert_array_equal(*seen)


def palette_png(indexes):
    """A palette PNG, and its pixels."""
    colours = np.array([[k, 255 - k, k // 2] for k in range(256)], np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in indexes)
    height, width = indexes.shape
    return png(width, height, 3, (b"PLTE", colours.tobytes()), (b"IDAT", zlib.compress(rows))), colours[indexes]


GREY = cv2.cvtColor(DRAWING, cv2.COLOR_RGB2GRAY)
GREY_AS_RGB = np.dstack([GREY] * 3)
BGRA = np.dstack([DRAWING[:, :, ::-1], np.full(DRAWING.shape[:2], 128, np.uint8)])
ORDINARY_IMAGES = {  # name: bytes, and the RGB pixels that should be seen
    "grey.png": (encoded(".png", GREY), GREY_AS_RGB),
    "sixteen.png": (encoded(".png", DRAWING.astype(np.uint16) * 257), DRAWING),
    "sixteen.tiff": (encoded(".tiff", DRAWING.astype(np.uint16) * 257), DRAWING),
    "grey16.png": (encoded(".png", GREY.astype(np.uint16) * 257), GREY_AS_RGB),
    "palette.png": palette_png(GREY),
    "alpha.png": (cv2.imencode(".png", BGRA)[1].tobytes(), DRAWING),
    "colour.bmp": (encoded(".bmp"), DRAWING),
    "colour.tif": (encoded(".tiff"), DRAWING),
    "UPPER.PNG": (encoded(".png"), DRAWING),
    "lossless.webp": (encoded(".webp", DRAWING, cv2.IMWRITE_WEBP_QUALITY, 101), DRAWING),
}


@pytest.mark.parametrize("name", ORDINARY_IMAGES)
def test_ordinary_images_come_out_as_the_same_rgb(tmp_path, name):
    """RGB, not OpenCV's own BGR: the drawing's colours are not grey."""
    data, pixels = ORDINARY_IMAGES[name]
    (tmp_path / name).write_bytes(data)
    expected = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(load_image(tmp_path / name, 32), expected)


def test_a_jpeg_without_a_jfif_marker_is_sound(tmp_path):
    jpeg = encoded(".jpg")
    (tmp_path / "with.jpg").write_bytes(jpeg)
    (tmp_path / "without.jpg").write_bytes(jpeg[:2] + jpeg[20:])
    np.testing.assert_array_equal(*(load_image(tmp_path / name, 32) for name in ("with.jpg", "without.jpg")))


def test_cmyk():
    """tests/cmyk.jpg is red, green, blue and white in four quarters, saved as an inverted (Adobe) CMYK JPEG."""
    pixels = load_image(Path(__file__).parent / "cmyk.jpg", 32)
    quarters = [pixels[y, x] for y in (4, 28) for x in (4, 28)]
    np.testing.assert_allclose(quarters, [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    flips = {
        1: lambda p: p,
        2: np.fliplr,
        3: lambda p: np.rot90(p, 2),
        4: np.flipud,
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
        8: lambda p: np.rot90(p, 3),
    }
    jpeg = encoded(".jpg", np.ascontiguousarray(flips[orientation](DRAWING)), cv2.IMWRITE_JPEG_QUALITY, 100)
    (tmp_path / "turned.jpg").write_bytes(jpeg[:2] + exif(orientation) + jpeg[2:])
    upright = cv2.resize(DRAWING, (32, 32), interpolation=cv2.INTER_AREA)
    difference = np.abs(load_image(tmp_path / "turned.jpg", 32).astype(int) - upright)
    assert difference.mean() < 3


@pytest.mark.parametrize("size", [(64, 90), (300, 128), (513, 700), (1100, 1030)])
def test_a_large_jpeg_decoded_at_reduced_size_looks_the_same(tmp_path, size):
    large = cv2.GaussianBlur(cv2.resize(DRAWING, size), (0, 0), 2)
    jpeg = encoded(".jpg", large, cv2.IMWRITE_JPEG_QUALITY, 95)
    (tmp_path / "large.jpg").write_bytes(jpeg[:2] + exif(6) + b"\xff" + jpeg[2:])  # a padded marker, too
    upright = np.rot90(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB), 3)
    expected = cv2.resize(upright, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(load_image(tmp_path / "large.jpg", 64).astype(int) - expected).mean() < 2.5
    (tmp_path / "large.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    with pytest.raises(UserError, match="truncated"):
        load_image(tmp_path / "large.jpg", 64)


@pytest.fixture
def pillow():
    """Pillow, which writes HEIC and AVIF. Both packages are optional."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    import PIL.Image
    import PIL.ImageOps

    return PIL


def written(image, suffix):
    """The bytes of a HEIC or AVIF file of Pillow's image. The writers turn its Exif orientation into irot and imir."""
    file = io.BytesIO()
    options = {"exif": image.getexif()} if suffix == ".avif" else {}
    image.save(file, {".heic": "HEIF", ".avif": "AVIF"}[suffix], quality=95, **options)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_heic_and_avif_are_upright_rgb(tmp_path, pillow, monkeypatch, suffix):
    def check(image, upright):
        path = tmp_path / f"image{suffix}"
        path.write_bytes(written(image, suffix))
        expected = cv2.resize(upright, (32, 32), interpolation=cv2.INTER_AREA)
        assert np.abs(load_image(path, 32).astype(int) - expected).mean() < 4

    for orientation in range(1, 9):
        image = pillow.Image.fromarray(DRAWING)
        image.getexif()[0x112] = orientation
        check(image, np.array(pillow.ImageOps.exif_transpose(image)))
    check(pillow.Image.fromarray(np.dstack([DRAWING, np.full(DRAWING.shape[:2], 128, np.uint8)])), DRAWING)
    check(pillow.Image.fromarray(GREY), GREY_AS_RGB)
    if suffix == ".heic":
        monkeypatch.setattr("pillow_heif.options.SAVE_HDR_TO_12_BIT", True)
        check(pillow.Image.fromarray(GREY.astype(np.uint16) * 257), GREY_AS_RGB)


def test_bad_heic_and_avif_files_are_refused_and_missing_packages_named(trained, tmp_path, pillow, monkeypatch):
    heic, avif = (written(pillow.Image.fromarray(DRAWING), suffix) for suffix in (".heic", ".avif"))
    files = {
        "half.heic": (heic[: len(heic) // 2], "damaged, truncated or unsupported HEIC"),
        "end_missing.heif": (heic[:-1], "damaged, truncated or unsupported HEIC"),
        "end_missing.avif": (avif[:-1], "damaged, truncated or unsupported AVIF"),
        "tga.heic": (b"\0\0\2\0ftypheic\4\0\4\0\x18\0" + bytes(48), "damaged, truncated or unsupported HEIC"),
        "renamed.jpg": (heic, "HEIC data in a .jpg file"),
        "renamed.heic": (avif, "AVIF data in a .heic file"),
        "good.heic": (heic, None),
        "good.avif": (avif, None),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    predicted = predictions(trained, *files, code=1)
    assert {name: predicted[name].get("error") for name in files} == {name: reason for name, (_, reason) in files.items()}
    with monkeypatch.context() as patch:
        patch.setattr(pillow.Image, "MAX_IMAGE_PIXELS", 1000)
        assert "too large: more than" in predictions(trained, "good.heic", code=1)["good.heic"]["error"]
    for name, package, module in (("good.heic", "pillow-heif", "pillow_heif"), ("good.avif", "pillow", "PIL.features")):
        monkeypatch.setitem(sys.modules, module, None)
        decoding._pillow_for.cache_clear()
        needed = f"needs {package}: pip install -c requirements-optional.txt {package}"
        assert needed in predictions(trained, name, code=1)[name]["error"]
    decoding._pillow_for.cache_clear()


def by_hand(image, fit):
    """What a drawing of (70, 90) pixels becomes before it is resized to a square."""
    if fit == "crop":
        return image[:, 10:80]
    if fit == "squash":
        return image
    square = np.empty((90, 90, 3), np.uint8)
    square[:] = image.mean(axis=(0, 1)).round()
    square[10:80] = image
    return square


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_every_fit_makes_a_square_and_a_reduced_jpeg_the_same(tmp_path, fit):
    expected = by_hand(DRAWING, fit)
    for turn, name in enumerate(("wide.png", "high.png")):
        save(tmp_path / name, np.ascontiguousarray(np.rot90(DRAWING, turn)))
        resized = cv2.resize(np.rot90(expected, turn), (18, 18), interpolation=cv2.INTER_AREA)
        assert np.abs(load_image(tmp_path / name, 18, fit).astype(int) - resized).mean() < 0.5
    large = cv2.GaussianBlur(cv2.resize(DRAWING, (1080, 840)), (0, 0), 2)
    save(tmp_path / "large.jpg", large)
    resized = cv2.resize(expected, (90, 90), interpolation=cv2.INTER_AREA)
    assert np.abs(load_image(tmp_path / "large.jpg", 90, fit).astype(int) - resized).mean() < 4
    for extreme in ((1, 200), (200, 1)):
        save(tmp_path / "line.png", np.full((*extreme, 3), 99, np.uint8))
        np.testing.assert_array_equal(load_image(tmp_path / "line.png", 16, fit), np.full((16, 16, 3), 99))


def test_a_run_keeps_its_fit_and_every_script_takes_it_from_there(images, tmp_path, monkeypatch):
    wide = save(images / "dogs/wide.png")
    fitted = save(tmp_path / "fitted.png", cv2.resize(by_hand(DRAWING, "crop"), (32, 32), interpolation=cv2.INTER_AREA))
    train(images, "--fit", "crop", "--epochs", 1)
    predicted = predictions("runs/001", wide, fitted)
    assert predicted[str(wide)]["probabilities"] == predicted[str(fitted)]["probabilities"]
    assert json.loads(Path("runs/001/model.json").read_text())["fit"] == "crop"
    assert "cannot change on --resume" in error_of(run("train", "--resume", "runs/001", "--fit", "pad", code=2))
    seen, square = [], decoding.fit_square
    monkeypatch.setattr(decoding, "fit_square", lambda *given: seen.append(given[2]) or square(*given))
    run("evaluate", "--model", "runs/001", images, "--ood-dir", images)
    run("export", "--model", "runs/001", "--data-dir", images)
    assert set(seen) == {"crop"}
    change_metadata("runs/001", fit="stretch")
    assert "damaged" in error_of(run("predict", "--model", "runs/001", wide, code=3))


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_training_sees_what_prediction_sees(tmp_path, fit):
    """The same pixels on both ways, for every kind of image."""
    for name, (data, _) in ORDINARY_IMAGES.items():
        for kind in ("cats", "dogs"):
            path = tmp_path / "images" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    sets = read_train_sets(tmp_path / "images", 32, cache_dir=tmp_path / "cache", fit=fit)
    for data_set in (sets.train, sets.valid):
        pixels = np.concatenate([pixels for pixels, _ in data_set.batches(4)])
        for path, seen in zip(data_set.paths, pixels, strict=True):
            np.testing.assert_array_equal(seen, load_image(path, 32, fit))


@needs_real_data
@pytest.mark.parametrize("folder", ["bad_images", "pngsuite"])
def test_real_bad_files_are_skipped_and_the_others_predicted(trained, folder):
    paths = sorted(str(path) for path in (REAL_DATA / folder).rglob("*") if path.is_file())
    predicted = predictions(trained, "-", code=1, text="\n".join(paths))
    assert predicted.keys() == set(paths)
    good = [path for path, prediction in predicted.items() if "class" in prediction]
    assert 0 < len(good) < len(paths)
    if folder == "pngsuite":  # by its own rule: x… are corrupt, all others are sound
        bad = {os.path.basename(path) for path in set(paths) - set(good) if path.endswith(".png")}
        assert bad == {os.path.basename(path) for path in paths if os.path.basename(path).startswith("x")}


@needs_real_data
@pytest.mark.parametrize("scene", ["Landscape", "Portrait"])
def test_real_exif_variants_give_the_same_prediction(trained, scene):
    first, *others = predictions(trained, *sorted((REAL_DATA / "exif_orientation").glob(f"{scene}_*.jpg"))).values()
    assert len(others) == 8
    for prediction in others:
        assert prediction["class"] == first["class"]
        assert prediction["probabilities"] == pytest.approx(first["probabilities"], abs=0.02)
