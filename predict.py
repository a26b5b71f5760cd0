"""Say what is in a photo: python predict.py photo.jpg"""

import argparse
import csv
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import console
from console import DONE, FAILED, NO_DATA, USAGE, UserError, csv_text, number, say, write_whole
from runs import find_run, read_card

HERE = Path(__file__).resolve().parent
UNKNOWN = "unknown"


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Say what is in pictures, with a network that train.py made.",
        epilog="exit codes: 0 done, 1 a picture could not be read, 2 wrong usage, 3 no pictures or a bad model folder, "
        "130 interrupted, 143 terminated",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="pictures, folders of pictures, or - for paths on standard input")
    add("--model", type=Path, default=HERE / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    add("--top", type=number(int, 1), default=3, metavar="N", help="how many classes the text names (default: 3)")
    add("--min-confidence", type=number(float, 0, 1), default=0.0, metavar="P",
        help=f"name no class less likely than this, but {UNKNOWN}, as for a picture unlike all of training")  # fmt: skip
    add("--format", choices=PRINTERS, default="text", help="of standard output (default: text)")
    add("--runtime", choices=["auto", "litert", "tensorflow"], default="auto",
        help="auto (default): LiteRT if it is installed and the run's file is sound, which starts much sooner")  # fmt: skip
    add("--tta", action="store_true", help="score the mirror image too (test-time augmentation), in twice the time")
    add("--submission", type=Path, metavar="FILE",
        help="also write Kaggle's id,label: the probability of dog for each numbered picture (1.jpg)")  # fmt: skip
    return parser.parse_args(argv)


def main(argv=None):
    """Predict, print, and return the exit code."""
    arguments = parse_arguments(argv)
    from inference import load_judge

    run = find_run(arguments.model)
    card = read_card(run)
    paths = list_pictures(arguments.paths)
    answers = predict(load_judge(run, card, arguments.runtime), card["image_size"], paths, arguments.tta)
    if arguments.submission:
        ids, dog, limit = submission_ids(paths), dog_column(card["classes"]), least_probability(card)
        if not arguments.submission.parent.is_dir():
            raise UserError(f"there is no folder {arguments.submission.parent} for --submission", USAGE)
        answers = list(answers)
    failed = PRINTERS[arguments.format](answers, card["classes"], arguments.top, arguments.min_confidence)
    if arguments.submission:
        write_submission(arguments.submission, ids, dog, limit, answers)
    return FAILED if failed else DONE


def list_pictures(arguments):
    """The paths that the arguments name: files as they are, folders searched, - read from standard input."""
    from dataset import walk_pictures

    paths = []
    for argument in arguments:
        if argument == "-":
            lines = sys.stdin.buffer.read().split(b"\n") if sys.stdin else []
            paths += [os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()]
        elif os.path.isdir(argument):
            pictures, _ = walk_pictures(argument)
            if not pictures:
                raise UserError(f"no pictures in {argument}", NO_DATA)
            paths += [os.path.join(argument, picture) for picture in pictures]
        else:
            paths.append(argument)
    if not paths:
        raise UserError("no paths on standard input", NO_DATA)
    return paths


class Answer(NamedTuple):
    """What the network says of one file."""

    path: str
    scores: Sequence[float] | None  # (classes,) float64 log-probabilities; None where the file cannot be used
    reason: str | None  # why it cannot be used
    novelty: float = 0.0  # how unlike the pictures of training it is; above 1, it is unknown


def predict(judge, image_size, paths, tta=False):
    """Yield an Answer for each of `paths`, in order; `judge`: see inference.load_judge().

    With `tta`, test-time augmentation, probabilities are the mean of those for the picture and for its mirror image.
    """
    import numpy as np

    from dataset import decode_batches
    from inference import log_probabilities

    with console.progress("predicting", len(paths)) as advance:
        for batch, reasons, pixels in decode_batches(paths, image_size):
            logits, novelty = judge(pixels)
            scores = log_probabilities(logits)
            if tta:
                mirrored, _ = judge(np.ascontiguousarray(pixels[:, :, ::-1]))
                scores = np.logaddexp(scores, log_probabilities(mirrored)) - np.log(2)
            results = zip(scores, map(float, novelty), strict=True)
            for path, reason in zip(batch, reasons, strict=True):
                row, unlike = (None, 0.0) if reason else next(results)
                yield Answer(path, row, reason, unlike)
            advance(len(batch))


def no_class(classes):
    """What a picture is called that has no class: unknown, or (unknown) where that is a class."""
    name, taken = UNKNOWN, {name.casefold() for name in classes}
    while name in taken:
        name = f"({name})"
    return name


def name_class(answer, classes, min_confidence):
    """The class to name, its probability, and all probabilities, {class: probability}, the likeliest first.

    The name is no_class() where the picture is novel, or no class at least as likely as `min_confidence`.
    """
    by_class = dict(zip(classes, map(math.exp, answer.scores), strict=True))
    by_class = dict(sorted(by_class.items(), key=lambda item: item[1], reverse=True))
    name, probability = next(iter(by_class.items()))
    named = answer.novelty <= 1 and probability >= min_confidence
    return name if named else no_class(classes), probability, by_class


def print_text(answers, classes, top, min_confidence):
    """A line a picture, the likeliest classes first: `photo.jpg: dog 97.3%, cat 2.7%`. Returns how many failed."""
    failed = 0
    for answer in answers:
        if answer.reason:
            failed += say_failed(answer)
        else:
            name, _, by_class = name_class(answer, classes, min_confidence)
            shown = ", ".join(f"{name} {p:.1%}" for name, p in list(by_class.items())[:top])
            print(f"{answer.path}: {shown if name in classes else f'{name} ({shown})'}", flush=True)
    return failed


def print_csv(answers, classes, top, min_confidence):
    """A row a picture that could be read: path,class,probability, then a column a class. Returns how many failed."""
    failed = 0
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["path", "class", "probability", *classes])
    for answer in answers:
        if answer.reason:
            failed += say_failed(answer)
        else:
            name, probability, by_class = name_class(answer, classes, min_confidence)
            table.writerow([answer.path, name, *(f"{p:.6g}" for p in (probability, *(by_class[name] for name in classes)))])
    return failed


def print_json(answers, classes, top, min_confidence):
    """A list with an object for every picture, those that could not be read with their error. Returns how many failed."""
    objects, failed = [], 0
    for answer in answers:
        if answer.reason:
            failed += say_failed(answer)
            objects.append({"path": answer.path, "error": answer.reason})
        else:
            name, probability, by_class = name_class(answer, classes, min_confidence)
            objects.append({"path": answer.path, "class": name, "probability": probability, "probabilities": by_class,
                            "novelty": round(answer.novelty, 4)})  # fmt: skip
    json.dump(objects, sys.stdout, indent=1)
    print()
    return failed


PRINTERS = {"text": print_text, "csv": print_csv, "json": print_json}


def say_failed(answer):
    """Say that a picture was skipped, and why; returns 1, to count it."""
    say(f"error: {answer.path}: {answer.reason}")
    return 1


def dog_column(classes):
    """The index of the class that Kaggle asks for."""
    for column, name in enumerate(classes):
        if name.casefold() in ("dog", "dogs"):
            return column
    raise UserError(f"--submission needs a model with a class dog: this one has {', '.join(classes)}", USAGE)


def submission_ids(paths):
    """The numbers in the names 1.jpg, 2.jpg, …: one for each path, no two the same."""
    ids = []
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        if not (stem.isascii() and stem.isdecimal()):
            raise UserError(f"--submission is for numbered pictures (1.jpg, 2.jpg, …): {path} is not one", USAGE)
        ids.append(int(stem))
    if len(set(ids)) < len(ids):
        raise UserError("--submission: two pictures have the same number", USAGE)
    return ids


def least_probability(card):
    """The least probability that a submission gives any class: what n validation pictures, all right, say of the next one.

    Kaggle scores log loss, which one answer that is certain and wrong would spoil. After n right ones, the next is wrong
    with a probability of 1 / (n + 2) (Laplace's rule of succession): no answer can be surer.
    """
    try:
        return 1 / (2 + sum(max(counts["validation"], 1) for counts in card["pictures"].values()))
    except (KeyError, TypeError, AttributeError):
        raise UserError("--submission: the run's card does not tell how many pictures it validated on", NO_DATA) from None


def write_submission(file_path, ids, dog, limit, answers):
    """Write Kaggle's id,label, in the order of the numbers; pictures that could not be read have no row.

    Labels are from `limit` to 1 - `limit`.
    """
    rows = [(id_, math.exp(answer.scores[dog])) for id_, answer in zip(ids, answers, strict=True) if not answer.reason]
    clipped = ([id_, f"{min(max(p, limit), 1 - limit):.6f}"] for id_, p in sorted(rows))
    write_whole(file_path, csv_text(["id", "label"], clipped))
    say(f"{len(rows)} rows in {file_path}, labels from {limit:.6f} to {1 - limit:.6f}: log loss forgives no certainty")


if __name__ == "__main__":
    console.run(main)
