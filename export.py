"""Export a trained network for other programs: python export.py --format onnx"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -I leaves it out

from classifier.base import console
from classifier.base.console import DONE, NO_DATA, PROJECT, USAGE, UserError
from classifier.base.files import locked
from classifier.export import EXPORTS, missing_packages
from classifier.runs.folder import find_run


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Export a trained network into its run folder, checked against the original on real images. "
        "All formats take (n, size, size, 3) uint8 RGB and give (n, classes) float32 logits; litert, which predict.py "
        "uses, also the out-of-distribution score of each image. savedmodel also takes the bytes of JPEG and PNG files and "
        "gives classes and probabilities, for TensorFlow Serving. html is one file that classifies images in a browser, "
        "without a connection, with the same answers as predict.py.",
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no usable images or a bad run folder, 128+N: signal N",
    )
    add = parser.add_argument
    add("--format", choices=EXPORTS, default="litert", help="default: litert")
    add("--model", type=Path, default=PROJECT / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    add("--data-dir", type=Path, metavar="FOLDER", help="labelled images to check with (default: the validation images)")
    add("--output", type=Path, metavar="FILE", help="where the html goes (default: model.html in the run folder)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Export one format, check it and keep it; returns the exit code."""
    arguments = parse_arguments(argv)
    if arguments.output and arguments.format != "html":
        raise UserError("--output is for --format html", USAGE)
    if arguments.output and not arguments.output.parent.is_dir():
        raise UserError(f"there is no folder {arguments.output.parent}", USAGE)
    run = find_run(arguments.model)
    if missing := missing_packages(arguments.format):
        packages = " ".join(missing).replace("ai_edge_litert", "ai-edge-litert")
        constraints = "requirements-optional.txt" if arguments.format == "onnx" else "requirements.txt"
        raise UserError(f"{arguments.format} needs {' and '.join(missing)}: pip install -c {constraints} {packages}", USAGE)
    from classifier.export.converters import export

    with locked(run.path):  # or a training could write the record meanwhile
        paths, labels = labelled_images(run, arguments.data_dir)
        export(run, arguments.format, paths, labels, arguments.output)
    return DONE


def labelled_images(run, data_dir):
    """(paths, labels) of images to check an export with: those in a folder, or the validation images of the training."""
    from classifier.data.finding import find_images
    from classifier.training.preparation import near_copies_among
    from dataset import read_images, split_images

    if data_dir:
        found = find_images(data_dir, run.record.classes)
        return found.paths, found.labels
    settings = run.record.settings
    images = read_images(settings, run.cache)
    sets = split_images(images, settings, near_copies_among(images.data, settings, run.cache, run))
    if sets.classes != run.record.classes:
        raise UserError(f"{settings.data_dir} has other classes than {run.path}: give images with --data-dir", NO_DATA)
    return sets.valid.paths, sets.valid.labels


if __name__ == "__main__":
    console.run(main)
