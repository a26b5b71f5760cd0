"""Explanations: heat maps that mark what a network looks at, and pictures of convolutions."""

from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from conftest import DRAWING, encoded, error_of, predictions, run, save, train
from run_folders import change_metadata

from classifier import Classifier
from classifier.data.images import fit_square
from classifier.networks.by_name import create_network
from classifier.pages.explanations import Explainer, in_shape, overlay
from classifier.pages.feature_maps import apply_kernel
from experiments.deletion import drops_of

SIZE, SIDE = 48, 14


def draw_squares(is_red, rng):
    """Grey noise, a blue square, and a red one if `is_red`, at two places; the image and a mask of the last square."""
    image = rng.integers(60, 140, (SIZE, SIZE, 3)).astype(np.uint8)
    first, second = rng.permutation([(y, x) for y in (0, 1) for x in (0, 1)])[:2] * SIZE // 2
    for (top, left), colour in ((first, (0, 0, 255)), (second, (255, 0, 0)))[: 1 + is_red]:
        top, left = rng.integers(0, SIZE // 2 - SIDE, 2) + (top, left)
        square = slice(top, top + SIDE), slice(left, left + SIDE)
        image[square] = colour
    mask = np.zeros((SIZE, SIZE), bool)
    mask[square] = True
    return image, mask


@pytest.fixture(scope="session")
def squares(made_once):
    """A run that tells whether an image has a red square. Not to be changed."""

    def make(folder):
        for is_red, name in enumerate(("blue", "red")):
            for k in range(80):
                save(folder / f"images/{name}/{k}.png", draw_squares(is_red, np.random.default_rng([is_red, k]))[0])
        flags = ("--image-size", SIZE, "--epochs", 10, "--batch-size", 16)
        train(folder / "images", *flags, "--output", folder / "runs")

    return made_once("squares", make) / "runs/001"


def test_blanking_what_is_marked_changes_the_prediction_and_blanking_as_much_elsewhere_does_not(squares):
    classifier = Classifier(squares)
    explainer = Explainer(classifier.run)
    drops, on_square, rng = [], [], np.random.default_rng(0)
    for k in range(20):
        image, red = draw_squares(True, np.random.default_rng([2, k]))
        class_index, heat = explainer.explain(image)
        assert class_index == 1
        drops.append(drops_of(classifier, image, class_index, heat, rng))
        on_square.append(heat[red].sum() / heat.sum())
    where_marked, elsewhere = np.mean(drops, axis=0)
    assert where_marked > 0.5
    assert where_marked > 4 * elsewhere
    assert np.mean(on_square) > 0.5  # the square covers 9 % of the image


@pytest.mark.parametrize("name", ["cnn", "resnet", "mobilenet"])
def test_the_parts_add_up_to_the_score(name):
    size, rng = 32, np.random.default_rng(0)
    network = create_network(name, size, 3)
    last = network.layers[-1]
    last.set_weights([rng.normal(size=last.kernel.shape), rng.normal(size=3)])
    constants = last.bias.numpy()
    if name == "cnn":
        network.get_layer("fc1").bias.assign(np.zeros(128))  # with it, there is a constant for each active unit
    if name == "mobilenet":
        for layer in network.get_layer("backbone").layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.gamma.assign(np.full(layer.gamma.shape, 6.0))  # or features would be 0 but for rounding
        layer = network.get_layer("standardize")
        mean, variance = rng.normal(size=layer.moving_mean.shape), rng.uniform(0.5, 2, layer.moving_variance.shape)
        layer.set_weights([mean, variance])
        constants = constants - (mean / np.sqrt(variance + 1e-7)) @ last.kernel.numpy()
    image = fit_square(DRAWING, size, "squash")
    logits = network(image[None]).numpy()[0]
    scores = logits - constants
    explainer = Explainer(None, network)
    for class_index in range(3):
        chosen, parts = explainer.contributions(image, class_index)
        assert chosen == class_index
        assert len(parts) == (3 if name == "mobilenet" else 1)  # sizes of maps
        assert sum(part.sum() for part in parts) == pytest.approx(scores[class_index] - scores.mean(), rel=1e-3, abs=1e-3)
    class_index, heat = explainer.explain(image)
    assert class_index == logits.argmax()
    assert (heat.shape, heat.dtype, heat.max()) == ((size, size), np.float32, 1)
    assert heat.min() >= 0
    assert overlay(image, heat).shape == image.shape


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_a_heat_map_lies_where_it_belongs_on_the_whole_photo(fit):
    photo = np.zeros((90, 160, 3), np.uint8)
    photo[20:50, 50:90] = 255
    heat = fit_square(photo, 64, fit)[:, :, 0] / np.float32(255)  # as if what is white were marked
    whole = in_shape(heat, (90, 160), fit)
    assert whole.shape == (90, 160)
    shown = slice(35, 125) if fit == "crop" else slice(None)
    assert np.abs(whole - photo[:, :, 0] / 255)[:, shown].mean() < 0.03
    assert fit != "crop" or not whole[:, :35].any()


def test_a_picture_of_the_photo_and_the_heat_map(run_folder):
    photo = save(Path("größe $x.png"), cv2.resize(DRAWING, (200, 50)))
    target = Path("größe $x_explained.png")
    command = ("explain", photo, "--model", run_folder)
    name, probability = next(iter(predictions(run_folder, photo)[str(photo)]["probabilities"].items()))
    for limit, prediction in (
        (1e-3, f"unknown, unlike the training images ({name} {probability:.1%})"),
        (1e3, f"{name} {probability:.1%}"),
    ):
        change_metadata(run_folder, ood={"threshold": limit})
        assert run(*command).stdout == f"{photo}: {prediction}, see '{target}'\n"
    height, width = cv2.imread(str(target)).shape[:2]
    assert width > 2 * 480 > 2 * height  # two photos of 480 × 120 pixels, side by side
    pictures = [target.read_bytes()]
    for class_name in ("cats", "dogs"):
        run(*command, "--class", class_name)  # a picture of explain.py is replaced
        pictures.append(target.read_bytes())
    assert pictures[0] in pictures[1:]
    assert len(set(pictures)) == 2


def test_a_picture_of_convolutions(trained, photo):
    run("explain", photo, "--model", trained, "--filters", "--output", "pictures/lesson.png")
    picture = cv2.imread("pictures/lesson.png")
    assert picture.shape[1] == 1100
    edge = np.zeros((9, 9), np.uint8)
    edge[:, 5:] = 100
    assert apply_kernel(edge, "Sobel x")[4].tolist() == [0, 0, 0, 0, 100, 100, 0, 0, 0]
    assert not apply_kernel(edge, "Sobel y").any()
    assert apply_kernel(edge, "Laplacian")[4, 4:6].tolist() == [100, -100]
    assert apply_kernel(edge, "box blur")[4, 4:6].round().tolist() == [33, 67]
    assert apply_kernel(edge, "sharpen")[4, 4:6].tolist() == [-100, 200]


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--class", "cows"], 2, "there is no class 'cows', only cats, dogs"),
        (["--class", "cats", "--filters"], 2, "leave out --class"),
        (["mine.png", "--output", "one.png"], 2, "is one file, for 2 images"),
        (["--output", "mine.png"], 2, "choose another --output"),
        ([], 2, "choose another --output"),
        (["--output", "mine.png/folder"], 1, "cannot write"),
        (["no_such_file.jpg", "--output", "pictures"], 1, "no_such_file.jpg"),
    ],
)
def test_errors_are_one_line_and_nothing_is_lost(trained, photo, arguments, code, problem):
    mine = [save(Path("mine.png")), save(Path("dogs_1_explained.png"))]
    assert problem in error_of(run("explain", "--model", trained, photo, *arguments, code=code))
    assert [path.read_bytes() for path in mine] == [encoded(".png")] * 2


def test_photos_of_the_same_name_and_one_that_is_broken(trained, photo):
    Path("broken.jpg").write_bytes(photo.read_bytes()[:300])
    other = save(Path("other/dogs_1.jpg"))
    finished = run("explain", "--model", trained, photo, "broken.jpg", other, "--output", "folder", code=1)
    assert error_of(finished).startswith("error: broken.jpg: ")
    assert sorted(path.name for path in Path("folder").iterdir()) == ["dogs_1_explained.png", "dogs_1_explained_2.png"]
