"""learning_curve.py trains what is missing in its table, and draws it."""

import importlib.util
import re
from pathlib import Path

import cv2
from conftest import draw_pictures, error_of, run


def test_a_small_curve_and_what_is_known_is_not_trained_again(pictures):
    small = ("--data-dir", pictures, "--test-dir", draw_pictures("test", 4), "--sizes", 8, "--seeds", 1, "--image-size", 32,
             "--pretrained", "", "--output", "results")  # fmt: skip
    if importlib.util.find_spec("matplotlib") is None:
        assert "pip install -r requirements-curve.txt" in error_of(run("learning_curve", *small, code=2))
        return
    finished = run("learning_curve", *small)
    assert re.search(r"^cnn, no augmentation, 8 of each class: [0-9.]+ %$", finished.stdout, re.MULTILINE)
    table = Path("results/learning_curve.csv").read_text()
    assert len(table.splitlines()) == 3
    assert cv2.imread("results/learning_curve.png").shape == (675, 1050, 3)
    again = run("learning_curve", *small)
    assert "seed" not in again.stderr
    assert again.stdout == finished.stdout
    Path("results/learning_curve.csv").write_text(table.replace("seed", "sead"))
    assert "is damaged" in error_of(run("learning_curve", *small, code=1))
