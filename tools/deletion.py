"""Measure whether heat maps mark what a prediction depends on: python -m tools.deletion runs/001 --images my_test_images

What the map marks most is blanked (Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box
Models", 2018), and, to compare, as much elsewhere. The probability of the predicted class should drop far more.
"""

import argparse
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, NO_DATA, PROJECT, UserError, aligned, number, progress
from classifier.training.settings import HEAT_MAP_METHODS

BLANKED = 0.15  # of the pixels
ELSEWHERE = 8  # places to compare with, for each image


def main(argv=None):
    """Print a table of the drops for each method; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Measure how much the probability of the predicted class drops when the 15 %% of the pixels that a heat "
        "map marks most become the mean colour of the image, and when as many, in the same shape, do elsewhere."
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_FOLDER")
    add("--images", type=Path, default=PROJECT / "testing_data", metavar="FOLDER", help="default: testing_data")
    add("--count", type=number(int, 1), default=100, metavar="N", help="images, spread over the folder (default: 100)")
    arguments = parser.parse_args(argv)
    import numpy as np

    from classifier.data.images import load_image
    from classifier.pages.explanations import Explainer
    from classifier.predicting.classifier import Classifier, list_images

    classifier, paths = Classifier(arguments.run), list_images([arguments.images])
    paths = [answer.path for answer in classifier.predict(paths[:: -(-len(paths) // arguments.count)]) if not answer.reason]
    if not paths:
        raise UserError(f"no image in {arguments.images} can be read", NO_DATA)
    size, fit = (classifier.metadata[name] for name in ("image_size", "fit"))
    rows = [["method", "images", "what is marked", "elsewhere"]]
    for method, name in HEAT_MAP_METHODS.items():
        explainer, drops = Explainer(classifier.run, classifier.metadata, method=method), []
        with progress(name, len(paths)) as advance:
            for path in paths:
                image = load_image(path, size, fit)
                drops.append(drops_of(classifier, image, *explainer.explain(image), np.random.default_rng(0)))
                advance()
        rows.append([name, len(paths), *(f"{drop:.3f}" for drop in np.mean(drops, axis=0))])
    print(aligned(rows))
    return DONE


def drops_of(classifier, image, class_index, heat, rng):
    """How much less probable a class is where an image is blanked: (what `heat` marks most, the mean of as much elsewhere).

    `image` is (size, size, 3) uint8 RGB, `heat` (size, size), see Explainer.explain().
    """
    import numpy as np

    marked = np.zeros(heat.size, bool)
    marked[np.argsort(-heat, axis=None, kind="stable")[: round(BLANKED * heat.size)]] = True
    marked = marked.reshape(heat.shape)
    masks = [np.zeros_like(marked), marked]
    masks += [np.roll(marked, rng.integers(0, len(heat), 2), (0, 1)) for _ in range(ELSEWHERE)]
    mean = image.mean(axis=(0, 1)).astype(np.uint8)
    answers = classifier.predict([np.where(mask[:, :, None], mean, image) for mask in masks])
    before, after, *elsewhere = [answer.probabilities[classifier.classes[class_index]] for answer in answers]
    return before - after, before - np.mean(elsewhere)


if __name__ == "__main__":
    console.run(main)
