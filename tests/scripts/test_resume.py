"""Runs that are stopped, resumed, or damaged. Signals and kills at any moment, power cuts, bad disks: see reliability/."""

import functools
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANGING, PROJECT, QUICK, error_of, run, train
from run_folders import assert_same_run, change_metadata, damage, history_of, metadata_of, newest_checkpoint

from classifier.base import console, cpu


def disturb(monkeypatch, pattern, what):
    """Call what() once, just before a file gets a name that matches the pattern."""
    replace = os.replace

    def disturbed(source, target):
        if re.search(pattern, str(target)):
            monkeypatch.setattr(os, "replace", replace)
            what()
        return replace(source, target)

    monkeypatch.setattr(os, "replace", disturbed)


def kill_self(*signals):
    for signum in signals:
        os.kill(os.getpid(), signum)


def test_stopped_by_any_signal_in_the_middle_of_an_epoch_and_resumed_it_is_the_same_run(images, trained, monkeypatch):
    disturb(monkeypatch, r"training/ckpt-1\.index$", lambda: kill_self(signal.SIGINT))  # in its second step
    stopped = train(images, "--save-minutes", 0, code=130)
    assert "in epoch 1, after 2 of 3 steps" in stopped.stderr
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in console.STOP_SIGNALS[2:]}
    # Shell and kernel both tell that the terminal is gone; schedulers tell of a limit, and then terminate.
    for sent in ([signal.SIGHUP] * 2, [signal.SIGUSR1, signal.SIGTERM], [signal.SIGQUIT]):
        disturb(monkeypatch, r"training/ckpt-\d\.index$", functools.partial(kill_self, *sent))
        stopped = run("train", "--resume", "--output", "runs", code=128 + sent[0])
        assert stopped.stderr.rstrip().endswith("train.py --resume runs/001")
    for signum, handler in before.items():
        assert signal.signal(signum, handler) == signal.SIG_DFL
    finished = run("train", "--resume", "--output", "runs", "--save-minutes", 5)
    assert "do not expect" not in finished.stderr
    assert_same_run("runs/001", trained)


def test_a_closed_terminal_ends_a_training_with_a_checkpoint_but_not_under_nohup(images):
    leader, follower = pty.openpty()
    inside = "import fcntl, runpy, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); sys.argv[:2] = sys.argv[1:];"
    inside += "signal.signal(signal.SIGHUP, signal.SIG_DFL);"  # the tests may run under nohup
    inside += "runpy.run_path(sys.argv[0], run_name='__main__')"
    flags = ("--data-dir", images, *QUICK, "--epochs", 1000, "--output", "runs")
    command = [sys.executable, "-c", inside, str(PROJECT / "train.py"), *map(str, flags)]
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | {"PYTHONPATH": str(PROJECT)}, **streams)
    os.close(follower)
    shown = b""
    while b"epoch    2/1000" not in shown:
        shown += os.read(leader, 10_000)  # OSError: it ended before that
    os.close(leader)
    assert process.wait(HANGING) == 128 + signal.SIGHUP
    assert not metadata_of("runs/001")["finished"]

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with console.StopRequest().listening():
        kill_self(signal.SIGHUP)
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_while_the_last_epoch_is_saved_another_training_is_refused_and_a_signal_is_heard(images, trained, monkeypatch):
    refused = []

    def resume_and_stop():
        refused.append(run("train", "--resume", "runs/001", code=1))
        os.kill(os.getpid(), signal.SIGTERM)

    disturb(monkeypatch, r"training/ckpt-8\.index$", resume_and_stop)  # 3 steps and the end, twice
    stopped = train(images, code=143)
    assert "another process is working" in error_of(refused[0])
    assert "stopped after epoch 2; to resume:" in stopped.stderr
    assert not metadata_of("runs/001")["finished"]
    assert "no finished run" in error_of(run("predict", "--model", "runs", images, code=3))
    run("train", "--resume", "--output", "runs")
    assert_same_run("runs/001", trained)


def test_killed_between_its_last_checkpoint_and_the_record_it_ends_alike(run_folder, trained):
    record = metadata_of(run_folder)
    change_metadata(run_folder, epochs=1, finished=False, selected=None, history_digest=None, temperature=None, ood=None)
    assert "epoch" not in run("train", "--resume", "--output", "runs").stdout.split("selected:")[0]
    assert metadata_of(run_folder) == record


def test_it_goes_back_to_a_sound_checkpoint(run_folder, trained):
    damage(newest_checkpoint(run_folder).with_suffix(".data-00000-of-00001"))
    resumed = run("train", "--resume", "--output", "runs")
    assert "is damaged" in resumed.stderr
    assert "epoch 2/2" in resumed.stdout  # it is done again
    assert_same_run(run_folder, trained)


def test_a_finished_run_goes_on_elsewhere_with_images_that_moved(run_folder, trained, images):
    Path("runs/002").mkdir()  # killed before it had a record
    again = run("train", "--resume", "--output", "runs")
    assert "skipped: " in again.stderr
    assert "epoch 1/" not in again.stdout
    assert "note" not in again.stderr
    assert_same_run(run_folder, trained)
    device = metadata_of(run_folder)["device"]
    assert (device["cpu"], device["oneDNN"]) == (cpu.name(), cpu.has_onednn())
    assert "is a file: give its run folder" in error_of(run("train", "--resume", run_folder / "model.json", code=3))
    change_metadata(run_folder, device={"instruction set": "AVX", "bfloat16": None}, settings={"data_dir": "/no"})
    assert "/no, which is not there: say with --data-dir" in error_of(run("train", "--resume", run_folder, code=3))
    odd, moved = Path("runs").rename("odd[1]\\*?"), images.rename("moved")  # TensorFlow takes such a name for a pattern
    resume = ("train", "--resume", odd / "001", "--data-dir", moved, "--epochs")
    said = run(*resume, 4).stderr
    assert f"it began with instruction set AVX, not {device['instruction set']}; bfloat16 None, not" in said
    assert "do not expect the same weights, bit for bit" in said
    rows = history_of(odd / "001")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[:2] == history_of(trained)
    shutil.copy(moved / "cats/cats_1.jpg", moved / "cats/another.jpg")
    assert "001 began with ('cats' had 12, now 13): restore them" in error_of(run(*resume, 5, code=3))


def without(name):
    return lambda run_folder: (run_folder / name).rename("aside")


def with_other_loss(run_folder):
    text = (run_folder / "history.csv").read_text()
    (run_folder / "history.csv").write_text(text.replace("0.6", "0.5", 1))


def with_other_temperature(run_folder):
    record = run_folder / "model.json"
    record.write_text(re.sub(r'"temperature": [\d.]+', '"temperature": 1.5', record.read_text()))


MORE = ("--epochs", 3)
NOT_RESUMED = {  # what is done to the run, the flags, the exit code, and what is said
    "lr": (None, ("--lr", 0.1), 2, "began with lr 0.001: that cannot change"),
    "augment": (None, ("--no-augment",), 2, "began with augment True: that cannot change"),
    "no history": (without("history.csv"), MORE, 3, "does not have a row for each of 2 epochs"),
    "no checkpoints": (without("checkpoints/training"), MORE, 3, "checkpoints of"),
    "history": (with_other_loss, MORE, 3, "are not of the same training"),
    "weights": (lambda run: change_metadata(run, selected_digest="of another"), (), 3, "are not of the same training"),
    "settings": (lambda run: change_metadata(run, settings={"batch_size": "x"}), MORE, 3, "model.json is damaged"),
    "temperature": (with_other_temperature, MORE, 3, "model.json is damaged"),
}


@pytest.mark.parametrize("kind", NOT_RESUMED)
def test_a_run_that_changed_or_other_settings_are_refused(run_folder, photo, kind):
    change, flags, code, problem = NOT_RESUMED[kind]
    if change:
        change(run_folder)
    assert problem in error_of(run("train", "--resume", run_folder, *flags, code=code))
    if kind in ("weights", "temperature"):
        assert problem in error_of(run("predict", "--model", run_folder, "--runtime", "tensorflow", photo, code=3))


def test_without_the_selected_weights_the_newest_are_used_and_that_is_said(run_folder, photo):
    newest_checkpoint(run_folder, "selected").with_suffix(".index").unlink()
    for script in (("predict", "--model", run_folder, "--runtime", "tensorflow", photo), ("train", "--resume", run_folder)):
        assert "no sound checkpoint of the selected weights: using" in run(*script).stderr
