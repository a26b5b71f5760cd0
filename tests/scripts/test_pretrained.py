"""Pretrained networks: a head on frozen features first, then fine-tuning."""

import re
import shutil
from pathlib import Path

import pytest
import tensorflow as tf
from conftest import error_of, predictions, run, train
from keras.src.utils import file_utils
from run_folders import assert_runtimes_agree, change_metadata, history_of, metadata_of, newest_checkpoint

from classifier.networks.pretrained import downloads

FINE_TUNING = ("--fine-tune", "auto", "--fine-tune-lr", 2e-4, "--fine-tune-epochs", 2)
RESUME = ("train", "--resume", "--output", "runs")


@pytest.fixture(scope="session")
def fine_tuned(made_once, pretrained):
    """A copy of the run `pretrained`, fine-tuned later, with its features in memory. Not to be changed."""

    def make(folder):
        (folder / "runs").mkdir()
        (folder / "runs/.cache").write_text("a file is in the way")
        shutil.copytree(pretrained, folder / "runs/001")
        change_metadata(folder / "runs/001", settings={"weights": "gone.h5"})  # all that is needed is in the run
        finished = run("train", "--resume", folder / "runs/001", *FINE_TUNING)
        assert "no cache of features" in finished.stderr
        (folder / "stdout.txt").write_text(finished.stdout)

    return made_once("fine_tuned", make) / "runs" / "001"


def variances_of(run_folder):
    """The averages of each batch normalization in the selected network of a run."""
    reader = tf.train.load_checkpoint(str(newest_checkpoint(run_folder, "selected")))
    names = [name for name in reader.get_variable_to_shape_map() if "/moving_variance/" in name]
    return [reader.get_tensor(name) for name in names]


def test_a_head_stops_early_and_says_what_it_found(pretrained):
    losses = [float(row["val_loss"]) for row in history_of(pretrained)]
    head = len(losses)
    assert head == metadata_of(pretrained)["head_epochs"] < 60
    assert losses[-2] == min(losses)
    stdout, stderr = ((pretrained.parent / name).read_text() for name in ("stdout.txt", "stderr.txt"))
    shown = [int(re.match(r"epoch +(\d+)/60", line)[1]) for line in stdout.splitlines() if line.startswith("epoch")]
    assert shown == [*range(10, head, 10), head]  # of a head, every tenth and the last
    assert f"selected: epoch {head - 1}," in stdout
    assert "unknown: expect it for many photographs of other things" in stdout
    assert "likely to help next: " in stderr
    assert "3,586 of 3,236,034 parameters are trained" in stderr


def test_a_head_is_fine_tuned_later(pretrained, fine_tuned, images, photo):
    shutil.copytree(pretrained, "runs/001")
    head = metadata_of("runs/001")["head_epochs"]
    resume = (*RESUME, "--data-dir", images)
    assert "has no layer" in error_of(run(*resume, "--fine-tune", "conv_99", code=2))  # a typing error costs nothing
    too_few = run(*resume, "--fine-tune", "conv_pw_11", "--epochs", 1, code=2)
    assert f"has done {head} epochs already" in error_of(too_few)

    before = predictions("runs", photo)
    failed = run(*resume, *FINE_TUNING, "--fine-tune-lr", 1e30, code=1)
    assert re.search(r"--resume, from \S+/fine_tuning/ckpt-\d+, with a lower --fine-tune-lr than 1e\+30", error_of(failed))
    assert predictions("runs", photo) == before  # it is as finished as it was

    assert f"epoch {head + 2}/{head + 2}" in (fine_tuned.parents[1] / "stdout.txt").read_text()
    settings = metadata_of(fine_tuned)["settings"]
    assert (settings["fine_tune"], settings["fine_tune_epochs"], settings["fine_tune_lr"]) == ("conv_dw_12", 2, 2e-4)
    copied = shutil.copytree(fine_tuned, "runs/002")
    assert "began with fine-tune conv_dw_12" in error_of(run(*resume, "--fine-tune", "9", code=2))
    shutil.rmtree(Path(copied, "checkpoints/fine_tuning"))  # a phase that lost its checkpoints is not trained again
    assert "are gone" in error_of(run(*resume, code=3))


@pytest.mark.usefixtures("no_litert")
def test_batch_normalization_keeps_its_statistics_in_fine_tuning_and_learns_them_from_nothing(images, fine_tuned):
    assert sum((variance == 1).all() for variance in variances_of(fine_tuned)) == 27  # all but that of the head
    train(images, "--network", "mobilenet", "--weights", "none", "--epochs", 1)
    learnt = [abs(variance - 1).mean() > 0.1 for variance in variances_of("runs/001")]  # Keras' own would be at 0.003
    assert sum(learnt) == 27  # after 3 steps


def test_litert_predicts_as_tensorflow(pretrained, fine_tuned, photo):
    """The last features know little but the classes after fine-tuning, so the OOD score is of others."""
    for run_folder, features in ((pretrained, "last"), (fine_tuned, "maps")):
        by_litert, by_tensorflow = (answers[str(photo)]["ood_score"] for answers in assert_runtimes_agree(run_folder, photo))
        assert by_litert == pytest.approx(by_tensorflow, abs=2e-4)
        assert metadata_of(run_folder)["ood"]["features"] == features


@pytest.mark.parametrize(
    ("flags", "code", "problem"),
    [
        (("--fine-tune", "3"), 2, "--fine-tune"),
        (("--fine-tune-lr", 1), 2, "--fine-tune-lr"),
        (("--weights", "none"), 2, "--weights"),
        (("--start-size", 32), 2, "--start-size"),
        (("--network", "mobilenet", "--weights", "none", "--fine-tune", "3"), 2, "--fine-tune"),
        (("--network", "mobilenet", "--image-size", 16), 1, "at least 32x32"),
        (
            ("--network", "mobilenet", "--weights", "nowhere.h5"),
            3,
            "cannot read the weights nowhere.h5: there is no such file",
        ),
        (("--network", "mobilenet", "--fine-tune", "conv_99"), 2, "conv_pw_13_relu"),  # one of those that it has
    ],
)
def test_settings_that_are_not_for_the_network_are_one_clear_line(images, flags, code, problem):
    assert problem in error_of(train(images, *flags, code=code))
    assert not list(Path("runs").glob("0*"))  # or --resume would choose one that never began


def test_weights_that_cannot_be_downloaded_are_one_clear_line(images, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # what Keras made of it when it was imported
    for offline, flag in (
        (train(images, "--network", "mobilenet", code=1), True),
        (run("evaluate", images, "--zero-shot", "mobilenet_v2", code=1), False),
    ):
        assert re.search(rf"{tmp_path}/models/\S+ is missing, and https://\S+ cannot be downloaded \(", error_of(offline))
        assert ("--weights FILE" in offline.stderr) is flag  # evaluate.py has no such flag
    assert not list(Path("runs").glob("0*"))

    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", "elsewhere")  # Keras' choice if it cannot write to KERAS_HOME
    there = tmp_path / "models/weights.h5"
    there.parent.mkdir(exist_ok=True)
    there.write_text("weights")
    with downloads():
        assert file_utils.get_file("weights.h5", "https://localhost/weights.h5", cache_subdir="models") == str(there)
