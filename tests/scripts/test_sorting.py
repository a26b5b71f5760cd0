"""predict.py --copy-to: images are sorted into a folder for each class; and the Python interface."""

import errno
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import DRAWING, error_of, predictions, run, save
from run_folders import change_metadata

from classifier import Classifier
from classifier.predicting.sorting import folder_names

SURE = ("--min-confidence", 0.5)  # of two classes, one always is


@pytest.fixture
def known(run_folder):
    """A run to which no image is unlike those of training."""
    change_metadata(run_folder, ood={"threshold": 1e9})
    return run_folder


def files_in(folder):
    """{relative path: content} of all files but hidden ones."""
    paths = [path for path in Path(folder).rglob("*") if not path.is_dir() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_copies_come_into_class_folders_and_again_only_what_is_missing(known, images):
    originals = files_in(images)
    os.utime(images / "cats/cats_1.jpg", (1e9, 1e9))
    arguments = ("predict", "--model", known, images, *SURE, "--copy-to", images / "sorted")
    expected = {
        f"{answer['class']}/{Path(path).name}": Path(path).read_bytes()
        for path, answer in predictions(known, images).items()
    }
    finished = run(*arguments)
    assert len(finished.stdout.splitlines()) == 24
    assert files_in(images / "sorted") == expected
    copied = {path: path.stat().st_mtime_ns for path in (images / "sorted").rglob("*.jpg")}
    assert 1e18 in copied.values()

    missing = next(iter(copied))
    missing.unlink()
    (images / "sorted/.partial").write_bytes(b"of a process that was killed")
    finished = run(*arguments)
    assert "ignored: 23 images that are in" in finished.stderr
    assert "(23 were there already)" in finished.stderr
    assert {path: path.stat().st_mtime_ns for path in (images / "sorted").rglob("*.jpg")} == copied
    assert not (images / "sorted/.partial").exists()
    assert "choose another folder" in error_of(run(*arguments[:3], images / "sorted", *arguments[4:], code=2))
    shutil.rmtree(images / "sorted")
    assert files_in(images) == originals


def test_other_images_of_the_same_name_get_a_number_and_nothing_is_overwritten(known):
    for k, folder in enumerate(("a", "b", "c")):
        save(Path("in", folder, "1.png"), np.roll(DRAWING, min(k, 1), axis=0))  # c has a copy of b's
    Path("in/bad.jpg").write_bytes(b"")
    mine = Path("out/not_sure/1_2.png")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for _ in range(2):
        finished = run("predict", "--model", known, "in", "--min-confidence", 1, "--copy-to", "out", code=1)
        assert error_of(finished) == "error: in/bad.jpg: empty file"
        a, b = Path("in/a/1.png").read_bytes(), Path("in/b/1.png").read_bytes()
        assert files_in("out/not_sure") == {"1.png": a, "1_2.png": b"mine", "1_3.png": b}


def test_a_full_disk_is_one_line_and_what_was_copied_is_whole(known, images, monkeypatch):
    arguments = ("predict", "--model", known, images, *SURE, "--copy-to", "out")
    copy = shutil.copyfile

    def fail_at_the_fifth(source, target):
        copy(source, target)
        if len(files_in("out")) == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as fault:
        fault.setattr(shutil, "copyfile", fail_at_the_fifth)
        assert error_of(run(*arguments, code=1)) == "error: cannot sort into out: No space left on device: out/.partial"
    assert len(files_in("out")) == 4
    assert not Path("out/.partial").exists()
    assert "(4 were there already)" in run(*arguments).stderr
    assert sorted(files_in("out").values()) == sorted(files_in(images).values())
    Path("file").write_text("mine")
    assert "cannot sort into file: it is not a folder" in error_of(run(*arguments[:-1], "file", code=2))


def test_images_that_are_not_sure_or_unknown_have_folders_of_their_own(known, images, photo):
    def folders(*flags, **metadata):
        shutil.rmtree("out", ignore_errors=True)
        change_metadata(known, **metadata)
        run("predict", "--model", known, photo, "--copy-to", "out", *flags)
        return [path.name for path in Path("out").iterdir() if path.is_dir()]

    assert folders("--min-confidence", 1) == ["not_sure"]
    assert folders(ood={"threshold": 1e-9}) == ["unknown"]
    assert folders(classes=["unknown", "not_sure"]) == ["(unknown)"]
    assert folders("--min-confidence", 1, ood={"threshold": 1e9}) == ["(not_sure)"]
    assert folders(*SURE, classes=["..", "a/b"]) in (["__"], ["a_b"])
    for name in ("e\u0301", "a\u0301"):  # as macOS writes é and á: folders that are there already
        Path("out/sorted", name).mkdir(parents=True)
    change_metadata(known, classes=["\xe9", "\xe1"])
    run("predict", "--model", known, photo, "--copy-to", "out/sorted", *SURE)
    assert {path.name for path in Path("out/sorted").iterdir() if path.is_dir()} == {"e\u0301", "a\u0301"}
    assert folders(temperature=1e4) == ["not_sure"]  # the classes are about equally likely
    names = folder_names(["a/b", "a:b", "A_B", "..", "", "nul.txt", "dots...", "Über", ".git"])
    assert len({name.casefold() for name in names.values()}) == len(names)
    assert names["nul.txt"] == "_nul.txt"
    assert names["Über"] == "Über"
    assert not any(name.startswith(".") or set(name) & set('/\\:*?"<>|') for name in names.values())


def test_python_code_gets_the_same_answers_for_paths_and_arrays(trained, photo):
    Path("bad.jpg").write_bytes(b"")
    array = cv2.imread(str(photo), cv2.IMREAD_COLOR_RGB)
    for runtime in ("litert", "tensorflow"):
        classifier = Classifier(str(trained), runtime)
        expected = predictions(trained, photo, "--runtime", runtime)[str(photo)]
        of_path, of_array, bad = classifier.predict([photo, array, "bad.jpg"])
        assert (of_path.path, of_array.path) == (photo, None)
        for answer in (of_path, of_array):
            assert answer.predicted_class == expected["class"]
            assert answer.probabilities == pytest.approx(expected["probabilities"], abs=1e-6)
            assert answer.ood_score == pytest.approx(expected["ood_score"], abs=1e-4)
        assert (bad.predicted_class, bad.reason) == (None, "empty file")
    (unsure,) = classifier.predict([array], min_confidence=1)
    assert unsure.predicted_class == "unknown"
    for wrong in ([array[:, :, 0]], [array / 255], [array[:0]], str(photo)):
        with pytest.raises(ValueError, match="an image is|a list"):
            list(classifier.predict(wrong))
