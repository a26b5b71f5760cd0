"""The one-file classifier, as a person uses it: opened from a file, without a network connection, in a browser."""

import shlex
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import answers_of, open_page, screenshot
from conftest import DRAWING, PROJECT, encoded, error_of, exif, predictions, run, save
from formats import jpeg_cases, png_cases, webp_cases
from run_folders import change_metadata, damage

HOSTILE = "</script><img src=x onerror=document.title='harmed'>"
FORMS = {"orientation 6, 4 bands.webp", "orientation 8.png", "rgba, 16 bits, orientation 0.png", "cmyk without adobe.jpg"}
PAGE = ("export", "--format", "html", "--model", "runs/001", "--data-dir")


@pytest.fixture
def packages(run_folder, images):
    """The two packages from npm beside the run, as the export asks for them; fetched once, then kept."""
    command = shlex.split(error_of(run(*PAGE, images, code=2)).split("Run: ")[1])
    assert command[:3] == ["npm", "pack", "--pack-destination"]
    folder, kept = Path(command[3]), PROJECT / "runs" / ".cache"
    names = [f"{name.removeprefix('@').replace('/', '-').replace('@', '-')}.tgz" for name in command[4:]]
    if not all((kept / name).exists() for name in names):
        if not shutil.which("npm") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("cannot get the runtime: no npm, or no connection")
        kept.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(folder / name, kept)
    for name in names:
        shutil.copy(kept / name, folder)
    return [folder / name for name in names]


def hard_images():
    """Files that a browser's own decoder or resizing would show otherwise than OpenCV; and what is no image."""
    large = cv2.resize(DRAWING, (270, 210), interpolation=cv2.INTER_CUBIC)  # reduced while it is decoded
    large = np.clip(large + np.random.default_rng(0).normal(0, 20, large.shape), 0, 255).astype(np.uint8)
    jpeg = encoded(".jpg", large)
    files = {case.name: case.data for case in (*webp_cases(), *png_cases(), *jpeg_cases()) if case.name in FORMS}
    assert files.keys() == FORMS
    files |= {
        "turned.jpg": jpeg[:2] + exif(6) + jpeg[2:],
        "cmyk.jpg": (PROJECT / "tests/unit/cmyk.jpg").read_bytes(),
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "broken.png": encoded(".png")[:200],
        "no_end.png": encoded(".png")[:-1],
        "renamed.jpg": encoded(".png"),
    }
    for name, data in files.items():
        Path(name).write_bytes(data)
    small = cv2.resize(DRAWING, (40, 50))  # less than twice the size of the network's image
    return [str(path) for path in (save(Path("drawing.png")), save(Path("small.jpg"), small), *files)]


@pytest.mark.parametrize(
    ("classes", "fit", "width", "height"), [([HOSTILE, "dogs"], "squash", 1200, 800), (["cats", "dogs"], "pad", 360, 740)]
)
def test_the_page_answers_as_predict_does(browser, packages, run_folder, images, classes, fit, width, height):
    change_metadata(run_folder, classes=classes, settings={"fit": fit})
    (images / "labels.csv").write_text(f'path,label\ndogs/dogs_1.jpg,dogs\ndogs/dogs_2.jpg,"{classes[0]}"\n')
    finished = run(*PAGE, images / "labels.csv", "--output", "page.html")
    assert "differ by at most" in finished.stderr
    files = hard_images()
    expected = predictions(run_folder, *files, code=1)
    with open_page(browser, Path("page.html").absolute().as_uri(), width, height, offline=True) as page:
        shown = answers_of(page, files)
        screenshot(page, f"one_file_{fit}")
        for file in files:
            heading, probabilities, words = shown[file]
            if error := expected[file].get("error"):
                assert heading == "No answer"
                assert ("damaged" if "damaged" in error else error.partition(":")[0]) in words[1]
                continue
            assert heading == expected[file]["class"]
            assert probabilities == pytest.approx(expected[file]["probabilities"], abs=1e-5), file
            assert set(probabilities) == set(classes)
        assert sum("error" in answer for answer in expected.values()) == 4
        assert page.title().startswith("Image classifier")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.foreign == page.errors == []


def test_what_keeps_the_page_from_being_made_is_one_clear_line(packages, run_folder, images):
    assert "--output is for --format html" in error_of(run("export", "--output", "page.html", code=2))
    assert "no folder nowhere" in error_of(run(*PAGE, images, "--output", "nowhere/page.html", code=2))
    damage(packages[0])
    assert "damaged" in error_of(run(*PAGE, images, code=2))
    assert not (run_folder / "model.html").exists()
