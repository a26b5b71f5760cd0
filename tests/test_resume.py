"""Runs that are stopped in every way, damaged, and resumed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from conftest import HANGING, PROJECT, QUICK, error_of, predictions, run, start, train, wait_until
from run_folders import assert_same_run, change_metadata, damage, history_of, metadata_of, newest_checkpoint

from classifier.base import cpu
from classifier.networks.by_name import create_network
from classifier.runs.checkpoints import load_selected
from classifier.runs.folder import read_metadata, write_metadata
from classifier.training.state import Training

LONGER = (*QUICK, "--data-dir", PROJECT / "training_data", "--limit-per-class", 60, "--batch-size", 2, "--epochs", 5)
PER_EPOCH = 49  # the numbers of checkpoints grow by one in each of 48 steps, and by one at the end of the epoch


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run as LONGER says that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run("train", *LONGER, "--output", folder)
    return folder / "001"


def test_stopped_in_the_middle_of_an_epoch_and_resumed_it_is_the_same_run(tmp_path, undisturbed):
    """For SIGKILL, power cuts and failing disks see tests/reliability."""
    process = start("train", *LONGER, "--output", "runs", "--save-minutes", 5)
    newest = tmp_path / "runs/001/checkpoints/training"
    saved = lambda: [int(path.stem.split("-")[1]) for path in newest.glob("ckpt-*.index")]  # noqa: E731
    wait_until(process, lambda: any(number >= PER_EPOCH for number in saved()))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=HANGING)
    assert process.returncode == 130
    assert max(saved()) < 5 * PER_EPOCH, "it was over before it was stopped"
    assert "Traceback" not in stderr
    assert stderr.rstrip().endswith("train.py --resume runs/001")

    finished = run("train", "--resume", "--output", "runs", "--save-minutes", 5)
    assert "resumed" in finished.stderr
    assert "do not expect" not in finished.stderr
    assert_same_run("runs/001", undisturbed)


def test_while_the_last_epoch_is_saved_another_training_is_refused_and_a_signal_is_heard(images, trained, monkeypatch):
    finish = Training.finish_epoch

    def disturb_then_finish(training, row):
        if training.epoch == 1:
            monkeypatch.setattr(Training, "finish_epoch", finish)  # from now on undisturbed
            assert "another process is working" in error_of(run("train", "--resume", "runs/001", code=1))
            os.kill(os.getpid(), signal.SIGTERM)
        return finish(training, row)

    monkeypatch.setattr(Training, "finish_epoch", disturb_then_finish)
    stopped = train(images, code=143)
    assert "stopped after epoch 2; to resume:" in stopped.stderr
    assert not metadata_of("runs/001")["finished"]
    assert "no finished run" in error_of(run("predict", "--model", "runs", images, code=3))
    run("train", "--resume", "--output", "runs")
    assert_same_run("runs/001", trained)


def test_files_and_names_are_on_the_disk_before_the_next_get_theirs(images, monkeypatch):
    """Or a loss of power could leave a name with nothing in it, or take a new file and the one before it."""
    synced, named, problems, changed_folders, fsync, replace = set(), [], [], set(), os.fsync, os.replace

    def watched_fsync(file):
        number = os.fstat(file).st_ino
        synced.add(number)
        changed_folders.discard(number)
        fsync(file)

    def watched_replace(source, target):
        number, folder = os.stat(source).st_ino, os.stat(os.path.dirname(target)).st_ino
        named.append(target)
        if number not in synced or folder in changed_folders:
            problems.append(target)
        synced.discard(number)  # a later file may get it again
        changed_folders.add(folder)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    train(images)
    assert len(named) > 10
    assert not problems
    assert not changed_folders


SIGNAL_AT_IMPORT = """
import contextlib, os, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == "tensorflow":
            with contextlib.suppress({suppressed}):
                os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("suppressed", ["", "SystemExit"])
def test_a_signal_before_training_leaves_at_once_or_if_an_import_swallows_it_at_the_first_step(images, suppressed):
    """When TensorFlow is about to be imported."""
    Path("sitecustomize.py").write_text(SIGNAL_AT_IMPORT.format(suppressed=suppressed))  # Python imports it when it starts
    stopped = train(images, code=143, env=os.environ | {"PYTHONPATH": "."})
    assert ("after 1 of 3 steps" in stopped.stderr) is bool(suppressed)


SIGNAL_WHERE_NOTHING_CAN_BE_RAISED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from classifier.base import console
class Collected:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.getpid()  # Python raises it here
def main(argv=None):
    Collected()
    return console.StopRequest.signum - signal.SIGINT
console.run(main)
"""


def test_a_signal_where_nothing_can_be_raised_shows_no_traceback():
    """While an object is collected, Python reports what is raised, and goes on."""
    command = [sys.executable, "-c", SIGNAL_WHERE_NOTHING_CAN_BE_RAISED, PROJECT]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_more_epochs_for_a_finished_run(run_folder, trained):
    Path("runs/002").mkdir()  # killed before it had metadata
    again = run("train", "--resume", "--output", "runs")
    assert "skipped: " in again.stderr
    assert "epoch 1/" not in again.stdout
    assert_same_run(run_folder, trained)
    odd = Path("runs").rename("odd[1]\\*?")  # TensorFlow takes such a name for a pattern
    run("train", "--resume", odd / "001", "--epochs", 4)
    rows = history_of(odd / "001")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[:2] == history_of(trained)


def test_resume_refuses_other_settings_other_images_and_a_run_that_has_lost_a_part(run_folder, images):
    resume = ("train", "--resume", "--output", "runs")
    for setting, *flags in (("lr 0.001", "--lr", 0.1), ("augment True", "--no-augment")):
        assert f"began with {setting}: that cannot change" in error_of(run(*resume, *flags, code=2))
    lost = {"history.csv": "does not have a row for each of 2 epochs", "checkpoints/training": "checkpoints of"}
    for name, problem in lost.items():
        (run_folder / name).rename("aside")
        assert problem in error_of(run(*resume, "--epochs", 3, code=3))
        Path("aside").rename(run_folder / name)
    settings = metadata_of(run_folder)["settings"]
    change_metadata(run_folder, settings=settings | {"batch_size": "x"})
    assert "model.json is damaged: batch_size" in error_of(run(*resume, "--epochs", 3, code=3))
    change_metadata(run_folder, settings=settings)
    shutil.move(images, "moved")
    assert "epoch 3/3" in run(*resume, "--data-dir", "moved", "--epochs", 3).stdout  # the same images in another place
    shutil.copy("moved/cats/cats_1.jpg", "moved/cats/another.jpg")
    assert "not those" in error_of(run(*resume, "--epochs", 4, code=3))


def test_files_of_another_run_or_with_other_figures_are_noticed(run_folder, photo):
    resume, history = ("train", "--resume", run_folder, "--epochs", 3), run_folder / "history.csv"
    text, metadata = history.read_text(), read_metadata(run_folder)
    history.write_text(text.replace("0.6", "0.5", 1))
    assert "are not of the same training" in error_of(run(*resume, code=3))
    history.write_text(text)
    predict = ("predict", "--model", run_folder, "--runtime", "tensorflow", photo)
    write_metadata(run_folder, metadata | {"selected_digest": "that of another run"})
    for script in (predict, resume[:3]):
        assert "are not of the same training" in error_of(run(*script, code=3))
    write_metadata(run_folder, metadata)
    index = newest_checkpoint(run_folder, "selected").with_suffix(".index")
    index.rename("aside")
    for script in (predict, resume[:3]):
        assert "no sound checkpoint of the selected weights: using" in run(*script).stderr
    Path("aside").rename(index)
    write_metadata(run_folder, metadata)
    card = (run_folder / "model.json").read_text()
    (run_folder / "model.json").write_text(card.replace(f'"temperature": {metadata["temperature"]}', '"temperature": 1.5'))
    assert "model.json is damaged" in error_of(run(*predict, code=3))


@pytest.mark.parametrize("harm", [damage, lambda path: os.truncate(path, 1000)], ids=["changed", "truncated"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run_folder, trained, harm):
    harm(newest_checkpoint(run_folder).with_suffix(".data-00000-of-00001"))
    finished = run("train", "--resume", "--output", "runs")
    assert "is damaged" in finished.stderr
    assert "epoch 2/2" in finished.stdout  # it is done again
    assert_same_run(run_folder, trained)


def test_the_metadata_names_the_cpu_and_a_run_on_another_says_that_it_differs(run_folder):
    resume = ("train", "--resume", run_folder)
    device = metadata_of(run_folder)["device"]
    assert device["cpu"] == cpu.name()
    assert device["oneDNN"] is cpu.has_onednn()
    assert "note" not in run(*resume).stderr
    change_metadata(run_folder, device=device | {"instruction set": "AVX", "bfloat16": None})
    said = run(*resume).stderr
    assert f"it began with instruction set AVX, not {device['instruction set']}; bfloat16 None, not" in said
    assert "do not expect the same weights, bit for bit" in said
    change_metadata(run_folder, device=None)
    assert "note       it began with an earlier version" in run(*resume).stderr


def test_a_run_of_before_pooling_came_last_predicts(run_folder, photo):
    """Its layers had other numbers in the checkpoint."""
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
    tf.train.Checkpoint(network=older).write(str(newest_checkpoint(run_folder, "selected")))
    change_metadata(run_folder, selected_digest=None, history_digest=None)  # as it was then
    got = predictions(run_folder, photo, "--runtime", "tensorflow")[str(photo)]["probabilities"]
    assert got == pytest.approx(expected, abs=1e-5)
