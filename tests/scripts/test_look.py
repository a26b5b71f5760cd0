"""The look at a folder before training: copies, leaks, unreadable files and odd images are found, and nothing is changed."""

import json
import os

import cv2
import numpy as np
import pytest
from conftest import DRAWING, draw_images, encoded, error_of, exif, run, save

from classifier.data.inspection import COPIES, ODD
from experiments.draw_samples import draw
from experiments.near_copies import CHANGES


def look(*arguments, **options):
    """What dataset.py finds in a folder, as JSON."""
    return json.loads(run("dataset", *arguments, "--format", "json", **options).stdout)


@pytest.fixture
def drawings(tmp_path):
    """A folder of two classes with twelve large drawings each, all of them different."""
    return draw_images(tmp_path / "images", size=120)


def test_planted_copies_are_found_and_nothing_else(drawings):
    assert not any(look(drawings)[finding] for finding in (*COPIES, *ODD, "unreadable"))
    original = cv2.imread(str(drawings / "dogs/dogs_3.jpg"))[:, :, ::-1]
    expected, rng = {"dogs_3.jpg"}, np.random.default_rng(0)
    for name in ("scaled", "cropped", "mirrored", "brightened", "encoded"):
        copy, quality = CHANGES[name](original, rng), 40 if name == "encoded" else 95
        (drawings / f"dogs/{name}.jpg").write_bytes(encoded(".jpg", copy, cv2.IMWRITE_JPEG_QUALITY, quality))
        expected.add(f"{name}.jpg")
    findings = look(drawings)
    (group,) = findings["near_copies"]
    assert {os.path.basename(path) for path in group["paths"]} == expected
    assert findings["exact_copies"] == findings["two_classes"] == []


def test_copies_in_two_classes_and_in_two_folders(drawings, tmp_path):
    dog, cat = drawings / "dogs/dogs_3.jpg", drawings / "cats/cats_5.jpg"
    (drawings / "cats/wrong.jpg").write_bytes(dog.read_bytes())
    near = cv2.imread(str(cat))[:, ::-1, ::-1]
    save(drawings / "dogs/wrong.jpg", near)
    save(tmp_path / "test/1.jpg", draw("cat", np.random.default_rng(99)))
    (tmp_path / "test/2.jpg").write_bytes((drawings / "cats/cats_1.jpg").read_bytes())
    save(tmp_path / "test/3.jpg", cv2.imread(str(drawings / "dogs/dogs_9.jpg"))[:, ::-1, ::-1])
    findings = look(drawings, "--against", tmp_path / "test")
    path = lambda *names: [str(drawings / name) for name in names]  # noqa: E731
    assert findings["exact_copies"] == [{"paths": path("cats/wrong.jpg", "dogs/dogs_3.jpg")}]
    assert findings["two_classes"] == [
        {"copies": "near", "paths": path("cats/cats_5.jpg", "dogs/wrong.jpg")},
        {"copies": "exact", "paths": path("cats/wrong.jpg", "dogs/dogs_3.jpg")},
    ]
    assert findings["leaks"] == [
        {"copies": "exact", "paths": path("cats/cats_1.jpg"), "against": [str(tmp_path / "test/2.jpg")]},
        {"copies": "near", "paths": path("dogs/dogs_9.jpg"), "against": [str(tmp_path / "test/3.jpg")]},
    ]
    table = run("dataset", drawings, "--against", tmp_path / "test").stdout
    assert "images that both folders have: 2 groups" in table
    (tmp_path / "empty").mkdir()
    assert "no images" in error_of(run("dataset", drawings, "--against", "empty", code=3))
    assert "missing is not a folder" in error_of(run("dataset", drawings, "--against", "missing", code=3))
    photo, before = drawings / "cats/cats_1.jpg", (drawings / "cats/cats_1.jpg").read_bytes()
    assert "cats_1.jpg does not end in .html" in error_of(run("dataset", drawings, "--html", photo, code=2))
    assert photo.read_bytes() == before


def test_odd_images_and_sizes(drawings):
    noise = np.random.default_rng(0).integers(0, 30, (60, 60, 3)).astype(np.uint8)
    planted = {
        "blank": np.full((60, 60, 3), 90, np.uint8),
        "dim": noise // 2,
        "very_dark": noise,
        "very_bright": 255 - noise,
        "tiny": DRAWING[:20, :20],
        "extreme_shape": np.tile(DRAWING, (1, 3, 1)),
    }
    for name, image in planted.items():
        save(drawings / f"cats/{name}.png", image)
    big = cv2.resize(DRAWING, (1200, 900))  # decoded at a fraction of its size, and upright
    turned = encoded(".jpg", big)
    (drawings / "cats/turned.jpg").write_bytes(turned[:2] + exif(6) + turned[2:])
    (drawings / "cats/empty.jpg").write_bytes(b"")
    findings = look(drawings)
    for name in planted:
        assert findings[name] == [str(drawings / f"cats/{name}.png")]
    assert findings["width"] == [20, 120, 900]
    assert findings["height"] == [20, 120, 1200]
    assert findings["classes"] == {"cats": 20, "dogs": 12}
    assert findings["unreadable"] == [{"path": str(drawings / "cats/empty.jpg"), "reason": "empty file"}]


def test_a_folder_without_any_usable_image(tmp_path):
    (tmp_path / "all/bad").mkdir(parents=True)
    (tmp_path / "all/bad/1.png").write_bytes(b"text")
    findings = look("all")
    assert findings["unreadable"] == [{"path": "all/bad/1.png", "reason": "not an image of a known kind"}]
    assert findings["width"] is None
    assert "unreadable files: 1" in run("dataset", "all", "--html", "page.html").stdout
    assert "Traceback" not in run("dataset", "missing", code=3).stderr


def test_the_page_is_whole_and_escaped_and_nothing_else_is_written(drawings, tmp_path):
    hostile = "<script>alert('x')&\".jpg"
    (drawings / "cats" / hostile).write_bytes((drawings / "dogs/dogs_1.jpg").read_bytes())
    (drawings / "cats" / os.fsdecode(b"\xff.jpg")).write_bytes(b"no image")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    finished = run("dataset", drawings, "--html", "page.html")
    page = (tmp_path / "page.html").read_text()
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "page.html"}
    assert after == before
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/jpeg;base64,") == 2 * 2 + 25  # two findings of two images, and the classes
    assert "://" not in page
    assert "\N{REPLACEMENT CHARACTER}.jpg" in page
    assert "exact copies: 1 groups" in finished.stdout
    assert "no folder missing" in error_of(run("dataset", drawings, "--html", "missing/page.html", code=2))
