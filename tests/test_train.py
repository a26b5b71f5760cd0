"""train.py as a user runs it: a run from beginning to end, stopped in every way, and resumed."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import HANGING, PROJECT, QUICK, draw_pictures, error_of, predictions, run, start

import cpu
from checkpoints import load_best
from cpu import has_bfloat16
from dataset import read_train_sets
from model import create_network, keras, tf
from trainer import Training


def history_of(run_folder):
    with open(run_folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")} for row in rows]


def newest_tensors(run_folder, phase="newest"):
    """Every tensor of the newest checkpoint of a phase, weights and optimizer, by name."""
    import tensorflow as tf

    newest = max(run_folder.glob(f"checkpoints/{phase}/ckpt-*.index"), key=lambda path: int(path.stem.split("-")[1]))
    reader = tf.train.load_checkpoint(str(newest.with_suffix("")))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names}


def assert_same_run(one, other, phase="newest"):
    """Both runs ended with the same weights, bit for bit, and tell the same story."""
    tensors, expected = newest_tensors(one, phase), newest_tensors(other, phase)
    assert tensors.keys() == expected.keys()
    assert sum(tensor.size for tensor in tensors.values()) > 100_000
    for name in expected:
        assert np.array_equal(tensors[name], expected[name]), name
    assert history_of(one) == history_of(other)


def wait_until(process, condition):
    """Wait until the condition holds, while the process is running."""
    end = time.monotonic() + HANGING
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_run_from_beginning_to_end(pictures, tmp_path):
    finished = run("train", "--data-dir", pictures, "--output", "runs", *QUICK, "--seed", 3, process=True)
    for told in ("tensorflow", "device", "cats 10 + 2, dogs 10 + 2 (training + validation)", "parameters"):
        assert told in finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]
    assert "kept" in lines[0]

    card = json.loads((tmp_path / "runs/001/model.json").read_text())
    assert card["classes"] == ["cats", "dogs"]
    kept = list((tmp_path / "runs/001/checkpoints/best").glob("*.index"))
    assert [path.stem for path in kept] == [f"ckpt-{card['best']['epoch']}"]
    assert card["finished"] is True
    assert card["settings"]["seed"] == 3
    assert len(history_of(tmp_path / "runs/001")) == 2

    answer = subprocess.run(lines[-1], shell=True, capture_output=True, text=True)  # a command that works as it is
    assert answer.returncode == 0, answer.stderr
    assert "%" in answer.stdout


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(trained, pictures, tmp_path):
    for seed in (0, 1):  # in a folder each: the second overwrites nothing of the first
        run("train", "--data-dir", pictures, "--output", "runs", *QUICK, "--seed", seed)
    assert_same_run(tmp_path / "runs/001", trained)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "runs/002", trained)


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
    assert "goes on" in finished.stderr
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


def test_a_signal_while_the_last_epoch_is_saved_is_heard(pictures, tmp_path, trained, monkeypatch):
    finish = Training.finish_epoch

    def signal_then_finish(training, row):
        if training.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return finish(training, row)

    with monkeypatch.context() as fault:
        fault.setattr(Training, "finish_epoch", signal_then_finish)
        stopped = run("train", "--data-dir", pictures, "--output", "runs", *QUICK, code=143)
    assert "stopped after epoch 2; to go on:" in stopped.stderr
    assert not json.loads((tmp_path / "runs/001/model.json").read_text())["finished"]
    assert "no finished run" in error_of(run("predict", "--model", "runs", pictures, code=3))
    run("train", "--resume", "--output", "runs")
    assert_same_run(tmp_path / "runs/001", trained)


def test_files_are_on_the_disk_before_they_get_their_names(pictures, monkeypatch):
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
    run("train", "--data-dir", pictures, "--output", "runs", *QUICK)
    assert len(named) > 10
    assert unsynced == ["model.tflite"]  # it is checked before each use, and can be made again


def test_a_signal_before_training_leaves_at_once(pictures):
    process = start("train", "--data-dir", pictures, "--output", "runs")
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


def test_resume_refuses_other_settings_and_other_pictures(run_folder, pictures):
    for setting, *flags in (("lr 0.001", "--lr", 0.1), ("augment True", "--no-augment")):
        refused = run("train", "--resume", "--output", "runs", *flags, code=2)
        assert f"began with {setting}: that cannot change" in error_of(refused)
    shutil.move(pictures, "moved")
    run("train", "--resume", "--output", "runs", "--data-dir", "moved")  # the same pictures in another place
    shutil.copy("moved/cats/cats_1.jpg", "moved/cats/another.jpg")
    assert "not those" in error_of(run("train", "--resume", "--output", "runs", "--epochs", 3, code=3))


def test_patience_stops_early_and_zero_never_does(pictures):
    settings = ("--data-dir", pictures, "--image-size", 32, "--lr", 1e-9, "--batch-size", 8, "--patience", 2)
    stopped = run("train", *settings, "--epochs", 12, "--output", "a")
    assert stopped.stdout.count("pictures/s") == 3
    assert "stopped early" in stopped.stdout
    assert run("train", "--resume", "--patience", 0, "--output", "a").stdout.count("pictures/s") == 9
    assert "stopped early" not in run("train", *settings, "--epochs", 3, "--output", "b").stdout


def test_of_epochs_that_differ_by_chance_the_last_predicts():
    training = Training.__new__(Training)
    training.judged_on = 100  # 0.9 of a hundred may be 0.82 in truth, 1.0 may be 0.954

    def kept(*accuracies):
        training.history = [{"epoch": i, "val_accuracy": accuracy} for i, accuracy in enumerate(accuracies, start=1)]
        return training.best() and training.best()["epoch"]

    assert kept(0.8, 0.9, 0.83) == 3
    assert kept(0.8, 0.9, 0.81) == 2
    assert kept(0.8, 0.88, 0.9, 0.88, 0.81) == 4
    assert kept(0.8, 1.0, 0.96) == 3
    assert kept(0.8, 1.0, 0.95) == 2
    assert kept() is None


def test_a_batch_larger_than_the_data_is_shrunk_and_that_is_said_once(pictures):
    finished = run("train", "--data-dir", pictures, "--output", "runs", *QUICK[:4], "--batch-size", 1000, "--no-augment",
                   "--dropout", 0)  # fmt: skip
    assert finished.stderr.count("batch") == 1
    assert "20" in finished.stderr
    first, second = (float(row["loss"]) for row in history_of(Path("runs/001")))
    assert second < first - 0.001  # even the only step of the first epoch teaches something


def test_a_learning_rate_that_explodes_is_one_clear_line(pictures):
    finished = run("train", "--data-dir", pictures, "--output", "runs", *QUICK, "--lr", 1e30, "--epochs", 20,
                   "--patience", 0, code=1)  # fmt: skip
    assert "--lr" in error_of(finished)


def test_too_little_memory_is_one_clear_line(pictures):
    """Weights of 0.5 GB, four times, in a process that may have 4 GB of address space."""
    finished = run("train", "--data-dir", pictures, "--output", "runs", "--image-size", 1024, "--batch-size", 2, code=1,
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9)))  # fmt: skip
    assert "--image-size" in error_of(finished)


def test_judging_the_network_takes_no_more_memory_than_training_it(pictures):
    """At 512 px the maps of fifty pictures are a gigabyte."""
    draw_pictures(pictures, 32)
    large = ("--network", "resnet", "--image-size", 512, "--epochs", 1, "--batch-size", 2)
    process = start("train", "--data-dir", pictures, "--output", "runs", *large, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL)  # fmt: skip
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    assert used.ru_maxrss < 1_700_000  # kB


def test_where_no_cache_can_be_written_training_is_the_same(trained, pictures, tmp_path):
    assert list((trained.parent / ".cache").glob("*.pixels"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.cache").write_text("a file is in the way")
    finished = run("train", "--data-dir", pictures, "--output", "runs", *QUICK)
    assert "no cache" in finished.stderr
    assert_same_run(tmp_path / "runs/001", trained)


def test_a_later_run_reads_the_cache_and_makes_it_again_if_it_is_damaged(trained, pictures, tmp_path):
    def trained_again():
        run("train", "--data-dir", pictures, "--output", "runs", *QUICK)
        return max(tmp_path.glob("runs/0*"))

    read_train_sets(pictures, 32, cache_dir=tmp_path / "runs/.cache")
    (pixels,) = (tmp_path / "runs/.cache").glob("*.pixels")
    pixels.write_bytes(bytes(pixels.stat().st_size))  # all black, which no picture is
    assert history_of(trained_again()) != history_of(trained)
    with open(pixels, "r+b") as file:
        file.truncate(100)
    assert_same_run(trained_again(), trained)


def test_a_picture_that_changed_is_decoded_again(pictures, tmp_path):
    def decoded():
        sets = read_train_sets(pictures, 16, cache_dir=tmp_path / "cache")
        return next(sets.train.batches(100))[0]

    before = decoded()
    for pixels in tmp_path.glob("cache/*.pixels"):
        pixels.write_bytes(bytes(pixels.stat().st_size))
    assert not decoded().any()
    os.utime(pictures / "cats/cats_1.jpg")
    assert np.array_equal(decoded(), before)


def test_a_file_that_could_not_be_opened_is_tried_again(pictures, tmp_path):
    folder = tmp_path / "cache"
    picture = pictures / "cats/cats_1.jpg"
    shutil.move(picture, tmp_path / "aside.jpg")
    picture.symlink_to(picture)  # "Too many levels of symbolic links": an error of the file system, not of the picture
    assert len(read_train_sets(pictures, 16, cache_dir=folder).skipped) == 1
    assert not list(folder.glob("*.json"))


def test_resume_refuses_a_run_that_has_lost_a_part(run_folder, tmp_path):
    resume = ("--resume", "runs/001", "--epochs", 3)
    (tmp_path / "runs/001/history.csv").rename("history.csv")
    assert "does not tell of all 2 epochs" in error_of(run("train", *resume, code=3))
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
    assert "another process is at work" in error_of(run("train", "--resume", "runs/001", code=1))
    process.send_signal(signal.SIGTERM)
    process.communicate()


def test_a_run_killed_before_it_had_a_card_is_passed_over(run_folder, tmp_path):
    (tmp_path / "runs/002").mkdir()
    assert "passed over: " in run("train", "--resume", "--output", "runs").stderr


def test_the_users_keras_settings_do_not_matter(pictures, tmp_path, trained):
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras/keras.json").write_text(
        '{"backend": "jax", "floatx": "float16", "image_data_format": "channels_first", "epsilon": 1e-7}'
    )
    environment = os.environ | {"KERAS_HOME": str(tmp_path / ".keras"), "KERAS_BACKEND": "jax", "TF_USE_LEGACY_KERAS": "1"}
    run("train", "--data-dir", pictures, "--output", "runs", *QUICK, env=environment)
    assert_same_run(tmp_path / "runs/001", trained)


def test_an_output_that_cannot_be_written(pictures, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert "--output" in error_of(run("train", "--data-dir", pictures, "--output", "file/runs", *QUICK, code=1))
    if os.geteuid():  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "--output" in error_of(run("train", "--data-dir", pictures, "--output", "locked", *QUICK, code=1))


FILL_THE_DISK = """
import os, subprocess, sys
train, predict, pictures, photo = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", "disk"], check=True)
quick = ["--data-dir", pictures, "--image-size", "32", "--batch-size", "8", "--output", "disk"]
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


def test_a_full_disk_keeps_the_last_good_checkpoint(run_folder, pictures, tmp_path):
    (tmp_path / "disk").mkdir()
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "disk"], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    script = [sys.executable, "-c", FILL_THE_DISK, PROJECT / "train.py", PROJECT / "predict.py", pictures]
    finished = subprocess.run(["unshare", "-rm", *script, pictures / "cats/cats_0.jpg"], capture_output=True, text=True)
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


def test_two_devices_share_a_batch_and_come_to_the_same(tmp_path):
    """Two virtual CPUs stand for two GPUs: the same strategy, the same lines of code."""
    script = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import model, trainer
pixels = np.random.default_rng(0).integers(0, 256, (4, 7, 16, 16, 3), dtype=np.uint8)
labels = np.random.default_rng(1).integers(0, 2, (4, 7), dtype=np.int32)
ends = []
both = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for strategy in (tf.distribute.get_strategy(), both):
    tf.keras.utils.set_random_seed(0)
    with strategy.scope():
        network, average = model.create_cnn(16, 2), model.create_cnn(16, 2)
        average.set_weights(network.get_weights())
        optimizer = trainer.AdamW(1e-3, 0.01)
        optimizer.build(network.trainable_variables)
    sums = tf.Variable([0.0, 0.0], dtype=tf.float64)
    step = trainer.make_train_step(strategy, network, optimizer, sums, 0.1, np.float32([0.5, 1.5]), average, 0.9)
    for batch in zip(pixels, labels):
        step(*batch)
    step(pixels[0, :1], labels[0, :1])  # fewer pictures than devices
    ends.append((sums.numpy(), network.get_weights() + average.get_weights()))
(sums_1, weights_1), (sums_2, weights_2) = ends
np.testing.assert_allclose(sums_1, sums_2, rtol=1e-4)
for one, two in zip(weights_1, weights_2):
    np.testing.assert_allclose(one, two, atol=2e-4)
with both.scope():  # each device normalizes by its own share
    network = model.create_resnet(16, 2)
    optimizer = trainer.AdamW(1e-3, 0.01)
    optimizer.build(network.trainable_variables)
before = network.get_layer("stem_norm").moving_mean.numpy()
trainer.make_train_step(both, network, optimizer, sums)(pixels[0], labels[0])
after = network.get_layer("stem_norm").moving_mean.numpy()
assert np.isfinite(after).all() and (before != after).all(), after
"""
    finished = subprocess.run([sys.executable, "-c", script, str(PROJECT)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("flags", [("--batch-size", "0"), ("--lr", "-1"), ("--lr", "nan"), ("--epochs", "many"),
                                   ("--validation-split", "1"), ("--image-size", "4"), ("--nonsense",)])  # fmt: skip
def test_wrong_usage_is_refused_with_code_2(flags):
    assert flags[0] in run("train", *flags, code=2).stderr


def test_steps_are_in_bfloat16_where_the_cpu_has_it_and_predictions_never(trained, pictures):
    mixed = (trained.parent / "stderr.txt").read_text()
    plain = run("train", "--data-dir", pictures, "--output", "plain", *QUICK, "--no-mixed-precision").stderr
    assert ("steps in bfloat16" in mixed) == ("bfloat16 on" in mixed) == has_bfloat16()
    assert "steps in bfloat16" not in plain
    assert "bfloat16 off" in plain
    losses = np.array([[float(row["loss"]) for row in history_of(folder)] for folder in (trained, Path("plain/001"))])
    difference = np.abs(losses[0] - losses[1]).max()
    assert 1e-6 < difference < 0.01 if has_bfloat16() else difference == 0
    for said in (mixed, plain):  # bfloat16 has three digits: there LiteRT's answers would differ from the network's
        assert float(re.search(r"litert: .* differ by at most (\S+);", said)[1]) < 1e-5


def test_what_a_cpu_tells_of_itself(tmp_path, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    assert not has_bfloat16()
    assert cpu.instruction_set() is None
    for flags, widest, as_installed, bfloat16 in (
        ("sse4_1 avx avx2", "AVX2", False, False),
        ("sse4_1 avx avx2 avx_vnni", "AVX2_VNNI", True, False),
        ("sse4_1 avx avx2 avx512f avx512dq", "AVX512_CORE", False, False),
        ("sse4_1 avx avx2 avx512f avx512dq avx512_vnni", "AVX512_CORE_VNNI", True, False),
        ("sse4_1 avx avx2 avx512f avx512dq avx512_vnni avx512_bf16", "AVX512_CORE_BF16", True, True),
    ):
        cpu.CPU_INFO.write_text(f"processor : 0\nmodel name\t: A CPU, 2 GHz\nflags : fpu {flags}\n")
        assert (cpu.name(), cpu.instruction_set()) == ("A CPU, 2 GHz", widest)
        assert (cpu.has_onednn_as_installed(), has_bfloat16()) == (as_installed, bfloat16)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert (cpu.instruction_set(), has_bfloat16()) == ("AVX2", False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert (cpu.instruction_set(), has_bfloat16()) == ("AVX512_CORE_BF16", False)


def test_the_card_tells_of_the_cpu_and_a_run_on_another_says_that_it_differs(run_folder):
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


def test_a_run_of_before_pooling_came_last_predicts(run_folder, pictures):
    """Its layers had other numbers in the checkpoint."""
    photo = pictures / "dogs/dogs_1.jpg"
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
    load_best(run_folder, network)
    older.set_weights(network.get_weights())
    (best,) = (run_folder / "checkpoints/best").glob("*.index")
    tf.train.Checkpoint(network=older).write(str(best.with_suffix("")))
    got = predictions(run_folder, photo, "--runtime", "tensorflow")[str(photo)]["probabilities"]
    assert got == pytest.approx(expected, abs=1e-5)


def test_three_classes_predict_from_anywhere_without_the_training_folder(tmp_path):
    folder = draw_pictures(tmp_path / "three", 60, ("cats", "dogs", "drawings"))
    samples = {name: tmp_path / f"{name}.jpg" for name in ("cats", "dogs", "drawings")}
    for name, path in samples.items():
        shutil.copy(folder / name / f"{name}_7.jpg", path)
    run("train", "--data-dir", folder, "--output", "runs", "--image-size", 48, "--epochs", 25,
        "--batch-size", 8)  # fmt: skip
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "runs/.cache")
    (tmp_path / "elsewhere").mkdir()
    answers = predictions(tmp_path / "runs/001", *samples.values(), cwd=tmp_path / "elsewhere")
    likeliest = {name: answers[str(path)]["probabilities"] for name, path in samples.items()}
    assert {name: max(classes, key=classes.get) for name, classes in likeliest.items()} == {name: name for name in samples}
