"""learning_curve.py trains what is missing in its table, and draws it."""

import re
import shutil
import sys
from pathlib import Path

import cv2
import pytest
from conftest import draw_images, error_of, run

from tools import learning_curve


def test_a_small_curve_and_what_is_known_is_not_trained_again(images, monkeypatch, scripts_in_this_process):
    small = ("--data-dir", images, "--test-dir", draw_images("test", 4), "--sizes", 8, 13, "--seeds", 1, "--image-size",
             32, "--pretrained", "", "--output", "results")  # fmt: skip
    monkeypatch.setattr(learning_curve, "IMAGES_SHOWN", 0)  # as few epochs as it trains
    with monkeypatch.context() as fault:
        fault.setitem(sys.modules, "matplotlib", None)
        refused = run("tools.learning_curve", *small, code=2)
    assert "pip install -c requirements-optional.txt matplotlib" in error_of(refused)
    pytest.importorskip("matplotlib")
    finished = run("tools.learning_curve", *small)
    assert "left out: 13 of each class" in finished.stderr
    assert re.search(r"^cnn, no augmentation, 8 of each class: [0-9.]+ %$", finished.stdout, re.MULTILINE)
    table = Path("results/learning_curve.csv").read_text()
    assert len(table.splitlines()) == 3
    assert cv2.imread("results/learning_curve.png").shape == (675, 1050, 3)
    again = run("tools.learning_curve", *small)
    assert "seed" not in again.stderr
    assert again.stdout == finished.stdout
    more = run("tools.learning_curve", *small, "--image-size", 40)  # the same images, but not the same training
    assert more.stderr.count("seed 0") == 2
    shutil.copy(images / "cats/cats_1.jpg", images / "cats/cats_0.jpg")  # nor are these the same images
    more = run("tools.learning_curve", *small, "--image-size", 40)
    assert more.stderr.count("seed 0") == 2
    assert len(more.stdout.splitlines()) == 2
    assert "trainings" not in more.stdout
    table = Path("results/learning_curve.csv").read_text()
    assert len(table.splitlines()) == 7
    Path("results/learning_curve.csv").write_text(table.replace("seed", "sead"))
    assert "is damaged" in error_of(run("tools.learning_curve", *small, code=1))


def test_what_cannot_be_done_is_refused_before_any_training(images):
    none = run("tools.learning_curve", "--data-dir", images, "--test-dir", "nowhere", code=3)
    assert "no folder nowhere" in error_of(none)
    assert "too few images" in error_of(run("tools.learning_curve", "--data-dir", images, code=3))
