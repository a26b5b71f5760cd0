"""The project's own tools, run in their shortest form."""

import argparse
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
from conftest import PROJECT, draw_images, error_of, rows_of, run, save

from classifier.base import cpu
from classifier.data.images import load_image
from classifier.networks.by_name import create_network
from tools import benchmark, costs, learning_curve, series, versions


def test_a_short_benchmark(images, scripts_in_this_process):
    short = ("--rounds", 1, "--steps", 2, "--epochs", 2, "--batch-sizes", 4)
    (images / "cats/more").mkdir()
    (images / "cats/cats_1.jpg").rename(images / "cats/more/cats_2.jpg")  # names are the same in subfolders
    finished = run("tools.benchmark", "--data-dir", images, *short, "--output", "results")
    (file,) = Path("results").glob(f"bench-*-{cpu.instruction_set()}-*-24images.csv")
    rows = rows_of(file)
    assert {row["CPU"] for row in rows} == {cpu.name()}
    assert {row["who"] for row in rows} >= {"this machine", "this project", "Keras fit", "Keras fit, cached"}
    for what in (
        "step, batch 4",
        "first epoch from files",
        "later epochs from files",
        "float32 matrix product",
        "predicting files",
    ):
        assert any(row["what"].startswith(what) and float(row["median"]) > 0 for row in rows)
        assert what in finished.stdout


def test_keras_is_measured_as_installed_and_with_onednn(monkeypatch):
    """On a CPU on which TensorFlow leaves it off."""
    monkeypatch.setattr(cpu, "has_onednn_as_installed", lambda: False)
    switches = []

    def noting(command, env, **options):
        switches.append(env["TF_ENABLE_ONEDNN_OPTS"])
        return subprocess.CompletedProcess(command, 0, "{}", "")

    monkeypatch.setattr(subprocess, "run", noting)
    arguments = benchmark.parse_arguments([])
    for who in ("Keras fit", "Keras fit, oneDNN on"):
        assert benchmark.measure("steps", who, arguments, "nowhere") == {}
    assert switches == ["0", "1"]


def test_what_images_cost_is_measured_on_drawn_ones():
    rows = run("tools.scaling", "--sizes", 40, 60, "--classes", 3, "--only-find", process=True).stdout.splitlines()[2:]
    assert [row.split("|")[1:3] for row in rows] == [[" 40 ", " find, decode, split "], [" 60 ", " find, decode, split "]]
    assert "exists" in error_of(run("tools.many_images", ".", code=2))


def test_what_a_network_and_an_image_cost(images, monkeypatch, scripts_in_this_process):
    convolution = lambda side, inputs, outputs: 2 * side**2 * 9 * inputs * outputs  # noqa: E731
    expected = convolution(32, 3, 32) + convolution(16, 32, 32) + convolution(8, 32, 64) + 2 * (1024 * 128 + 128 * 2)
    assert costs.flop_of(create_network("cnn", 32, 2), 32) == expected
    monkeypatch.setattr(costs, "NETWORKS", {"cnn": 32})
    rows = run("tools.costs", "inputs", "--data-dir", images).stdout.splitlines()[2:]
    assert [row.split("|")[2] for row in rows if row] == [" 8 ", " 8 ", " 32 ", " 32 "]
    assert "no part ring" in run("tools.costs", "ring", code=2).stderr


def test_a_small_curve_and_what_is_known_is_not_trained_again(images, monkeypatch, scripts_in_this_process):
    small = (
        "--data-dir",
        images,
        "--test-dir",
        draw_images("test", 4),
        "--sizes",
        8,
        13,
        "--seeds",
        1,
        "--image-size",
        32,
        "--pretrained",
        "",
        "--output",
        "results",
    )
    assert "no folder nowhere" in error_of(run("tools.learning_curve", *small, "--test-dir", "nowhere", code=3))
    assert "too few images" in error_of(run("tools.learning_curve", "--data-dir", images, code=3))
    monkeypatch.setattr(learning_curve, "IMAGES_SHOWN", 0)  # as few epochs as it trains
    finished = run("tools.learning_curve", *small)
    assert "left out: 13 of each class" in finished.stderr
    assert re.search(r"^cnn, no augmentation, 8 of each class: [0-9.]+ %$", finished.stdout, re.MULTILINE)
    table = Path("results/learning_curve.csv").read_text()
    assert len(table.splitlines()) == 3
    assert cv2.imread("results/learning_curve.png").shape == (675, 1050, 3)
    again = run("tools.learning_curve", *small)
    assert "seed" not in again.stderr
    assert again.stdout == finished.stdout
    shutil.copy(images / "cats/cats_1.jpg", images / "cats/cats_0.jpg")  # other images
    more = run("tools.learning_curve", *small)
    assert more.stderr.count("seed 0") == 2
    assert len(more.stdout.splitlines()) == 2
    assert "trainings" not in more.stdout
    table = Path("results/learning_curve.csv").read_text()
    assert len(table.splitlines()) == 5
    Path("results/learning_curve.csv").write_text(table.replace("seed", "sead"))
    assert "is damaged" in error_of(run("tools.learning_curve", *small, code=1))


def test_a_run_has_one_row_with_the_figures_of_evaluation(trained, images, scripts_in_this_process):
    arguments = ("quick", trained, "--test-dir", images, "--ood-dir", images, "--table", "tests.csv")
    for commit in ("1234567", "1234567", "89abcde"):
        run("tools.score_table", *arguments, "--commit", commit)
    rows = rows_of("tests.csv")
    names = [(row["training"], row["seed"], row["commit"]) for row in rows]
    assert names == [("quick", "0", "1234567"), ("quick", "0", "89abcde")]
    scores = json.loads(run("evaluate", images, "--model", trained, "--format", "json").stdout)
    assert rows[0]["accuracy"] == f"{scores['accuracy']:.4f}"
    assert rows[0]["OOD AUROC"] == "0.5000"
    Path("tests.csv").write_text("something,else\n")
    assert "another table" in error_of(run("tools.score_table", *arguments, "--commit", "1234567", code=1))
    assert Path("tests.csv").read_text() == "something,else\n"


def test_planted_labels_are_counted_where_they_are_found(run_folder, scripts_in_this_process, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # without cleanlab
    folder = draw_images("labelled", 20, ["cats", "stripes"])
    arguments = ("--data-dir", folder, "--model", run_folder, "--rates", 0.05, "--seeds", 2)
    lines = run("tools.planted_labels", *arguments).stdout.splitlines()
    assert lines[0] == "5% of 40 labels planted, 2 times: found in the first …"
    assert lines[1].split() == ["1%", "2%", "5%"]
    method, *found = lines[2].split()
    assert method == "evaluate.py"
    assert found[0] == "0.0%"  # of 40 images, that is none
    assert float(found[2].rstrip("%")) >= 50
    assert lines[3].split()[-3:] == ["0.0%", "50.0%", "100.0%"]
    assert len(list(folder.rglob("*.jpg"))) == 40
    assert not Path("runs/.cache").exists()
    shutil.rmtree(folder / "cats")
    assert "only one class" in error_of(run("tools.planted_labels", *arguments, code=3))


def test_how_well_unknown_works_is_measured(trained, images, scripts_in_this_process):
    save(Path("noise/noise.png"), np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    Path("noise/empty.jpg").touch()
    arguments = ("quick", trained, "--test-dir", images, "--ood-dir", "noise", images, "--table", "unknown.csv")
    for commit in ("1234567", "1234567", "89abcde"):
        run("tools.ood_table", *arguments, "--commit", commit)
    rows = rows_of("unknown.csv")
    assert [(row["commit"], row["other folder"]) for row in rows] == [
        (commit, folder) for commit in ("1234567", "89abcde") for folder in ("noise", str(images))
    ]
    noise, same = rows[:2]
    assert (noise["other images"], noise["AUROC"], noise["unknown at 2 % lost"], noise["unknown"]) == ("1", *["1.0000"] * 3)
    assert (same["other images"], same["AUROC"], same["lost"]) == ("24", "0.5000", same["unknown"])
    shutil.copytree(trained, "runs/001")
    shutil.rmtree("runs/001/checkpoints/ood")
    assert "no out-of-distribution scores" in error_of(run("tools.ood_table", "quick", "runs", *arguments[2:], code=1))


def test_series_are_made_and_trained_on_twice(images, scripts_in_this_process, monkeypatch):
    monkeypatch.setattr("train.epochs_for", lambda num_images: 1)
    arguments = ("--data-dir", images, "--photos", 4, "--others", 5, "--network", "cnn")
    finished = run("tools.series", *arguments)
    header, *rows = (re.split("  +", line) for line in finished.stdout.splitlines() if "  " in line)
    assert header == ["near-copies", "validation accuracy", "accuracy on other photographs"]
    assert [row[0] for row in rows] == ["on any side", "kept together"]
    assert all(re.fullmatch(r"\d+\.\d%", figure) for row in rows for figure in row[1:])
    series.make_series(argparse.Namespace(data_dir=images, photos=4, others=5, seed=0), Path("series"), Path("others"))
    assert {name: len(list(Path("others", name).iterdir())) for name in ("cats", "dogs")} == {"cats": 5, "dogs": 5}
    assert all(4 * 5 <= len(list(Path("series", name).iterdir())) <= 4 * 20 for name in ("cats", "dogs"))
    assert len(list(images.rglob("*.jpg"))) == 24


def test_the_drawings_can_be_drawn_again(tmp_path):
    """The committed samples are what draw_samples.py makes, and it overwrites nothing."""
    command = ("tools.draw_samples", "--output", tmp_path, "--per-class", 2, "--testing-per-class", 1)
    run(*command)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jpg"))
    assert len(made) == 6
    for path in made:
        np.testing.assert_array_equal(load_image(path, 64), load_image(PROJECT / path, 64))
    assert "exist already" in run(*command, code=1, process=True).stderr


def test_the_audit_of_packages(tmp_path, monkeypatch):
    (tmp_path / "lib/python3.10/site-packages").mkdir(parents=True)

    def audited(packages, messages=""):
        finished = subprocess.CompletedProcess("pip-audit", 1, packages and json.dumps({"dependencies": packages}), messages)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: finished)
        return versions.audit(tmp_path, tmp_path)

    sound, unknown = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found: b"}
    assert audited([sound, unknown]) == ("1 of 2 packages audited, 0 known holes", False)
    assert audited([unknown]) == ("not audited: the package index tells no holes (not found: b)", False)
    assert audited("", "Traceback\nno network\n") == ("not audited: no network", False)
    for mended in ([], ["2"]):
        text, worse = audited([sound | {"vulns": [{"id": "CVE-1", "fix_versions": mended}]}])
        assert "a 1 CVE-1, mended in" in text
        assert worse == bool(mended)
    assert "none of these Pythons" in error_of(run("tools.versions", "2.9", code=1))
    names = [re.match(r"[\w-]+", text)[0] for text in versions.requirements()]
    assert {*versions.SHOWN, "gradio", "pytest"} <= set(names)
