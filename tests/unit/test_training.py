"""The arithmetic around a training: augmentation, class weights, calibration, out-of-distribution scores, the CPU."""

import numpy as np
import pytest
from conftest import DRAWING

from classifier.base import cpu
from classifier.base.figures import new_figure, save_png
from classifier.base.metrics import calibration_error, chance_error, log_softmax
from classifier.data.augmentation import augment, random_places
from classifier.data.images import inference_batch_size
from classifier.networks.out_of_distribution import OutOfDistributionScore, left_out_area_under_roc, usual_threshold
from classifier.runs.settings import Settings
from classifier.training.batches import class_weights, size_in_epoch
from classifier.training.calibration import fit_temperature, some_of_each


def test_views_are_of_the_image_and_of_nothing_else():
    corners = np.array([[-0.5, -0.5, 1], [-0.5, 39.5, 1], [39.5, -0.5, 1], [39.5, 39.5, 1]]).T
    mirrored = 0
    for k in range(300):
        places = random_places(np.random.default_rng(k), 80, 40)
        ends = places @ corners
        assert ends.min() > -0.5 - 8
        assert ends.max() < 79.5 + 8  # turning may look a tenth over the edge: the image is continued by its reflection
        area = abs(np.linalg.det(places[:, :2])) * (40 / 80) ** 2
        assert 0.7**2 - 1e-9 <= area <= 1
        mirrored += np.linalg.det(places[:, :2]) < 0
    assert 110 < mirrored < 190


def test_a_view_depends_on_its_generator_alone():
    image = np.ascontiguousarray(DRAWING[:48, :48])
    view, same, other = (augment(image, 40, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (view.shape, view.dtype) == ((40, 40, 3), np.uint8)
    assert np.array_equal(view, same)
    assert np.abs(view.astype(int) - other).mean() > 3


def test_training_images_grow_and_never_shrink():
    sizes = lambda **flags: [size_in_epoch(Settings(epochs=8, **flags), epoch) for epoch in range(8)]  # noqa: E731
    assert sizes(start_size=64, image_size=128) == [64, 72, 80, 96, 104, 112, 128, 128]
    assert sizes(start_size=64, image_size=50) == sizes(start_size=None, image_size=50) == [50] * 8


def test_predicting_takes_no_more_memory_the_larger_the_images_are():
    """As training with --batch-size 1 does, at 512 px and more; the feature maps of fifty images would be a gigabyte."""
    pixels = [inference_batch_size(size) * size**2 for size in (64, 128, 256, 512, 2048)]
    assert max(pixels[:-1]) == 64 * 128**2
    assert inference_batch_size(2048) == 1


def test_class_weights_are_balanced_or_half_way_or_none():
    labels = np.array([0, 0, 0, 0, 1])
    assert class_weights("balanced", labels, 2).tolist() == pytest.approx([0.625, 2.5])
    assert class_weights("auto", labels, 2).tolist() == pytest.approx([5 / 6, 5 / 3])
    assert class_weights("auto", labels[1:], 2) is class_weights("none", labels, 2) is None


def test_temperature_fits_what_was_seen():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5000, 3)) * 6
    labels = np.array([rng.choice(3, p=np.exp(row)) for row in log_softmax(logits / 3)])  # three times too confident
    assert fit_temperature(logits, labels) == pytest.approx(3, rel=0.1)
    assert fit_temperature(logits[:2], logits[:2].argmax(axis=1)) > 0.5  # two correct predictions are little evidence


def test_chance_hardly_moves_the_temperature():
    """Of probabilities that are exactly right; the temperature with the least cross-entropy would be off by 0.34."""
    rng = np.random.default_rng(0)
    fitted = []
    for _ in range(100):
        logits = rng.normal(size=(40, 2)) * 3
        labels = (rng.random(40) < np.exp(log_softmax(logits))[:, 1]).astype(int)
        fitted.append(fit_temperature(logits, labels))
    assert np.abs(np.log(fitted)).mean() < 0.25


def test_calibration_error_by_hand_and_what_chance_alone_makes_it():
    assert calibration_error([0.9, 0.9, 0.6, 0.6], [True, True, True, False]) == pytest.approx(0.1)
    assert calibration_error([1.0, 1.0], [True, False]) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 1, 300)
    seen = [calibration_error(confidences, rng.random(300) < confidences) for _ in range(500)]
    assert chance_error(confidences) == pytest.approx(np.mean(seen), rel=0.05)
    assert chance_error([1.0, 1.0]) == 0


def test_the_ood_score_is_the_distance_to_the_nearest_class():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    labels = rng.integers(0, 2, 4000)
    features = ((rng.normal(size=(4000, 5)) + 6 * labels[:, None]) @ mixing).astype(np.float32)
    ood_score = OutOfDistributionScore(2)
    ood_score.fit(features, labels)
    distances = ood_score(features).numpy()
    assert np.mean(distances**2) == pytest.approx(1, rel=0.1)  # in standard deviations
    between = (3 * np.ones((1, 5)) @ mixing).astype(np.float32)  # as far from one class as from the other
    assert ood_score(between).numpy()[0] == pytest.approx(3, rel=0.1)
    threshold = usual_threshold(distances)
    assert (distances > threshold).mean() < 0.02
    assert usual_threshold(np.append(distances, 1e6)) == pytest.approx(threshold, rel=0.01)  # one odd image moves nothing
    assert threshold < ood_score(between).numpy()[0]
    apart = ood_score.distances(features).numpy()
    np.testing.assert_allclose(apart.min(axis=1), distances)
    assert left_out_area_under_roc(apart, labels) > 0.999  # the classes are 6 standard deviations apart
    assert left_out_area_under_roc(rng.normal(size=(4000, 2)), labels) == pytest.approx(0.5, abs=0.05)
    assert left_out_area_under_roc(apart, np.zeros(4000, int)) == 0.5  # there is nothing to compare with


def test_every_class_is_among_the_images_that_the_ood_score_is_fitted_to():
    labels = np.array([0] * 5000 + [1] + [2] * 4000)
    chosen = some_of_each(labels, 3000, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [1000, 1, 1000]
    assert len(set(chosen)) == 2001
    assert len(some_of_each(np.arange(5000), 3000, np.random.default_rng(0))) == 5000


AVX512 = "sse4_1 avx avx2 avx512f avx512dq"
CPUS = [  # flags in /proc/cpuinfo, the widest instructions, whether TensorFlow would use oneDNN by itself, bfloat16
    ("sse4_1 avx avx2", "AVX2", False, False),
    ("sse4_1 avx avx2 avx_vnni", "AVX2_VNNI", True, False),
    (AVX512, "AVX512_CORE", False, False),
    (f"{AVX512} avx512_vnni", "AVX512_CORE_VNNI", True, False),
    (f"{AVX512} avx512_vnni avx512_bf16", "AVX512_CORE_BF16", True, True),
]


@pytest.mark.parametrize(("flags", "widest", "as_installed", "bfloat16"), CPUS)
def test_what_a_cpu_tells_of_itself(tmp_path, monkeypatch, flags, widest, as_installed, bfloat16):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    assert not cpu.has_bfloat16()
    assert cpu.instruction_set() is None
    cpu.CPU_INFO.write_text(f"processor : 0\nmodel name\t: A CPU, 2 GHz\nflags : fpu {flags}\n")
    assert (cpu.name(), cpu.instruction_set()) == ("A CPU, 2 GHz", widest)
    assert (cpu.has_onednn_as_installed(), cpu.has_bfloat16()) == (as_installed, bfloat16)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert (cpu.instruction_set(), cpu.has_bfloat16()) == ("AVX2", False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert (cpu.instruction_set(), cpu.has_bfloat16()) == (widest, False)


@pytest.mark.filterwarnings("error")
def test_class_names_in_any_script_are_drawn_without_a_warning(tmp_path):
    figure = new_figure(2, 1)
    figure.text(0.1, 0.5, "猫 🔵")  # matplotlib's font lacks these
    save_png(figure, tmp_path / "names.png")
