"""train.py as a user runs it, from beginning to end."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, QUICK, assert_same_run, draw_images, error_of, history_of, predictions, run

from classifier import cpu
from classifier.cpu import has_bfloat16
from classifier.history import History
from dataset import read_train_sets


def test_a_run_from_beginning_to_end(images, tmp_path):
    finished = run("train", "--data-dir", images, "--output", "runs", *QUICK, "--seed", 3, process=True)
    for told in ("tensorflow", "device", "cats 10 + 2, dogs 10 + 2 (training + validation)", "parameters"):
        assert told in finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]
    assert "selected" in lines[0]

    card = json.loads((tmp_path / "runs/001/model.json").read_text())
    assert card["classes"] == ["cats", "dogs"]
    selected = list((tmp_path / "runs/001/checkpoints/best").glob("*.index"))
    assert [path.stem for path in selected] == [f"ckpt-{card['best']['epoch']}"]
    assert card["finished"] is True
    assert card["settings"]["seed"] == 3
    assert len(history_of(tmp_path / "runs/001")) == 2

    answer = subprocess.run(lines[-1], shell=True, capture_output=True, text=True)  # a command that works as it is
    assert answer.returncode == 0, answer.stderr
    assert "%" in answer.stdout


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(trained, images, tmp_path):
    for seed in (0, 1):  # in a folder each: the second overwrites nothing of the first
        run("train", "--data-dir", images, "--output", "runs", *QUICK, "--seed", seed)
    assert_same_run(tmp_path / "runs/001", trained)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "runs/002", trained)


def test_patience_stops_early_and_zero_never_does(images):
    settings = ("--data-dir", images, "--image-size", 32, "--lr", 1e-9, "--batch-size", 8, "--patience", 2)
    stopped = run("train", *settings, "--epochs", 12, "--output", "a")
    assert stopped.stdout.count("images/s") == 3
    assert "stopped early" in stopped.stdout
    assert run("train", "--resume", "--patience", 0, "--output", "a").stdout.count("images/s") == 9
    assert "stopped early" not in run("train", *settings, "--epochs", 3, "--output", "b").stdout


def test_of_epochs_that_differ_by_chance_the_last_is_selected(tmp_path):
    history = History(tmp_path, 0, 100)  # 0.9 of a hundred may be 0.82 in truth, 1.0 may be 0.954

    def selected(*accuracies):
        history.rows = [{"epoch": i, "val_accuracy": accuracy} for i, accuracy in enumerate(accuracies, start=1)]
        return history.selected() and history.selected()["epoch"]

    assert selected(0.8, 0.9, 0.83) == 3
    assert selected(0.8, 0.9, 0.81) == 2
    assert selected(0.8, 0.88, 0.9, 0.88, 0.81) == 4
    assert selected(0.8, 1.0, 0.96) == 3
    assert selected(0.8, 1.0, 0.95) == 2
    assert selected() is None


def test_a_batch_larger_than_the_data_is_shrunk_and_that_is_said_once(images):
    finished = run("train", "--data-dir", images, "--output", "runs", *QUICK[:4], "--batch-size", 1000, "--no-augment",
                   "--dropout", 0)  # fmt: skip
    assert finished.stderr.count("batch") == 1
    assert "20" in finished.stderr
    first, second = (float(row["loss"]) for row in history_of(Path("runs/001")))
    assert second < first - 0.001  # even the only step of the first epoch teaches something


def test_a_learning_rate_that_explodes_is_one_clear_line(images):
    finished = run("train", "--data-dir", images, "--output", "runs", *QUICK, "--lr", 1e30, "--epochs", 20,
                   "--patience", 0, code=1)  # fmt: skip
    assert "--lr" in error_of(finished)


def test_too_little_memory_is_one_clear_line(images):
    """Weights of 0.5 GB, four times, in a process that may have 4 GB of address space."""
    finished = run("train", "--data-dir", images, "--output", "runs", "--image-size", 1024, "--batch-size", 2, code=1,
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9)))  # fmt: skip
    assert "--image-size" in error_of(finished)


def test_calibration_takes_no_more_memory_than_training(images):
    """At 512 px the maps of fifty images are a gigabyte."""
    draw_images(images, 32)
    large = ("--network", "resnet", "--image-size", 512, "--epochs", 1, "--batch-size", 2)
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"  # of pytest's child it would be that of pytest
    )
    arguments = ["--data-dir", images, "--output", "runs", *map(str, large)]
    measured = subprocess.run([sys.executable, "-c", script, sys.executable, PROJECT / "train.py", *arguments],
                              capture_output=True, text=True)  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    assert int(measured.stdout) < 1_700_000  # kB


def test_where_no_cache_can_be_written_training_is_the_same(trained, images, tmp_path):
    assert list((trained.parent / ".cache").glob("*.pixels"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.cache").write_text("a file is in the way")
    finished = run("train", "--data-dir", images, "--output", "runs", *QUICK)
    assert "no cache" in finished.stderr
    assert_same_run(tmp_path / "runs/001", trained)


def test_a_later_run_reads_the_cache_and_makes_it_again_if_it_is_damaged(trained, images, tmp_path):
    def trained_again():
        run("train", "--data-dir", images, "--output", "runs", *QUICK)
        return max(tmp_path.glob("runs/0*"))

    read_train_sets(images, 32, cache_dir=tmp_path / "runs/.cache")
    (pixels,) = (tmp_path / "runs/.cache").glob("*.pixels")
    pixels.write_bytes(bytes(pixels.stat().st_size))  # all black, which no image is
    assert history_of(trained_again()) != history_of(trained)
    with open(pixels, "r+b") as file:
        file.truncate(100)
    assert_same_run(trained_again(), trained)


def test_an_image_that_changed_is_decoded_again(images, tmp_path):
    def decoded():
        sets = read_train_sets(images, 16, cache_dir=tmp_path / "cache")
        return next(sets.train.batches(100))[0]

    before = decoded()
    for pixels in tmp_path.glob("cache/*.pixels"):
        pixels.write_bytes(bytes(pixels.stat().st_size))
    assert not decoded().any()
    os.utime(images / "cats/cats_1.jpg")
    assert np.array_equal(decoded(), before)


def test_a_file_that_could_not_be_opened_is_tried_again(images, tmp_path):
    folder = tmp_path / "cache"
    image = images / "cats/cats_1.jpg"
    shutil.move(image, tmp_path / "aside.jpg")
    image.symlink_to(image)  # "Too many levels of symbolic links": an error of the file system, not of the image
    assert len(read_train_sets(images, 16, cache_dir=folder).skipped) == 1
    assert not list(folder.glob("*.json"))


def test_the_users_keras_settings_do_not_matter(images, tmp_path, trained):
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras/keras.json").write_text(
        '{"backend": "jax", "floatx": "float16", "image_data_format": "channels_first", "epsilon": 1e-7}'
    )
    environment = os.environ | {"KERAS_HOME": str(tmp_path / ".keras"), "KERAS_BACKEND": "jax", "TF_USE_LEGACY_KERAS": "1"}
    run("train", "--data-dir", images, "--output", "runs", *QUICK, env=environment)
    assert_same_run(tmp_path / "runs/001", trained)


def test_an_output_that_cannot_be_written(images, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert "--output" in error_of(run("train", "--data-dir", images, "--output", "file/runs", *QUICK, code=1))
    if os.geteuid():  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "--output" in error_of(run("train", "--data-dir", images, "--output", "locked", *QUICK, code=1))


def test_two_devices_share_a_batch_and_come_to_the_same(tmp_path):
    """Two virtual CPUs stand for two GPUs: the same strategy, the same lines of code."""
    script = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import model
from classifier.optimizer import AdamW
from train import make_train_step
pixels = np.random.default_rng(0).integers(0, 256, (4, 7, 16, 16, 3), dtype=np.uint8)
labels = np.random.default_rng(1).integers(0, 2, (4, 7), dtype=np.int32)
ends = []
both = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for strategy in (tf.distribute.get_strategy(), both):
    tf.keras.utils.set_random_seed(0)
    with strategy.scope():
        network, average = model.create_cnn(16, 2), model.create_cnn(16, 2)
        average.set_weights(network.get_weights())
        optimizer = AdamW(1e-3, 0.01)
        optimizer.build(network.trainable_variables)
    sums = tf.Variable([0.0, 0.0], dtype=tf.float64)
    step = make_train_step(strategy, network, optimizer, sums, 0.1, np.float32([0.5, 1.5]), average, 0.9)
    for batch in zip(pixels, labels):
        step(*batch)
    step(pixels[0, :1], labels[0, :1])  # fewer images than devices
    ends.append((sums.numpy(), network.get_weights() + average.get_weights()))
(sums_1, weights_1), (sums_2, weights_2) = ends
np.testing.assert_allclose(sums_1, sums_2, rtol=1e-4)
for one, two in zip(weights_1, weights_2):
    np.testing.assert_allclose(one, two, atol=2e-4)
with both.scope():  # each device normalizes by its own share
    network = model.create_resnet(16, 2)
    optimizer = AdamW(1e-3, 0.01)
    optimizer.build(network.trainable_variables)
before = network.get_layer("stem_norm").moving_mean.numpy()
make_train_step(both, network, optimizer, sums)(pixels[0], labels[0])
after = network.get_layer("stem_norm").moving_mean.numpy()
assert np.isfinite(after).all() and (before != after).all(), after
"""
    finished = subprocess.run([sys.executable, "-c", script, str(PROJECT)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("flags", [("--batch-size", "0"), ("--lr", "-1"), ("--lr", "nan"), ("--epochs", "many"),
                                   ("--validation-split", "1"), ("--image-size", "4"), ("--nonsense",)])  # fmt: skip
def test_wrong_usage_is_refused_with_code_2(flags):
    assert flags[0] in run("train", *flags, code=2).stderr


def test_steps_are_in_bfloat16_where_the_cpu_has_it_and_predictions_never(trained, images):
    mixed = (trained.parent / "stderr.txt").read_text()
    plain = run("train", "--data-dir", images, "--output", "plain", *QUICK, "--no-mixed-precision").stderr
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


def test_three_classes_predict_from_anywhere_without_the_training_folder(tmp_path):
    folder = draw_images(tmp_path / "three", 60, ("cats", "dogs", "drawings"))
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
