"""Say what is in a photo: python predict.py photo.jpg"""

import argparse
import csv
import json
import math
import os
import sys
from pathlib import Path

import console
from console import DONE, FAILED, NO_DATA, USAGE, UserError, csv_text, number, say, write_whole
from runs import find_run, read_card

HERE = Path(__file__).resolve().parent


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
    run = find_run(arguments.model)
    card = read_card(run)
    paths = list_pictures(arguments.paths)
    results = predict(run, card, paths, arguments.runtime, arguments.tta)
    if arguments.submission:
        ids, dog = submission_ids(paths), dog_column(card["classes"])
        if not arguments.submission.parent.is_dir():
            raise UserError(f"there is no folder {arguments.submission.parent} for --submission", USAGE)
        results = list(results)
    failed = PRINTERS[arguments.format](results, card["classes"], arguments.top)
    if arguments.submission:
        write_submission(arguments.submission, ids, dog, results)
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


def predict(run, card, paths, runtime="auto", tta=False):
    """Yield (path, log_probabilities, reason) for each of `paths`, in order.

    log_probabilities is (classes,) float64; it is None where the file cannot be used, and reason says why. With `tta`,
    test-time augmentation, probabilities are the mean of those for the picture and for its mirror image.
    """
    import numpy as np

    from dataset import decode_batches
    from inference import load_logits, log_probabilities

    logits = load_logits(run, card, runtime)

    def score(pixels):
        scores = log_probabilities(logits(pixels))
        if tta:
            mirrored = log_probabilities(logits(np.ascontiguousarray(pixels[:, :, ::-1])))
            scores = np.logaddexp(scores, mirrored) - np.log(2)
        return scores

    with console.progress("predicting", len(paths)) as advance:
        for batch, reasons, pixels in decode_batches(paths, card["image_size"]):
            scores = iter(score(pixels))
            for path, reason in zip(batch, reasons, strict=True):
                yield path, None if reason else next(scores), reason
            advance(len(batch))


def probabilities(scores, classes):
    """{class: probability}, best first, from log-probabilities."""
    by_class = dict(zip(classes, map(math.exp, scores), strict=True))
    return dict(sorted(by_class.items(), key=lambda item: item[1], reverse=True))


def print_text(results, classes, top):
    """A line a picture, the likeliest classes first: `photo.jpg: dog 97.3%, cat 2.7%`. Returns how many failed."""
    failed = 0
    for path, scores, reason in results:
        if reason:
            failed += say_failed(path, reason)
        else:
            shown = list(probabilities(scores, classes).items())[:top]
            print(f"{path}: " + ", ".join(f"{name} {p:.1%}" for name, p in shown), flush=True)
    return failed


def print_csv(results, classes, top):
    """A row a picture that could be read: path,class,probability, then a column a class. Returns how many failed."""
    failed = 0
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["path", "class", "probability", *classes])
    for path, scores, reason in results:
        if reason:
            failed += say_failed(path, reason)
        else:
            by_class = probabilities(scores, classes)
            best = next(iter(by_class))
            table.writerow([path, best, *(f"{by_class[name]:.6g}" for name in (best, *classes))])
    return failed


def print_json(results, classes, top):
    """A list with an object for every picture, those that could not be read with their error. Returns how many failed."""
    answers = []
    for path, scores, reason in results:
        if reason:
            say_failed(path, reason)
            answers.append({"path": path, "error": reason})
        else:
            by_class = probabilities(scores, classes)
            best = next(iter(by_class))
            answers.append({"path": path, "class": best, "probability": by_class[best], "probabilities": by_class})
    json.dump(answers, sys.stdout, indent=1)
    print()
    return sum("error" in answer for answer in answers)


PRINTERS = {"text": print_text, "csv": print_csv, "json": print_json}


def say_failed(path, reason):
    """Say that a picture was skipped, and why; returns 1, to count it."""
    say(f"error: {path}: {reason}")
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


def write_submission(file_path, ids, dog, results):
    """Write Kaggle's id,label, in the order of the numbers; pictures that could not be read have no row."""
    rows = [(id_, math.exp(scores[dog])) for id_, (_, scores, reason) in zip(ids, results, strict=True) if not reason]
    write_whole(file_path, csv_text(["id", "label"], ([id_, f"{p:.6f}"] for id_, p in sorted(rows))))
    say(f"{len(rows)} rows in {file_path}")


if __name__ == "__main__":
    console.run(main)
