"""Measure whether heat maps mark what a prediction depends on: python -m experiments.deletion runs/001 --images FOLDER

The 15 % of the pixels that a map marks most become the mean colour of the image (Petsiuk, Das and Saenko, "RISE: Randomized
Input Sampling for Explanation of Black-box Models", 2018), and, to compare, as many, in the same shape, elsewhere. The
probability of the predicted class should drop far more.
"""

from pathlib import Path

import numpy as np

from classifier.base import console
from classifier.base.console import DONE, NO_DATA, UserError, aligned, number, progress
from experiments.scripts import Parser

BLANKED = 0.15  # of the pixels
ELSEWHERE = 8  # places to compare with, for each image


def main(argv: list[str] | None = None) -> int:
    """Print how much the probability drops; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_folder("--images", "testing_data", "images of the classes")
    parser.add_argument("--count", type=number(int, 1), default=100, metavar="N", help="images, spread over the folder")
    arguments = parser.parse_args(argv)
    from classifier.data.images import load_image
    from classifier.pages.explanations import Explainer
    from classifier.predicting.classifier import Classifier
    from classifier.predicting.listing import list_images

    classifier, paths = Classifier(arguments.run), list_images([arguments.images])
    paths = [answer.path for answer in classifier.predict(paths[:: -(-len(paths) // arguments.count)]) if not answer.reason]
    if not paths:
        raise UserError(f"no image in {arguments.images} can be read", NO_DATA)
    explainer, drops = Explainer(classifier.run), []
    with progress("explaining", len(paths)) as advance:
        for path in paths:
            image = load_image(path, classifier.record.image_size, classifier.record.fit)
            drops.append(drops_of(classifier, image, *explainer.explain(image), np.random.default_rng(0)))
            advance()
    means = (f"{drop:.3f}" for drop in np.mean(drops, axis=0))
    print(aligned([["images", "what is marked", "elsewhere"], [len(paths), *means]]))
    return DONE


def drops_of(
    classifier, image: np.ndarray, class_index: int, heat: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """How much less probable a class is where an image is blanked: (what `heat` marks most, the mean of as much elsewhere).

    `image` is (size, size, 3) uint8 RGB, `heat` (size, size), see Explainer.explain().
    """
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
