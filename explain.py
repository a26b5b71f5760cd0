"""Show which parts of a photo speak for its class: python explain.py photo.jpg

Read here which pictures are made; heat maps are computed in classifier/pages/explanations.py, and the pictures of --filters
in classifier/pages/feature_maps.py.
"""

import argparse
import os
import sys
import textwrap
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -I leaves it out

from classifier.base import console
from classifier.base.console import DONE, FAILED, PROJECT, USAGE, UserError, printable, show

# What imports NumPy, TensorFlow or matplotlib is imported inside the functions that use it: --help and a wrong flag answer
# at once.

SIDE = 480  # of the photo in the picture, in pixels
MADE_BY = "explain.py of the image classifier"  # in the metadata of every picture


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Show which parts of a photo speak for its class: a picture of the photo and, beside it, a heat map "
        "(HiResCAM), bright where the feature maps of the network raise the score of the class most.",
        epilog="exit codes: 0 done, 1 an image could not be read, 2 wrong usage, 3 no images or a bad run, 128+N: signal N",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="images, folders of images, or - for paths on standard input")
    add("--model", type=Path, default=PROJECT / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    add("--class", dest="class_name", metavar="NAME", help="what speaks for this class (default: for the predicted one)")
    text = "show instead what convolutions do: classic kernels, filters and feature maps of the network"
    add("--filters", action="store_true", help=text)
    text = "a file, FILE.png, or a folder (default: PHOTO_explained.png or PHOTO_filters.png here); no file is "
    text += "overwritten but a picture that explain.py made"
    add("--output", type=Path, default=Path("."), metavar="FILE", help=text)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Make a picture for each image; returns the exit code."""
    arguments = parse_arguments(argv)
    if arguments.filters and arguments.class_name:
        raise UserError("--filters shows the same for every class: leave out --class", USAGE)
    from classifier.predicting.classifier import Classifier
    from classifier.predicting.listing import list_images

    paths, classifier = list_images(arguments.paths), Classifier(arguments.model)
    if arguments.class_name not in (None, *classifier.classes):
        raise UserError(f"there is no class {arguments.class_name!r}, only {', '.join(classifier.classes)}", USAGE)
    targets = choose_targets(paths, arguments.output, "filters" if arguments.filters else "explained")
    failed, draw = 0, None
    answers = console.with_progress("predicting", classifier.predict(paths), len(paths))
    for answer, target in zip(answers, targets, strict=True):
        if answer.reason:
            failed += 1
            continue
        if draw is None:  # not before it is needed: TensorFlow takes seconds
            draw = lesson(classifier.run) if arguments.filters else heat_map(classifier.run, arguments.class_name)
        save(draw(answer), target)
        show(printable(f"{answer.path}: {prediction(answer)}, see {console.shell_path(target)}"))
    return FAILED if failed else DONE


def choose_targets(paths: list, output: Path, kind: str) -> list[Path]:
    """The file to write for each path. Raises UserError if one exists that explain.py did not make."""
    if output.suffix.lower() == ".png" and not output.is_dir():
        if len(paths) > 1:
            raise UserError(f"--output {output} is one file, for {len(paths)} images: give a folder", USAGE)
        targets = [output]
    else:
        targets = []
        for path in paths:
            name, number = f"{Path(path).stem}_{kind}", 1
            while (target := output / (f"{name}_{number}.png" if number > 1 else f"{name}.png")) in targets:
                number += 1
            targets.append(target)
    for target in targets:
        if os.path.lexists(target) and not (target.is_file() and MADE_BY.encode() in target.read_bytes()[:1000]):
            raise UserError(f"{target} exists and is not a picture of explain.py: choose another --output", USAGE)
    return targets


def prediction(answer) -> str:
    """An Answer in words: `dog 97.3%`, or `unknown, unlike the training images (dog 97.3%)`."""
    name = next(iter(answer.probabilities))
    text = f"{name} {answer.probability:.1%}"
    return text if answer.predicted_class == name else f"{answer.predicted_class}, unlike the training images ({text})"


def heat_map(run, class_name: str | None):
    """`draw(answer)`: a figure of the photo, and of a heat map over it."""
    from classifier.pages.explanations import Explainer

    explainer = Explainer(run)
    class_index = None if class_name is None else run.record.classes.index(class_name)

    def draw(answer):
        photo, marked, words = explainer.explain_file(answer.path, SIDE, class_index)
        return draw_side_by_side(photo, marked, f"predicted: {prediction(answer)}", words)

    return draw


def lesson(run):
    """`draw(answer)`: a figure of what convolutions make of the photo."""
    from classifier.data.images import load_image, load_in_shape
    from classifier.pages.feature_maps import Convolutions, draw_lesson

    record, convolutions = run.record, Convolutions(run)

    def draw(answer):
        image = load_image(answer.path, record.image_size, record.fit)
        photo = load_in_shape(answer.path, record.image_size)  # an enlarged one has only smooth edges
        return draw_lesson(photo, image, convolutions)

    return draw


def draw_side_by_side(photo, heat, photo_title: str, heat_title: str):
    """A figure of two images of the same shape, (height, width, 3) uint8 RGB, and a scale of the heat map's colours."""
    from matplotlib.cm import ScalarMappable

    from classifier.base.figures import DPI, new_figure

    height, width = photo.shape[:2]
    panel = max(width, 300)  # pixels, wide enough for a title
    figure = new_figure((2 * panel + 110) / DPI, (max(height, 120) + 80) / DPI, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, image, title in zip(panels, (photo, heat), (photo_title, heat_title), strict=True):
        axes.imshow(image)
        axes.set_axis_off()
        axes.set_title(textwrap.fill(console.readable(title), panel // 8), fontsize=11)
    scale = figure.colorbar(ScalarMappable(cmap="inferno"), ax=panels, ticks=[0, 1], shrink=0.7, pad=0.01)
    scale.ax.set_yticklabels(["nothing", "most"])
    return figure


def save(figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all. Raises UserError if that fails."""
    from classifier.base.figures import save_png
    from classifier.base.files import replacing

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_png(figure, partial, {"Software": MADE_BY})
    except OSError as error:
        raise UserError(f"cannot write {path}: {console.describe(error)}") from None


if __name__ == "__main__":
    console.run(main)
