"""train.py as a user runs it, from beginning to end."""

import fcntl
import math
import os
import re
import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from comparing import newest_checkpoint
from conftest import error_of, run, save, train
from run_folders import assert_same_run, history_of, metadata_of

from classifier.base import cpu
from classifier.runs.folder import Run
from classifier.runs.history import History
from classifier.training import optimizer


def difference_of_litert(said):
    return float(re.search(r"litert: .* differ by at most (\S+);", said)[1])


def test_a_run_from_beginning_to_end_without_a_cache_and_with_any_settings_of_keras(images, trained, tmp_path):
    assert list((trained.parent / ".cache").glob("*.pixels"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.cache").write_text("a file is in the way")
    odd_settings = '{"backend": "jax", "floatx": "float16", "image_data_format": "channels_first", "epsilon": 1e-7}'
    (tmp_path / "keras.json").write_text(odd_settings)
    environment = os.environ | {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax", "TF_USE_LEGACY_KERAS": "1"}
    finished = train(images, env=environment)
    for told in ("tensorflow", "device", "cats 10 + 2, dogs 10 + 2 (training + validation)", "parameters", "no cache"):
        assert told in finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]
    assert "selected" in lines[0]
    record = metadata_of("runs/001")
    assert record["classes"] == ["cats", "dogs"]
    selected = list((tmp_path / "runs/001/checkpoints/selected").glob("*.index"))
    assert [path.stem for path in selected] == [f"ckpt-{record['selected']['epoch']}"]
    assert record["finished"] is True
    assert_same_run("runs/001", trained)

    predicted = subprocess.run(lines[-1], shell=True, capture_output=True, text=True)  # a command that works as it is
    assert predicted.returncode == 0, predicted.stderr
    assert "%" in predicted.stdout


@pytest.mark.usefixtures("no_litert")
def test_patience_stops_early_and_zero_never_does(images, trained):
    stopped = train(images, "--lr", 1e-9, "--patience", 2, "--epochs", 12, "--no-augment", "--dropout", 0, "--seed", 3)
    assert stopped.stdout.count("images/s") == 3
    assert "stopped early" in stopped.stdout
    losses = [float(row["loss"]) for row in history_of("runs/001")]
    assert np.ptp(losses) < 1e-3, "the images were augmented"
    assert abs(losses[0] - float(history_of(trained)[0]["loss"])) > 1e-4, "another seed gives other weights"
    on = run("train", "--resume", "--patience", 0, "--output", "runs").stdout
    assert on.count("images/s") == 9
    assert "stopped early" not in on


def test_of_epochs_that_differ_by_chance_the_last_is_selected_and_fine_tuning_must_be_better(trained):
    def selected(*rows, head_epochs=0):
        history = History(Run.open(trained), 0, 100, head_epochs)
        history.rows = [{"epoch": i, "val_accuracy": a, "val_loss": loss} for i, (a, loss) in enumerate(rows, start=1)]
        return history.selected() and history.selected()["epoch"]

    # 0.9 of a hundred may be 0.82 in truth, 1.0 may be 0.954
    for accuracies, epoch in (
        ((0.8, 0.9, 0.83), 3),
        ((0.8, 0.9, 0.81), 2),
        ((0.8, 0.88, 0.9, 0.88, 0.81), 4),
        ((0.8, 1.0, 0.96), 3),
        ((0.8, 1.0, 0.95), 2),
        ((), None),
    ):
        assert selected(*((accuracy, 1.0) for accuracy in accuracies)) == epoch
    head = (0.89, 0.4), (0.9, 0.3)
    assert selected(*head, (0.89, 0.35), head_epochs=2) == 2
    assert selected(*head, (0.89, 0.35), (0.89, 0.29), head_epochs=2) == 4
    assert selected(*head, (0.91, 0.35), (0.88, 0.36), head_epochs=2) == 3
    assert selected(*head, (0.89, 0.28), (0.9, 0.31), head_epochs=2) == 3


@pytest.mark.usefixtures("no_litert")
def test_a_batch_larger_than_the_data_is_shrunk_and_that_is_said_once(images):
    finished = train(images, "--batch-size", 1000, "--no-augment", "--dropout", 0)
    assert finished.stderr.count("batch") == 1
    assert "20" in finished.stderr
    first, second = (float(row["loss"]) for row in history_of("runs/001"))
    assert second < first - 0.001  # even the only step of the first epoch teaches something


def test_too_little_memory_is_one_clear_line(images):
    """Weights of 2 GB, four times, in a process that may have 4 GB of address space."""
    limit_memory = lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))  # noqa: E731
    refused = train(images, "--image-size", 2048, "--batch-size", 2, code=1, preexec_fn=limit_memory)
    assert "--image-size" in error_of(refused)


def test_with_room_for_some_images_in_the_cache_and_without_locks_training_is_the_same(images, trained, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: os.open("nowhere", os.O_RDONLY))  # raises OSError
    (images / "cats/a.jpg").write_bytes(b"no image")
    limited = train(images, "--cache-limit", 10.5 * 32 * 32 * 3 / 1e9)
    assert limited.stderr.count("at most 10 images are kept decoded") == 1
    assert [path.stat().st_size for path in Path("runs/.cache").glob("*.pixels")] == [10 * 32 * 32 * 3]
    assert_same_run("runs/001", trained)


@pytest.mark.usefixtures("no_litert")
def test_a_loss_that_explodes_names_the_step_its_images_and_the_last_good_checkpoint(images, run_folder, tmp_path):
    first = train(images, "--lr", 1e30, "--epochs", 20, "--output", "others", code=1)
    step = "loss became infinite or NaN in epoch 1, step [123] of 3: start a new training, with a lower --lr"
    assert re.search(step, error_of(first))
    assert not list(Path("others").glob("0*"))
    command = ("train", "--resume", "runs/001", "--data-dir", images, "--epochs", 20)
    exploded = run(*command, "--lr", 1e30, code=1)
    advice = (
        r"in epoch \d+, step \d of 3: --resume, from runs/001/checkpoints/training/ckpt-\d+, with a lower --lr than 1e\+30"
    )
    assert re.search(advice, error_of(exploded))
    (named,) = [line for line in exploded.stderr.splitlines() if line.startswith("images of this step: ")]
    paths = named.removeprefix("images of this step: ").split(", ")
    assert len(set(paths)) in (4, 8)
    assert all(Path(path).is_relative_to(images) for path in paths)
    resumed = run(*command[:5], "--lr", 1e-3, "--epochs", 3)
    assert "epoch 3/3" in resumed.stdout
    assert "cannot change" in error_of(run(*command[:3], "--lr", 1e-4, code=2))  # nothing would be trained at that rate
    assert all(math.isfinite(float(row["val_loss"])) for row in history_of("runs/001"))


@pytest.mark.usefixtures("no_litert")
def test_what_is_said_of_the_images_of_many_classes_and_of_a_gpu_that_is_not_used(tmp_path, monkeypatch, trained):
    for number in range(202):
        save(Path("black", f"class {number // 2}", f"{number}.png"), np.zeros((20 + number, 40, 3), np.uint8))
    (tmp_path / "gpus/0").mkdir(parents=True)
    (tmp_path / "gpus/0/information").write_text("Model: \t\t NVIDIA A100\nIRQ:   \t\t 33\n")
    monkeypatch.setattr(cpu, "NVIDIA_GPUS", tmp_path / "gpus")
    said = train("black", "--epochs", 1).stderr
    assert re.search("warning: all 202 images, such as black/.*, show nothing but one colour", said)
    assert "images     101 + 101 of 101 classes, the fewest of class 0: 1 + 1 (training + validation)" in said
    assert "device     NVIDIA A100 not used: " in said
    assert re.search("the network predicts 'class .*' for every validation image", said)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cpu.unused_gpus() == []
    said = (trained.parent / "stderr.txt").read_text()
    assert re.search("no better than always predicting|for every validation image", said)


def test_an_output_that_cannot_be_written_is_one_clear_line(images, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert "--output" in error_of(train(images, "--output", "file/runs", code=1))
    if os.geteuid():  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "--output" in error_of(train(images, "--output", "locked", code=1))


WRONG = "--batch-size 0", "--lr -1", "--lr nan", "--epochs many", "--validation-split 1", "--image-size 4", "--nonsense"


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_usage_is_refused_with_code_2(flags):
    assert flags.split()[0] in run("train", *flags.split(), code=2).stderr


def test_steps_are_in_bfloat16_where_the_device_has_it_and_predictions_never(trained, images, monkeypatch):
    mixed = (trained.parent / "stderr.txt").read_text()
    plain = train(images, "--no-mixed-precision").stderr
    assert ("steps in bfloat16" in mixed) == ("bfloat16 on" in mixed) == cpu.has_bfloat16()
    assert "steps in bfloat16" not in plain
    assert "bfloat16 off" in plain
    monkeypatch.setattr(optimizer, "gpus_have_bfloat16", lambda: True)  # the layers that are made for GPUs, on a CPU
    on_gpus = train(images).stderr
    assert "steps in bfloat16" in on_gpus
    assert tf.bfloat16 not in newest_checkpoint(Path("runs/002"), "training").get_variable_to_dtype_map().values()
    for said in (mixed, plain, on_gpus):  # bfloat16 has three digits: LiteRT's probabilities would differ from the network's
        assert difference_of_litert(said) < 1e-5
    losses = [np.array([float(row["loss"]) for row in history_of(f)]) for f in (trained, "runs/001", "runs/002")]
    difference = np.abs(losses[0] - losses[1]).max()
    assert 1e-6 < difference < 0.01 if cpu.has_bfloat16() else difference == 0
    assert 1e-6 < np.abs(losses[2] - losses[1]).max() < 0.02


@pytest.mark.usefixtures("no_litert")
def test_minutes_choose_the_epochs_once(images):
    run("train", "--data-dir", images, "--output", "runs", "--image-size", 32, "--minutes", 0.02)
    epochs = len(history_of("runs/001"))
    assert 1 <= epochs <= 100
    assert metadata_of("runs/001")["settings"]["epochs"] == epochs
    run("train", "--resume", "--output", "runs")
    assert len(history_of("runs/001")) == epochs
