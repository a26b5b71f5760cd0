"""What a training shows while it runs, and the report of a run, as a browser shows it."""

import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import open_page, screenshot
from conftest import draw_images, error_of, rows_of, run
from run_folders import change_metadata, metadata_of

from classifier.base.metrics import reliability
from classifier.data.augmentation import augment
from classifier.runs.settings import Settings
from dataset import read_images, split_images

HOSTILE = "$x_$ \\frac </script><img src=x onerror=alert(1)>\x07"


def test_curves_and_the_first_augmented_batch_are_drawn(trained, images):
    assert cv2.imread(str(trained / "curves.png")).shape == (900, 800, 3)
    sheet = cv2.imread(str(trained / "first_batch.png"), cv2.IMREAD_COLOR_RGB)
    view = lambda image, rng: augment(image, 32, rng)  # noqa: E731
    settings = Settings(data_dir=images, image_size=32)
    sets = split_images(read_images(settings, Path("cache")), settings, {})
    batch, _ = next(sets.train.batches(8, seed=0, augment=view))
    assert sheet.shape == (152, 8 * 136, 3)
    for k, image in enumerate(batch):
        enlarged = sheet[:128, 136 * k + 4 : 136 * k + 132]
        np.testing.assert_array_equal(enlarged[2::4, 2::4], image)
    rates = [float(row["learning_rate"]) for row in rows_of(trained / "history.csv")]
    assert 1e-3 > rates[0] > rates[1] == 0, "warm-up, then cosine decay to 0"


def test_tensorboard_has_what_the_run_folder_has_even_if_curves_cannot_be_drawn(run_folder, images, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def no_space(*_, **options):
        raise OSError(28, os.strerror(28))

    resume = ("train", "--resume", run_folder, "--data-dir", images)
    with monkeypatch.context() as fault:
        fault.setattr("matplotlib.figure.Figure.savefig", no_space)
        finished = run(*resume, "--epochs", 4, "--tensorboard")
    assert finished.stderr.count("warning: cannot write") == 1
    assert "No space left" in finished.stderr
    assert metadata_of(run_folder)["finished"]
    rows = rows_of(run_folder / "history.csv")
    events = {}
    for side in ("training", "validation"):
        events[side] = accumulator.EventAccumulator(str(run_folder / "tensorboard" / side), {"tensors": 0}).Reload()
    for side, name in (("training", "loss"), ("training", "learning_rate"), ("validation", "accuracy")):
        points = events[side].Tensors(name)
        assert [point.step for point in points] == [1, 2, 3, 4]
        written = [float(np.frombuffer(point.tensor_proto.tensor_content, np.float32)[0]) for point in points]
        column = f"val_{name}" if side == "validation" else name
        assert written == pytest.approx([float(row[column]) for row in rows], rel=1e-5)
    assert "conv1" in str(events["training"].Graph())
    (image,) = events["training"].Tensors("first_batch")
    decoded = cv2.imdecode(np.frombuffer(image.tensor_proto.string_val[2], np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded, cv2.imread(str(run_folder / "first_batch.png")))

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused = run(*resume, "--epochs", 5, code=2)  # the run goes on with it
    assert "pip install -c requirements-optional.txt tensorboard" in error_of(refused)


def open_report(browser, path, width=1200, **options):
    return open_page(browser, Path(path).absolute().as_uri(), width, **options)


def assert_sound(page):
    """It asked nobody else for anything, nothing failed, every image is there, and it is no wider than the window."""
    assert page.foreign == page.errors == []
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_report_in_a_browser(trained, images, browser):
    (images / "cats/bad.jpg").write_bytes(b"")
    shutil.copy(images / "dogs/dogs_2.jpg", images / "cats/wrong.jpg")
    also = ("--predictions", "p.csv", "--format", "json")
    finished = run("evaluate", images, "--model", trained, "--report", "r.html", *also)
    result = json.loads(finished.stdout)
    assert "written: r.html" in finished.stderr
    with open_report(browser, "r.html") as page:
        text = page.inner_text("body")
        headings = page.locator("h2").all_inner_texts()
        expected = {
            *("Training", "Training curves", "Confusion matrix", "ROC and precision-recall curve", "Calibration"),
            *("Surest mistakes", "Least certain", "Called unknown", "What the network looks at", "Data: classes"),
            *(f"Accuracy: {result['accuracy']:.2%}", "Data: unreadable files: 1", "Data: exact copies: 1"),
        }
        assert expected <= set(headings)
        low, high = result["accuracy_interval"]
        assert f"95 % confidence interval: {low:.1%} to {high:.1%}" in text
        matrix = [[int(count) for count in row.split("\t")[1:]] for row in page.inner_text(".matrix tbody").splitlines()]
        assert matrix == result["confusion_matrix"]
        mistakes = page.locator("section:has(h2:text-is('Surest mistakes')) figcaption").all_inner_texts()
        wrong = [row for row in rows_of("p.csv") if row["correct"] == "no"]
        assert [caption.partition(": ")[2] for caption in mistakes] == [row["path"] for row in wrong]
        table = page.locator("table:has(th button:text-is('recall'))")
        by_recall, by_name = table.locator("th:has-text('recall')"), table.locator("th").first
        recall = lambda name: result["per_class"][name]["recall"]  # noqa: E731
        for header, direction, key in ((by_recall, "up", recall), (by_recall, "down", recall), (by_name, "up", str)):
            header.locator("button").click()
            assert header.get_attribute("aria-sort") == {"up": "ascending", "down": "descending"}[direction]
            classes = table.locator("tbody td:first-child").all_inner_texts()
            assert classes == sorted(classes, key=key, reverse=direction == "down")
        assert table.locator("th[aria-sort]").count() == 1
        assert_sound(page)
        screenshot(page, "report")
    with open_report(browser, "r.html", width=360, offline=True, color_scheme="dark") as page:
        assert_sound(page)
        screenshot(page, "report_phone")


def test_hostile_names_in_a_report(run_folder, images, browser):
    """Classes and files whose names are HTML and formulas."""
    classes = [HOSTILE, "b$\\frac$"]
    change_metadata(run_folder, classes=classes)
    path = "<b onclick=alert(1)>&amp;'.jpg"
    shutil.copy(images / "cats/cats_1.jpg", images / path)
    rows = [f'"{path}","{HOSTILE}"', *(f'dogs/dogs_{k}.jpg,"{classes[k % 2]}"' for k in range(1, 12))]
    (images / "labels.csv").write_text("\n".join(["path,label", *rows]))
    run("evaluate", images / "labels.csv", "--model", run_folder, "--report", "r.html", "--tta")
    with open_report(browser, "r.html") as page:
        assert path in page.inner_text("body")
        shown = HOSTILE.replace("\x07", r"\x07")
        assert f"as {shown}" in page.inner_text(".matrix thead")
        assert page.locator("section img[onerror], [onclick]").count() == 0
        assert_sound(page)
    figures = re.findall(r'<img src="data:image/svg\+xml;base64,', Path("r.html").read_text())
    assert len(figures) == 3  # ROC, precision-recall, reliability


def test_suspects_together_with_a_report(trained, images):
    finished = run("evaluate", images, "--model", trained, "--suspects", "s.csv", "--report", "r.html", "--format", "json")
    assert json.loads(finished.stdout)["doubtful"] >= 0
    assert "Which labels are wrong?" in Path("r.html").read_text()
    assert len(rows_of("s.csv")) == 24


def test_bins_of_a_reliability_diagram_by_hand():
    (low, high) = reliability([0.1, 0.1, 0.99, 0.97], [True, False, True, True])
    assert low[:2] == pytest.approx((0.1, 0.5))
    assert low[2] < 0.5 < low[3]
    assert high[:2] == pytest.approx((0.98, 1))
    assert high[4] == 2


def test_a_page_of_a_folder_can_be_sorted_too(browser):
    draw_images("images", 3)
    run("dataset", "images", "--html", "page.html")
    with open_report(browser, "page.html", width=360) as page:
        page.locator("th button:text-is('images')").click()
        assert_sound(page)
