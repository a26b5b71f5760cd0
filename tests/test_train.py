"""train.py as a user runs it, from beginning to end."""

import fcntl
import itertools
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, draw_images, error_of, predictions, run, save, train
from run_folders import assert_same_run, damage, history_of, metadata_of, newest_tensors

from classifier.base import cpu
from classifier.base.files import digest_of
from classifier.data.cache import checksum_of
from classifier.runs.history import History
from classifier.training import log as training_log
from classifier.training import optimizer
from dataset import read_train_sets


def test_a_run_from_beginning_to_end(images, tmp_path):
    finished = train(images, "--seed", 3, process=True)
    for told in ("tensorflow", "device", "cats 10 + 2, dogs 10 + 2 (training + validation)", "parameters"):
        assert told in finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]
    assert "selected" in lines[0]

    metadata = metadata_of("runs/001")
    assert metadata["classes"] == ["cats", "dogs"]
    selected = list((tmp_path / "runs/001/checkpoints/selected").glob("*.index"))
    assert [path.stem for path in selected] == [f"ckpt-{metadata['best']['epoch']}"]
    assert metadata["finished"] is True
    assert metadata["settings"]["seed"] == 3
    assert len(history_of("runs/001")) == 2

    predicted = subprocess.run(lines[-1], shell=True, capture_output=True, text=True)  # a command that works as it is
    assert predicted.returncode == 0, predicted.stderr
    assert "%" in predicted.stdout


def test_another_seed_or_no_augmentation_gives_other_weights(trained, images):
    for flags in (("--seed", 1), ("--no-augment",)):  # in a folder each: the second overwrites nothing of the first
        train(images, *flags)
    for other in ("runs/001", "runs/002"):
        assert history_of(other) != history_of(trained)


def test_patience_stops_early_and_zero_never_does(images):
    settings = ("--lr", 1e-9, "--patience", 2)
    stopped = train(images, *settings, "--epochs", 12)
    assert stopped.stdout.count("images/s") == 3
    assert "stopped early" in stopped.stdout
    on = run("train", "--resume", "--patience", 0, "--output", "runs").stdout
    assert on.count("images/s") == 9
    assert "stopped early" not in on


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


def test_fine_tuning_that_is_no_better_does_not_replace_the_head(tmp_path):
    history = History(tmp_path, 0, 100, head_epochs=2)

    def selected(*rows):
        history.rows = [{"epoch": i, "val_accuracy": a, "val_loss": loss} for i, (a, loss) in enumerate(rows, start=1)]
        return history.selected()["epoch"]

    head = (0.89, 0.4), (0.9, 0.3)
    assert selected(*head, (0.89, 0.35)) == 2
    assert selected(*head, (0.89, 0.35), (0.89, 0.29)) == 4
    assert selected(*head, (0.91, 0.35), (0.88, 0.36)) == 3
    assert selected(*head, (0.89, 0.28), (0.9, 0.31)) == 3


def test_a_batch_larger_than_the_data_is_shrunk_and_that_is_said_once(images):
    finished = train(images, "--batch-size", 1000, "--no-augment", "--dropout", 0)
    assert finished.stderr.count("batch") == 1
    assert "20" in finished.stderr
    first, second = (float(row["loss"]) for row in history_of("runs/001"))
    assert second < first - 0.001  # even the only step of the first epoch teaches something


@pytest.mark.long
def test_too_little_memory_is_one_clear_line(images):
    """Weights of 0.5 GB, four times, in a process that may have 4 GB of address space."""
    limit_memory = lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))  # noqa: E731
    refused = train(images, "--image-size", 1024, "--batch-size", 2, code=1, preexec_fn=limit_memory)
    assert "--image-size" in error_of(refused)


@pytest.mark.long
def test_calibration_takes_no_more_memory_than_training(images):
    """At 512 px the maps of fifty images are a gigabyte."""
    draw_images(images, 32)
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"  # of pytest's child it would be that of pytest
    )
    large = ["--network", "resnet", "--image-size", "512", "--epochs", "1", "--batch-size", "2", "--output", "runs"]
    command = [sys.executable, PROJECT / "train.py", *large, "--data-dir", images]
    measured = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    assert measured.returncode == 0, measured.stderr
    assert int(measured.stdout) < 1_900_000  # kB; 1.4 million with Keras 3.15, 1.7 with 3.12


def blacken(pixels):
    """Make all images in a cache black, which none is, with a checksum that fits: it shows whether the cache is read."""
    pixels.write_bytes(bytes(pixels.stat().st_size))
    index = pixels.with_suffix(".json")
    text = json.dumps(json.loads(index.read_text().split("\n")[1]) | {"checksum": checksum_of(pixels)})
    index.write_text(f"{digest_of(text.encode())}\n{text}")


def test_a_later_run_reads_the_cache_and_makes_it_again_if_it_is_damaged(trained, images, tmp_path):
    assert list((trained.parent / ".cache").glob("*.pixels"))
    read_train_sets(images, 32, cache_dir=tmp_path / "runs/.cache")
    (pixels,) = (tmp_path / "runs/.cache").glob("*.pixels")
    blacken(pixels)
    train(images)
    assert history_of("runs/001") != history_of(trained)
    damage(pixels)
    assert "is damaged" in train(images).stderr
    assert_same_run("runs/002", trained)


def test_an_image_that_changed_or_could_not_be_opened_is_decoded_again(images, tmp_path):
    image = images / "cats/cats_1.jpg"

    def decoded():
        sets = read_train_sets(images, 16, cache_dir=tmp_path / "cache")
        return next(sets.train.batches(100))[0]

    before = decoded()
    for pixels in tmp_path.glob("cache/*.pixels"):
        blacken(pixels)
    assert not decoded().any()
    os.utime(image)
    assert np.array_equal(decoded(), before)

    image.unlink()
    image.symlink_to(image)  # "Too many levels of symbolic links": an error of the file system, not of the image
    assert len(read_train_sets(images, 16, cache_dir=tmp_path / "other").skipped) == 1
    assert not list(tmp_path.glob("other/*.json"))


def test_without_a_cache_and_with_any_settings_of_keras_training_is_the_same(images, tmp_path, trained):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.cache").write_text("a file is in the way")
    odd_settings = '{"backend": "jax", "floatx": "float16", "image_data_format": "channels_first", "epsilon": 1e-7}'
    (tmp_path / "keras.json").write_text(odd_settings)
    environment = os.environ | {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax", "TF_USE_LEGACY_KERAS": "1"}
    assert "no cache" in train(images, env=environment).stderr
    assert_same_run("runs/001", trained)


def test_with_room_for_some_images_in_the_cache_training_is_the_same(images, trained):
    (images / "cats/cats_2.jpg").with_name("a.jpg").write_bytes(b"no image")
    limited = train(images, "--cache-limit", 10.5 * 32 * 32 * 3 / 1e9)
    assert limited.stderr.count("at most 10 images are kept decoded") == 1
    assert [path.stat().st_size for path in Path("runs/.cache").glob("*.pixels")] == [10 * 32 * 32 * 3]
    assert_same_run("runs/001", trained)


def test_a_file_system_without_locks(images, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: os.open("nowhere", os.O_RDONLY))  # raises OSError
    train(images)


def test_a_loss_that_explodes_names_the_step_its_images_and_the_last_good_checkpoint(images):
    first = train(images, "--lr", 1e30, "--epochs", 20, code=1)
    assert re.search(
        r"loss became infinite or NaN in epoch 1, step [123] of 3: start a new training, with a lower --lr", error_of(first)
    )
    assert not list(Path("runs").glob("0*"))
    train(images, "--epochs", 1)
    command = ("train", "--resume", "runs/001", "--epochs", 20)
    exploded = run(*command, "--lr", 1e30, code=1)
    number, step = re.search(
        r"in epoch (\d+), step (\d) of 3: --resume, from runs/001/checkpoints/training/ckpt-\d+, with a "
        r"lower --lr than 1e\+30",
        error_of(exploded),
    ).groups()
    (named,) = [line for line in exploded.stderr.splitlines() if line.startswith("images of this step: ")]
    sets = read_train_sets(images, 32)
    *_, (_, labels) = itertools.islice(sets.train.batches(8, 0, int(number) - 1), int(step))
    paths = named.removeprefix("images of this step: ").split(", ")
    assert [sets.classes.index(Path(path).parent.name) for path in paths] == labels.tolist()
    resumed = run(*command[:3], "--lr", 1e-3, "--epochs", 2)
    assert "epoch 2/2" in resumed.stdout
    assert "cannot change" in error_of(run(*command[:3], "--lr", 1e-4, code=2))  # nothing would be trained at that rate
    assert all(math.isfinite(float(row["val_loss"])) for row in history_of("runs/001"))


def test_images_that_show_nothing_and_a_network_no_better_than_chance_are_said(trained):
    for number in range(8):
        save(Path("black", "cats" if number % 2 else "dogs", f"{number}.png"), np.zeros((40 + number, 40, 3), np.uint8))
    said = train("black", "--epochs", 1).stderr
    assert "warning: all 8 images show nothing but one colour, such as black/" in said
    assert re.search("the network predicts '(cats|dogs)' for every validation image", said)
    said = (trained.parent / "stderr.txt").read_text()
    assert re.search("no better than always predicting|for every validation image", said)


def test_an_output_that_cannot_be_written_is_one_clear_line(images, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert "--output" in error_of(train(images, "--output", "file/runs", code=1))
    if os.geteuid():  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "--output" in error_of(train(images, "--output", "locked", code=1))


@pytest.mark.parametrize(
    "flags",
    [
        ("--batch-size", "0"),
        ("--lr", "-1"),
        ("--lr", "nan"),
        ("--epochs", "many"),
        ("--validation-split", "1"),
        ("--image-size", "4"),
        ("--nonsense",),
    ],
)
def test_wrong_usage_is_refused_with_code_2(flags):
    assert flags[0] in run("train", *flags, code=2).stderr


def test_steps_are_in_bfloat16_where_the_cpu_has_it_and_predictions_never(trained, images):
    mixed = (trained.parent / "stderr.txt").read_text()
    plain = train(images, "--no-mixed-precision").stderr
    assert ("steps in bfloat16" in mixed) == ("bfloat16 on" in mixed) == cpu.has_bfloat16()
    assert "steps in bfloat16" not in plain
    assert "bfloat16 off" in plain
    losses = np.array([[float(row["loss"]) for row in history_of(folder)] for folder in (trained, "runs/001")])
    difference = np.abs(losses[0] - losses[1]).max()
    assert 1e-6 < difference < 0.01 if cpu.has_bfloat16() else difference == 0
    for said in (mixed, plain):  # bfloat16 has three digits: there LiteRT's probabilities would differ from the network's
        assert float(re.search(r"litert: .* differ by at most (\S+);", said)[1]) < 1e-5


def test_what_a_cpu_tells_of_itself(tmp_path, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    assert not cpu.has_bfloat16()
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
        assert (cpu.has_onednn_as_installed(), cpu.has_bfloat16()) == (as_installed, bfloat16)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert (cpu.instruction_set(), cpu.has_bfloat16()) == ("AVX2", False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert (cpu.instruction_set(), cpu.has_bfloat16()) == ("AVX512_CORE_BF16", False)


def test_three_classes_predict_from_anywhere_without_the_training_folder(tmp_path):
    folder = draw_images(tmp_path / "three", 60, ("cats", "dogs", "drawings"))
    samples = {shutil.copy(folder / name / f"{name}_7.jpg", tmp_path): name for name in ("cats", "dogs", "drawings")}
    train(folder, "--image-size", 48, "--epochs", 25)
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "runs/.cache")
    (tmp_path / "elsewhere").mkdir()
    predicted = predictions(tmp_path / "runs/001", *samples, cwd=tmp_path / "elsewhere")
    for path, name in samples.items():
        probabilities = predicted[path]["probabilities"]
        assert max(probabilities, key=probabilities.get) == name


def test_minutes_choose_the_epochs_once(images):
    run("train", "--data-dir", images, "--output", "runs", "--image-size", 32, "--minutes", 0.02)
    epochs = len(history_of("runs/001"))
    assert 1 <= epochs <= 100
    assert metadata_of("runs/001")["settings"]["epochs"] == epochs
    run("train", "--resume", "--output", "runs")
    assert len(history_of("runs/001")) == epochs


def test_layers_for_gpus_compute_in_bfloat16(images, monkeypatch):
    flags = ["--epochs", 1, "--dropout", 0, "--lr", 1e-4]
    train(images, *flags, "--no-mixed-precision")
    monkeypatch.setattr(optimizer, "gpus_have_bfloat16", lambda: True)  # the layers that are made for GPUs, on a CPU
    mixed = train(images, *flags)
    assert "steps in bfloat16" in mixed.stderr
    assert float(re.search(r"litert: .* differ by at most (\S+);", mixed.stderr)[1]) < 1e-5
    assert not [name for name, tensor in newest_tensors("runs/002").items() if "bfloat16" in str(tensor.dtype)]
    losses = [float(history_of(f"runs/00{number}")[0]["loss"]) for number in (1, 2)]
    assert 1e-6 < abs(losses[0] - losses[1]) < 0.02


def test_a_gpu_that_is_not_used_is_said_and_many_classes_are_summed_up(tmp_path, monkeypatch, images):
    (tmp_path / "gpus/0").mkdir(parents=True)
    (tmp_path / "gpus/0/information").write_text("Model: \t\t NVIDIA A100\nIRQ:   \t\t 33\n")
    monkeypatch.setattr(cpu, "NVIDIA_GPUS", tmp_path / "gpus")
    monkeypatch.setattr(training_log, "MOST_NAMED", 1)
    said = train(images, "--epochs", 1).stderr
    assert "device     NVIDIA A100 not used: " in said
    assert "images     20 + 4 of 2 classes, the fewest of cats: 10 + 2 (training + validation)" in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cpu.unused_gpus() == []
