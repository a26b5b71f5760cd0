"""Predict the class of a photo: python predict.py photo.jpg

Read it from the top down: restore a run, predict, print. What a run predicts with is in classifier/predicting/classifier.py.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -I leaves it out

from classifier.base import console
from classifier.base.console import DONE, FAILED, PROJECT, USAGE, UserError, number, printable, show

# What imports NumPy is imported inside the functions that use it: --help and a wrong flag answer at once.


def main(argv: list[str] | None = None) -> int:
    """Predict, print, and return the exit code."""
    arguments = parse_arguments(argv)
    if arguments.shard and arguments.submission:
        raise UserError("--submission needs all images, not a --shard of them", USAGE)
    from classifier import Classifier
    from classifier.predicting.listing import list_images

    paths = list_images(arguments.paths)
    if arguments.copy_to:
        from classifier.predicting.sorting import outside, sorting

        paths = outside(paths, arguments.copy_to)
    part, parts = arguments.shard or (1, 1)
    paths = paths[len(paths) * (part - 1) // parts : len(paths) * part // parts]
    classifier = Classifier(arguments.model, arguments.runtime)
    answers: Iterable = classifier.predict(paths, arguments.tta, arguments.min_confidence or 0.0)
    answers = console.with_progress("predicting", answers, len(paths))
    if arguments.copy_to:
        answers = sorting(answers, arguments.copy_to, classifier.classes, arguments.min_confidence)
    if arguments.submission:
        from classifier.predicting.kaggle import Submission

        submission = Submission(arguments.submission, paths, classifier.record)
        answers = list(answers)
    if arguments.format == "text":
        failed = print_text(answers, classifier.classes, arguments.top)
    elif arguments.format == "csv":
        failed = print_csv(answers, classifier.classes, header=part == 1)
    else:
        failed = print_json(answers)
    if arguments.submission:
        submission.write(answers)
    return FAILED if failed else DONE


def print_text(answers, classes: list[str], top: int) -> int:
    """A line for each image, the most likely classes first: `photo.jpg: dog 97.3%, cat 2.7%`. Returns how many failed."""
    failed = 0
    for answer in answers:
        if answer.reason:
            failed += 1
            continue
        shown = ", ".join(f"{name} {p:.1%}" for name, p in list(answer.probabilities.items())[:top])
        known = answer.predicted_class in classes
        show(printable(f"{answer.path}: {shown if known else f'{answer.predicted_class} ({shown})'}"))
    return failed


def print_csv(answers, classes: list[str], header: bool) -> int:
    """A row for each image that could be read: path,class,probability, a column for each class. Returns how many failed."""
    from classifier.base.files import without_formulas

    table = csv.writer(sys.stdout, lineterminator="\n")
    text = lambda cells: map(printable if sys.stdout.isatty() else str, without_formulas(cells))  # noqa: E731
    if header:
        table.writerow(text(["path", "class", "probability", *classes]))
    failed = 0
    for answer in answers:
        if answer.reason:
            failed += 1
            continue
        figures = answer.probability, *(answer.probabilities[name] for name in classes)
        table.writerow([*text([answer.path, answer.predicted_class]), *(f"{p:.6g}" for p in figures)])
    return failed


def print_json(answers) -> int:
    """A list with an object for each image, with an error for those that could not be read. Returns how many failed."""
    objects = [answer.as_object() for answer in answers]
    print(json.dumps(objects, indent=1))
    return sum("error" in each for each in objects)


def shard(text: str) -> tuple[int, int]:
    """An argparse type: "3/16" as (3, 16)."""
    match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 1 to N, such as 3/16")
    return int(match[1]), int(match[2])


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Predict the classes of images, with a network that train.py made.",
        epilog="exit codes: 0 done, 1 an image could not be read, 2 wrong usage, 3 no images or a bad run, 128+N: signal N",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="images, folders of images, or - for paths on standard input")
    add("--model", type=Path, default=PROJECT / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    add("--top", type=number(int, 1), default=3, metavar="N", help="how many classes the text shows (default: 3)")
    text = "predict unknown if the highest probability is below P, as for images unlike those of training"
    add("--min-confidence", type=number(float, 0, 1), metavar="P", help=text)
    add("--format", choices=["text", "csv", "json"], default="text", help="format of standard output (default: text)")
    text = "auto (default): LiteRT, which starts sooner, if it is installed and the run's file is sound"
    add("--runtime", choices=["auto", "litert", "tensorflow"], default="auto", help=text)
    add("--tta", action="store_true", help="score the mirror image too (test-time augmentation), in twice the time")
    text = "predict only the Kth of N shares of the images, one for each machine; their CSVs, in order, are the whole"
    add("--shard", type=shard, metavar="K/N", help=text)
    text = "also write Kaggle's id,label: the probability of dog for each numbered image (1.jpg)"
    add("--submission", type=Path, metavar="FILE", help=text)
    text = "also copy every image into FOLDER/CLASS, FOLDER/unknown or, if not sure, FOLDER/not_sure; nothing is overwritten"
    add("--copy-to", type=Path, metavar="FOLDER", help=text)
    return parser.parse_args(argv)


if __name__ == "__main__":
    console.run(main)
