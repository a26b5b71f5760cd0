"""Predict the class of a photo: python predict.py photo.jpg

Read here how answers are printed; a run is restored and predicts in classifier/predicting/classifier.py.
"""

import argparse
import csv
import json
import re
import sys
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, FAILED, PROJECT, USAGE, UserError, number, printable, show

# What imports NumPy is imported inside the functions that use it: --help and a wrong flag answer at once.


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Predict the classes of images, with a network that train.py made.",
        epilog="exit codes: 0 done, 1 an image could not be read, 2 wrong usage, 3 no images or a bad run folder, "
        "130 interrupted, 143 terminated",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="images, folders of images, or - for paths on standard input")
    add("--model", type=Path, default=PROJECT / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    add("--top", type=number(int, 1), default=3, metavar="N", help="how many classes the text shows (default: 3)")
    add(
        "--min-confidence",
        type=number(float, 0, 1),
        metavar="P",
        help="predict unknown if the highest probability is below P, as for images unlike those of training",
    )
    add("--format", choices=PRINTERS, default="text", help="format of standard output (default: text)")
    add(
        "--runtime",
        choices=["auto", "litert", "tensorflow"],
        default="auto",
        help="auto (default): LiteRT, which starts sooner, if it is installed and the run's file is sound",
    )
    add("--tta", action="store_true", help="score the mirror image too (test-time augmentation), in twice the time")
    add(
        "--shard",
        type=shard,
        metavar="K/N",
        help="predict only the Kth of N shares of the images, one for each machine; the CSV of all shares, one after the "
        "other, is the CSV of all images: the first has the header",
    )
    add(
        "--submission",
        type=Path,
        metavar="FILE",
        help="also write Kaggle's id,label: the probability of dog for each numbered image (1.jpg)",
    )
    add(
        "--copy-to",
        type=Path,
        metavar="FOLDER",
        help="also copy every image into FOLDER/CLASS, FOLDER/unknown or, below --min-confidence or if the second class is "
        "more than half as likely, FOLDER/not_sure; nothing is moved or overwritten",
    )
    add("--link", action="store_true", help="--copy-to makes symbolic links instead of copies")
    return parser.parse_args(argv)


def shard(text):
    """An argparse type: "3/16" as (3, 16)."""
    match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 1 to N, such as 3/16")
    return int(match[1]), int(match[2])


def main(argv=None):
    """Predict, print, and return the exit code."""
    arguments = parse_arguments(argv)
    if arguments.link and not arguments.copy_to:
        raise UserError("--link needs --copy-to FOLDER", USAGE)
    if arguments.shard and arguments.submission:
        raise UserError("--submission needs all images, not a --shard of them", USAGE)
    from classifier.predicting.classifier import Classifier, list_images

    paths = list_images(arguments.paths)
    if arguments.copy_to:
        from classifier.predicting.sorting import outside, sorting

        paths = outside(paths, arguments.copy_to)
    number, shards = arguments.shard or (1, 1)
    paths = paths[len(paths) * (number - 1) // shards : len(paths) * number // shards]
    classifier = Classifier(arguments.model, arguments.runtime)
    answers = classifier.predict(paths, arguments.tta, arguments.min_confidence or 0.0)
    if arguments.copy_to:
        answers = sorting(answers, arguments.copy_to, classifier.classes, arguments.min_confidence, arguments.link)
    if arguments.submission:
        from classifier.predicting.kaggle import Submission

        submission = Submission(arguments.submission, paths, classifier.record)
        answers = list(answers)
    failed = PRINTERS[arguments.format](answers, classifier.classes, arguments.top, header=number == 1)
    if arguments.submission:
        submission.write(answers)
    return FAILED if failed else DONE


def print_text(answers, classes, top, header):
    """A line for each image, the most likely classes first: `photo.jpg: dog 97.3%, cat 2.7%`. Returns how many failed."""
    failed = 0
    for answer in answers:
        if answer.reason:
            failed += 1
        else:
            shown = ", ".join(f"{name} {p:.1%}" for name, p in list(answer.probabilities.items())[:top])
            known = answer.predicted_class in classes
            show(printable(f"{answer.path}: {shown if known else f'{answer.predicted_class} ({shown})'}"))
    return failed


def print_csv(answers, classes, top, header):
    """A row for each image that could be read: path,class,probability, a column for each class. Returns how many failed."""
    from classifier.base.files import without_formulas

    failed = 0
    table = csv.writer(sys.stdout, lineterminator="\n")
    safe = printable if sys.stdout.isatty() else str

    def write(names, figures=()):
        table.writerow([*map(safe, without_formulas(names)), *figures])

    if header:
        write(["path", "class", "probability", *classes])
    for answer in answers:
        if answer.reason:
            failed += 1
        else:
            columns = (answer.probability, *(answer.probabilities[name] for name in classes))
            write([answer.path, answer.predicted_class], [f"{p:.6g}" for p in columns])
    return failed


def print_json(answers, classes, top, header):
    """A list with an object for each image, with an error for those that could not be read. Returns how many failed."""
    objects, failed = [], 0
    for answer in answers:
        failed += bool(answer.reason)
        objects.append(answer.as_object())
    json.dump(objects, sys.stdout, indent=1)
    print()
    return failed


PRINTERS = {"text": print_text, "csv": print_csv, "json": print_json}


if __name__ == "__main__":
    console.run(main)
