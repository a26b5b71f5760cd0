"""Runs that are stopped in every way, damaged, and resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import pytest
import tensorflow as tf
from conftest import (
    HANGING,
    PROJECT,
    QUICK,
    assert_same_run,
    error_of,
    history_of,
    predictions,
    run,
    start,
    wait_until,
)

from classifier import cpu
from classifier.checkpoints import load_selected
from classifier.networks import create_network
from classifier.training import Training

LONGER = ("--data-dir", PROJECT / "training_data", "--limit-per-class", 60, "--image-size", 32, "--batch-size", 2,
          "--epochs", 8)  # fmt: skip


STEPS = 48  # in each of these epochs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run as LONGER says that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run("train", *LONGER, "--output", folder)
    return folder / "001"


@pytest.mark.parametrize("save_minutes", [0, 5], ids=["saved in the epoch", "saved at the epoch's end"])
def test_killed_in_the_middle_of_an_epoch_and_resumed_it_is_the_same_run(tmp_path, undisturbed, save_minutes):
    """SIGKILL gives no chance to save: what counts is what was on the disk."""
    process = start("train", *LONGER, "--output", "killed", "--save-minutes", save_minutes)
    newest = tmp_path / "killed/001/checkpoints/newest"
    per_epoch = STEPS + 1
    saved = lambda: [int(path.stem.split("-")[1]) for path in newest.glob("ckpt-*.index")]  # noqa: E731
    wait_until(process, lambda: any(number >= per_epoch + (5 if save_minutes == 0 else 0) for number in saved()))
    process.kill()
    process.communicate()
    assert max(saved()) < 8 * per_epoch, "it was over before it was killed"
    if save_minutes == 0:
        assert max(saved()) % per_epoch, "it was not killed in the middle of an epoch"

    finished = run("train", "--resume", "killed/001", "--save-minutes", 5)
    assert "resumed" in finished.stderr
    assert "do not expect" not in finished.stderr
    assert_same_run(tmp_path / "killed/001", undisturbed)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_leaves_and_the_run_can_go_on(tmp_path, undisturbed, signum, code):
    process = start("train", *LONGER, "--output", "runs")
    wait_until(process, lambda: (tmp_path / "runs/001/history.csv").exists())
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=HANGING)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert stderr.rstrip().endswith("train.py --resume runs/001")

    assert len(history_of(tmp_path / "runs/001")) < 8
    run("train", "--resume", "--output", "runs")
    assert_same_run(tmp_path / "runs/001", undisturbed)


def test_a_signal_while_the_last_epoch_is_saved_is_heard(images, tmp_path, trained, monkeypatch):
    finish = Training.finish_epoch

    def signal_then_finish(training, row):
        if training.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return finish(training, row)

    with monkeypatch.context() as fault:
        fault.setattr(Training, "finish_epoch", signal_then_finish)
        stopped = run("train", "--data-dir", images, "--output", "runs", *QUICK, code=143)
    assert "stopped after epoch 2; to resume:" in stopped.stderr
    assert not json.loads((tmp_path / "runs/001/model.json").read_text())["finished"]
    assert "no finished run" in error_of(run("predict", "--model", "runs", images, code=3))
    run("train", "--resume", "--output", "runs")
    assert_same_run(tmp_path / "runs/001", trained)


def test_files_are_on_the_disk_before_they_get_their_names(images, monkeypatch):
    """Or a loss of power could leave a name with nothing in it."""
    synced, named, unsynced, fsync, replace = set(), [], [], os.fsync, os.replace

    def watched_fsync(file):
        synced.add(os.fstat(file).st_ino)
        fsync(file)

    def watched_replace(source, target):
        number = os.stat(source).st_ino
        (named if number in synced else unsynced).append(os.path.basename(target))
        synced.discard(number)  # a later file may get it again
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    run("train", "--data-dir", images, "--output", "runs", *QUICK)
    assert len(named) > 10
    assert not unsynced


def test_a_signal_before_training_leaves_at_once(images):
    process = start("train", "--data-dir", images, "--output", "runs")
    time.sleep(0.7)  # while TensorFlow is imported, most likely
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANGING)
    assert process.returncode in (143, -signal.SIGTERM)


def test_more_epochs_for_a_finished_run(run_folder, trained):
    again = run("train", "--resume", "--output", "runs")
    assert "epoch 1/" not in again.stdout
    assert_same_run(run_folder, trained)
    run("train", "--resume", run_folder, "--epochs", 4)
    rows = history_of(run_folder)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[:2] == history_of(trained)


def test_resume_refuses_other_settings_and_other_pictures(run_folder, images):
    for setting, *flags in (("lr 0.001", "--lr", 0.1), ("augment True", "--no-augment")):
        refused = run("train", "--resume", "--output", "runs", *flags, code=2)
        assert f"began with {setting}: that cannot change" in error_of(refused)
    shutil.move(images, "moved")
    run("train", "--resume", "--output", "runs", "--data-dir", "moved")  # the same images in another place
    shutil.copy("moved/cats/cats_1.jpg", "moved/cats/another.jpg")
    assert "not those" in error_of(run("train", "--resume", "--output", "runs", "--epochs", 3, code=3))


def test_resume_refuses_a_run_that_has_lost_a_part(run_folder, tmp_path):
    resume = ("--resume", "runs/001", "--epochs", 3)
    (tmp_path / "runs/001/history.csv").rename("history.csv")
    assert "does not have a row for each of 2 epochs" in error_of(run("train", *resume, code=3))
    (tmp_path / "history.csv").rename("runs/001/history.csv")
    (tmp_path / "runs/001/checkpoints/newest").rename("newest")
    assert "checkpoints of" in error_of(run("train", *resume, code=3))
    (tmp_path / "newest").rename("runs/001/checkpoints/newest")
    card = tmp_path / "runs/001/model.json"
    good = card.read_text()
    card.write_text(good.replace('"batch_size": 8', '"batch_size": "x"'))
    assert "model.json is damaged: batch_size" in error_of(run("train", *resume, code=3))
    card.write_text(good)
    assert "epoch 3/3" in run("train", *resume).stdout


def test_two_trainings_cannot_share_a_run(tmp_path):
    settings = ("--data-dir", PROJECT / "training_data", "--limit-per-class", 60, "--image-size", 32)
    process = start("train", *settings, "--epochs", 500, "--output", "runs")
    wait_until(process, lambda: (tmp_path / "runs/001/history.csv").exists())
    assert "another process is working" in error_of(run("train", "--resume", "runs/001", code=1))
    process.send_signal(signal.SIGTERM)
    process.communicate()


def test_a_run_killed_before_it_had_metadata_is_skipped(run_folder, tmp_path):
    (tmp_path / "runs/002").mkdir()
    assert "skipped: " in run("train", "--resume", "--output", "runs").stderr


FILL_THE_DISK = """
import os, subprocess, sys
train, predict, images, photo = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", "disk"], check=True)
quick = ["--data-dir", images, "--image-size", "32", "--batch-size", "8", "--output", "disk"]
subprocess.run([sys.executable, train, *quick, "--epochs", "2"], check=True)
space = os.statvfs("disk")
with open("disk/fill", "wb") as file:
    file.write(bytes(space.f_bavail * space.f_frsize - 300_000))  # room for text, not for a checkpoint
resume = [sys.executable, train, "--resume", "--output", "disk", "--epochs", "4"]
full = subprocess.run(resume, capture_output=True, text=True)
print("full", full.returncode, full.stderr)
subprocess.run([sys.executable, predict, "--model", "disk/001", photo], check=True)
os.remove("disk/fill")
subprocess.run(resume, check=True)
subprocess.run(["cp", "-r", "disk/001", "copy"], check=True)
"""


def test_a_full_disk_keeps_the_last_good_checkpoint(run_folder, images, tmp_path):
    (tmp_path / "disk").mkdir()
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "disk"], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    script = [sys.executable, "-c", FILL_THE_DISK, PROJECT / "train.py", PROJECT / "predict.py", images]
    finished = subprocess.run(["unshare", "-rm", *script, images / "cats/cats_0.jpg"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "full 1 " in finished.stdout
    assert "cannot save a checkpoint" in finished.stdout
    assert "Traceback" not in finished.stdout
    run("train", "--resume", run_folder, "--epochs", 4)
    assert_same_run(tmp_path / "copy", run_folder)


@pytest.mark.parametrize("truncated", [False, True])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run_folder, trained, truncated):
    newest = max((run_folder / "checkpoints/newest").glob("*.data*"), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 255
    newest.write_bytes(data[:1000] if truncated else data)
    finished = run("train", "--resume", "--output", "runs")
    assert "is damaged" in finished.stderr
    assert "epoch 2/2" in finished.stdout  # it is done again
    assert_same_run(run_folder, trained)


def test_the_metadata_names_the_cpu_and_a_run_on_another_says_that_it_differs(run_folder):
    card = json.loads((run_folder / "model.json").read_text())
    device = card["device"]
    assert device["cpu"] == cpu.name()
    assert device["oneDNN"] is cpu.has_onednn()
    assert "note" not in run("train", "--resume", run_folder, "--epochs", 3).stderr
    card["device"] = device | {"instruction set": "AVX", "bfloat16": None}
    (run_folder / "model.json").write_text(json.dumps(card))
    said = run("train", "--resume", run_folder, "--epochs", 4).stderr
    assert f"it began with instruction set AVX, not {device['instruction set']}; bfloat16 None, not" in said
    assert "do not expect the same weights, bit for bit" in said
    card = json.loads((run_folder / "model.json").read_text())
    del card["device"]
    (run_folder / "model.json").write_text(json.dumps(card))
    assert "note       it began with an earlier version" in run("train", "--resume", run_folder).stderr


def test_a_run_of_before_pooling_came_last_predicts(run_folder, images):
    """Its layers had other numbers in the checkpoint."""
    photo = images / "dogs/dogs_1.jpg"
    expected = predictions(run_folder, photo)[str(photo)]["probabilities"]
    layers = keras.layers

    class Bias(layers.Layer):
        def build(self, input_shape):
            self.bias = self.add_weight(name="bias", shape=(input_shape[-1],))

        def call(self, inputs):
            return inputs + self.bias

    x = images = keras.Input((32, 32, 3), dtype="uint8")
    x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    for filters in (32, 32, 64):
        x = layers.ReLU()(Bias()(layers.MaxPooling2D()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x))))
    x = layers.ReLU()(layers.Dense(128)(layers.Dropout(0.3)(layers.Flatten()(x))))
    older = keras.Model(images, layers.Dense(2)(layers.Dropout(0.3)(x)))
    network = create_network("cnn", 32, 2)
    load_selected(run_folder, network)
    older.set_weights(network.get_weights())
    (best,) = (run_folder / "checkpoints/best").glob("*.index")
    tf.train.Checkpoint(network=older).write(str(best.with_suffix("")))
    got = predictions(run_folder, photo, "--runtime", "tensorflow")[str(photo)]["probabilities"]
    assert got == pytest.approx(expected, abs=1e-5)
