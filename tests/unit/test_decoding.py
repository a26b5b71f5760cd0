"""What becomes of every kind of image and every kind of bad file: the one function that decodes them."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import DRAWING, PROJECT, REAL_DATA, encoded, exif, needs_real_data, save
from formats import cases
from image_files import bomb_png

import classifier.data.decoding as decoding
from classifier.base.console import UserError
from classifier.data.images import BadImageError, load_image
from classifier.runs.settings import Settings
from dataset import read_images, split_images

FITS = ("squash", "crop", "pad")


def python(script, *arguments):
    """Run a script in a process of its own, in the project's folder."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


@pytest.mark.parametrize("module", ["classifier.data.augmentation", "dataset"])
def test_opencv_knows_our_limit_whichever_module_imports_it(module, tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb_png(side=20_000))  # OpenCV's own limit is a billion pixels
    script = f"import {module}, cv2, numpy; cv2.imdecode(numpy.fromfile('{tmp_path}/bomb.png', 'u1'), 1)"
    assert "CV_IO_MAX_IMAGE_PIXELS" in python(script).stderr


MEMORY_FOR = """
import resource, sys
from classifier.data.images import BadImageError, load_image
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = used()
for path in sys.argv[1:]:
    try:
        load_image(path, 32)
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
    *reasons, megabytes = python(MEMORY_FOR, *sorted(tmp_path.glob("*.*g"))).stdout.splitlines()
    assert [reason.split()[0] for reason in reasons] == ["damaged"] * 4
    assert int(megabytes) < 50


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


def test_a_jpeg_without_a_jfif_marker_is_sound(tmp_path):
    jpeg = encoded(".jpg")
    (tmp_path / "with.jpg").write_bytes(jpeg)
    (tmp_path / "without.jpg").write_bytes(jpeg[:2] + jpeg[20:])
    np.testing.assert_array_equal(*(load_image(tmp_path / name, 32) for name in ("with.jpg", "without.jpg")))


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


def test_a_deep_heic(tmp_path, pillow, monkeypatch):
    monkeypatch.setattr("pillow_heif.options.SAVE_HDR_TO_12_BIT", True)
    grey = cv2.cvtColor(DRAWING, cv2.COLOR_RGB2GRAY)
    (tmp_path / "deep.heic").write_bytes(written(pillow.Image.fromarray(grey.astype(np.uint16) * 257), ".heic"))
    expected = cv2.resize(np.dstack([grey] * 3), (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(load_image(tmp_path / "deep.heic", 32).astype(int) - expected).mean() < 4


def reason_of(path):
    """Why a file is refused; None if it is not."""
    try:
        load_image(path, 32)
    except BadImageError as error:
        return error.reason


def test_bad_heic_and_avif_files_are_refused_and_missing_packages_named(tmp_path, pillow, monkeypatch):
    heic, avif = (written(pillow.Image.fromarray(DRAWING), suffix) for suffix in (".heic", ".avif"))
    files = {
        "half.heic": (heic[: len(heic) // 2], "damaged or truncated HEIC"),
        "end_missing.heif": (heic[:-1], "damaged or truncated HEIC"),
        "end_missing.avif": (avif[:-1], "damaged or truncated AVIF"),
        "tga.heic": (b"\0\0\2\0ftypheic\4\0\4\0\x18\0" + bytes(48), "damaged or truncated HEIC"),
        "renamed.jpg": (heic, "HEIC data in a .jpg file: rename it to .heic"),
        "renamed.heic": (avif, "AVIF data in a .heic file: rename it to .avif"),
        "good.heic": (heic, None),
        "good.avif": (avif, None),
    }
    for name, (data, reason) in files.items():
        (tmp_path / name).write_bytes(data)
        assert reason_of(Path(name)) == reason
    with monkeypatch.context() as patch:
        patch.setattr(pillow.Image, "MAX_IMAGE_PIXELS", 1000)
        assert "too large: more than" in reason_of(Path("good.heic"))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decoding._pillow.cache_clear()
    assert reason_of(Path("good.heic")) == "HEIC needs pillow-heif: pip install -c requirements-optional.txt pillow-heif"
    decoding._pillow.cache_clear()


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


@pytest.mark.parametrize("fit", FITS)
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


@pytest.mark.parametrize("fit", FITS)
def test_training_sees_what_prediction_sees(tmp_path, fit):
    """The same pixels on both ways, for every kind of image."""
    for name, data in {
        case.name: case.data for case in cases() if case.reason is None and "orientation" in case.name
    }.items():
        for kind in ("cats", "dogs"):
            path = tmp_path / "images" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    settings = Settings(data_dir=tmp_path / "images", image_size=32, fit=fit)
    sets = split_images(read_images(settings, tmp_path / "cache"), settings, {})
    for data_set in (sets.train, sets.valid):
        pixels = np.concatenate([pixels for pixels, _ in data_set.batches(4)])
        for path, seen in zip(data_set.paths, pixels, strict=True):
            np.testing.assert_array_equal(seen, load_image(path, 32, fit))


@needs_real_data
def test_of_the_pngsuite_only_the_corrupt_files_are_refused():
    paths = sorted((REAL_DATA / "pngsuite").rglob("*.png"))
    assert len(paths) > 100
    assert {path for path in paths if reason_of(path)} == {path for path in paths if path.name.startswith("x")}
