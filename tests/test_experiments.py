"""The experiments, each in its shortest form."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, draw_images, error_of, rows_of, run, save

from classifier.base import cpu
from classifier.data.finding import find_images
from classifier.data.images import load_image
from classifier.networks.by_name import create_network
from experiments import benchmark, learning_curve, near_copies, scaling, transparency, versions

pytestmark = pytest.mark.usefixtures("scripts_in_this_process")


def test_a_run_is_scored_once_for_a_commit_and_so_are_images_of_other_things(trained, images):
    save(Path("noise/noise.png"), np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    Path("noise/empty.jpg").touch()
    arguments = ("quick", trained, "--test-dir", images, "--ood-dir", "noise", images, "--tables", ".")
    for commit in ("1234567", "1234567", "89abcde"):
        run("experiments.accuracy", *arguments, "--commit", commit)
    rows = rows_of("tests.csv")
    assert [(row["training"], row["seed"], row["commit"]) for row in rows] == [
        ("quick", "0", c) for c in ("1234567", "89abcde")
    ]
    scores = json.loads(run("evaluate", images, "--model", trained, "--format", "json").stdout)
    assert rows[0]["accuracy"] == f"{scores['accuracy']:.4f}"
    assert rows[0]["OOD AUROC"] == f"{(1 + 24 * 0.5) / 25:.4f}"
    noise, same = rows_of("unknown.csv")[:2]
    assert (noise["other images"], noise["AUROC"], noise["unknown at 2 % lost"], noise["unknown"]) == ("1", *["1.0000"] * 3)
    assert (same["other images"], same["AUROC"], same["lost"]) == ("24", "0.5000", same["unknown"])
    Path("tests.csv").write_text("something,else\n")
    assert "another table" in error_of(run("experiments.accuracy", *arguments, code=1))
    assert Path("tests.csv").read_text() == "something,else\n"


def test_a_small_curve_and_what_is_known_is_not_trained_again(images, monkeypatch):
    monkeypatch.setattr(learning_curve, "MOST_EPOCHS", 1)
    monkeypatch.setattr(learning_curve, "NETWORKS", {"cnn": ["cnn"]})
    small = ("--data-dir", images, "--test-dir", draw_images("test", 4), "--sizes", 8, 13, "--seeds", 1)
    curve = ("experiments.learning_curve", *small, "--image-size", 32, "--pretrained", "", "--output", "results")
    finished = run(*curve)
    assert re.search(r"^cnn, 8 of each class: [0-9.]+ %$", finished.stdout, re.MULTILINE)
    assert Path("results/learning_curve.png").stat().st_size > 1000
    again = run(*curve)
    assert "seed" not in again.stderr
    assert again.stdout == finished.stdout
    before = learning_curve.images_digest(find_images(images))
    shutil.copy(images / "cats/cats_1.jpg", images / "cats/cats_0.jpg")
    assert learning_curve.images_digest(find_images(images)) != before


def test_planted_labels_are_counted_where_they_are_found(run_folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # without cleanlab
    folder = draw_images("labelled", 20, ["cats", "stripes"])
    lines = run("experiments.suspects", "--data-dir", folder, "--model", run_folder, "--rates", 0.05, "--seeds", 1).stdout
    _, parts, found, most = (line.split() for line in lines.splitlines())
    assert (parts, most[-3:]) == (["1%", "2%", "5%"], ["0.0%", "50.0%", "100.0%"])  # 1 % of 40 images are none
    assert (found[0], found[1]) == ("evaluate.py", "0.0%")
    assert float(found[3].rstrip("%")) >= 50


def test_changed_copies_are_found_and_series_are_made(images):
    _, *rows = run("experiments.near_copies", "--data-dir", images, "--copies", 3).stdout.splitlines()
    assert [row.split()[:2] for row in rows[:6]] == [[kind, "3"] for kind in near_copies.CHANGES]
    assert sum(int(row.split()[2]) for row in rows[:6]) > 9
    near_copies.make_series(find_images(images), Path("series"), Path("others"), 4, np.random.default_rng(0))
    assert {name: len(list(Path("others", name).iterdir())) for name in ("cats", "dogs")} == {"cats": 8, "dogs": 8}
    assert all(4 * 5 <= len(list(Path("series", name).iterdir())) <= 4 * 20 for name in ("cats", "dogs"))


def test_heads_and_heat_maps_are_measured(trained, images):
    row = run("experiments.heads", trained, "--test-dir", images).stdout.splitlines()[-1].split()
    scores = json.loads(run("evaluate", images, "--model", trained, "--format", "json").stdout)
    assert row[2] == f"{scores['accuracy']:.2%}"
    assert all(0 <= float(figure.rstrip("%")) <= 100 for figure in row[1:])
    row = run("experiments.deletion", trained, "--images", images, "--count", 5).stdout.splitlines()[-1].split()
    assert row[0] == "5"


def test_a_benchmark_of_this_project(images, monkeypatch):
    ours = {who: benchmark.MEASUREMENTS[who] for who in ("this machine", benchmark.OURS)}
    arguments = ("--data-dir", images, "--rounds", 1, "--epochs", 2, "--batch-size", 8, "--output", "results")
    monkeypatch.setattr(benchmark, "MEASUREMENTS", ours)
    run("experiments.benchmark", *arguments)
    (file,) = Path("results").glob(f"bench-*-{cpu.instruction_set()}-*-24images.csv")
    assert {row["CPU"] for row in rows_of(file)} == {cpu.name()}
    assert {row["what"] for row in rows_of(file)} >= {benchmark.FIRST, benchmark.LATER, benchmark.LIMIT}
    assert all(float(row["median"]) > 0 for row in rows_of(file))


def test_what_images_and_a_network_cost(images, monkeypatch):
    rows = run("experiments.scaling", "images", "--sizes", 40, 60, "--classes", 3, "--only-find").stdout.splitlines()[2:]
    assert [row.split("|")[1:3] for row in rows] == [[" 40 ", " find, decode, split "], [" 60 ", " find, decode, split "]]
    convolution = lambda side, inputs, outputs: 2 * side**2 * 9 * inputs * outputs  # noqa: E731
    expected = convolution(32, 3, 32) + convolution(16, 32, 32) + convolution(8, 32, 64) + 2 * (1024 * 128 + 128 * 2)
    assert scaling.flop_of(create_network("cnn", 32, 2), 32) == expected
    monkeypatch.setattr(scaling, "NETWORKS", {"cnn": 32})
    tables = run("experiments.scaling", "inputs", "networks", "--data-dir", images, "--classes", 4).stdout.splitlines()
    assert [row.split("|")[2] for row in tables[2:6]] == [" 8 ", " 8 ", " 32 ", " 32 "]
    assert tables[-1].split("|")[4] == f" {scaling.flop_of(create_network('cnn', 32, 4), 32) / 1e9:.3f} "
    assert "no part ring" in run("experiments.scaling", "ring", code=2).stderr


def test_the_committed_drawings_can_be_drawn_again():
    run("experiments.draw_samples", "--output", ".", "--per-class", 2, "--testing-per-class", 1)
    made = list(Path().rglob("*.jpg"))
    assert len(made) == 6
    for path in made:
        np.testing.assert_array_equal(load_image(path, 64), load_image(PROJECT / path, 64))
    assert "exist already" in error_of(run("experiments.draw_samples", "--output", ".", code=1))


def test_the_packages_of_the_tests_are_known():
    names = {re.match(r"[\w-]+", text)[0] for text in versions.requirements()}
    assert {*versions.SHOWN, "gradio", "pytest"} <= names


def test_what_is_transparent_is_laid_on_white_as_in_training():
    icons = [(transparency.icon(shape, np.random.default_rng(k)), "icons") for k, shape in enumerate(transparency.SHAPES)]
    ours, copies = (
        sorted(transparency.write_sets(Path(name), icons, ground).rglob("*.png"))
        for name, ground in (("a", None), ("b", 255))
    )
    for one, other in zip(ours, copies, strict=True):
        assert np.abs(load_image(one, 64).astype(int) - load_image(other, 64)).max() <= 1
        assert load_image(one, 64).std() > 9
