"""Predict the class of a photo: python predict.py photo.jpg

Read here how a run is restored and its predictions become answers; predict() in classifier/inference.py is between the two.
"""

import argparse
import csv
import json
import math
import sys
from pathlib import Path

from classifier import console
from classifier.console import DONE, FAILED, PROJECT, number
from classifier.runs import find_run, fit_of, read_metadata

UNKNOWN = "unknown"

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
    add("--min-confidence", type=number(float, 0, 1), default=0.0, metavar="P",
        help=f"predict {UNKNOWN} if the highest probability is below P, as for images unlike those of training")  # fmt: skip
    add("--format", choices=PRINTERS, default="text", help="format of standard output (default: text)")
    add("--runtime", choices=["auto", "litert", "tensorflow"], default="auto",
        help="auto (default): LiteRT, which starts sooner, if it is installed and the run's file is sound")  # fmt: skip
    add("--tta", action="store_true", help="score the mirror image too (test-time augmentation), in twice the time")
    add("--submission", type=Path, metavar="FILE",
        help="also write Kaggle's id,label: the probability of dog for each numbered image (1.jpg)")  # fmt: skip
    return parser.parse_args(argv)


def main(argv=None):
    """Predict, print, and return the exit code."""
    arguments = parse_arguments(argv)
    from classifier.inference import list_images, load_predictor, predict

    run = find_run(arguments.model)
    metadata = read_metadata(run)
    paths = list_images(arguments.paths)
    predictor = load_predictor(run, metadata, arguments.runtime)
    predictions = predict(predictor, metadata["image_size"], paths, arguments.tta, fit_of(metadata))
    if arguments.submission:
        from classifier.submission import Submission

        submission = Submission(arguments.submission, paths, metadata)
        predictions = list(predictions)
    failed = PRINTERS[arguments.format](predictions, metadata["classes"], arguments.top, arguments.min_confidence)
    if arguments.submission:
        submission.write(predictions)
    return FAILED if failed else DONE


def predicted_class(prediction, classes, min_confidence):
    """The class, its probability, and all probabilities, {class: probability}, the most likely first.

    The class is name_for_unknown() if the image is out of distribution, or if no class is as likely as `min_confidence`.
    """
    probabilities = dict(zip(classes, map(math.exp, prediction.scores), strict=True))
    probabilities = dict(sorted(probabilities.items(), key=lambda item: item[1], reverse=True))
    name, probability = next(iter(probabilities.items()))
    known = prediction.ood_score <= 1 and probability >= min_confidence
    return name if known else name_for_unknown(classes), probability, probabilities


def name_for_unknown(classes):
    """What is printed instead of a class: unknown, or (unknown) if a class has that name."""
    name, taken = UNKNOWN, {name.casefold() for name in classes}
    while name in taken:
        name = f"({name})"
    return name


def print_text(predictions, classes, top, min_confidence):
    """A line for each image, the most likely classes first: `photo.jpg: dog 97.3%, cat 2.7%`. Returns how many failed."""
    failed = 0
    for prediction in predictions:
        if prediction.reason:
            failed += 1
        else:
            name, _, probabilities = predicted_class(prediction, classes, min_confidence)
            shown = ", ".join(f"{name} {p:.1%}" for name, p in list(probabilities.items())[:top])
            print(f"{prediction.path}: {shown if name in classes else f'{name} ({shown})'}", flush=True)
    return failed


def print_csv(predictions, classes, top, min_confidence):
    """A row for each image that could be read: path,class,probability, a column for each class. Returns how many failed."""
    failed = 0
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["path", "class", "probability", *classes])
    for prediction in predictions:
        if prediction.reason:
            failed += 1
        else:
            name, probability, probabilities = predicted_class(prediction, classes, min_confidence)
            columns = (probability, *(probabilities[name] for name in classes))
            table.writerow([prediction.path, name, *(f"{p:.6g}" for p in columns)])
    return failed


def print_json(predictions, classes, top, min_confidence):
    """A list with an object for each image, with an error for those that could not be read. Returns how many failed."""
    objects, failed = [], 0
    for prediction in predictions:
        if prediction.reason:
            failed += 1
            objects.append({"path": prediction.path, "error": prediction.reason})
        else:
            name, probability, probabilities = predicted_class(prediction, classes, min_confidence)
            objects.append({"path": prediction.path, "class": name, "probability": probability,
                            "probabilities": probabilities, "novelty": round(prediction.ood_score, 4)})  # fmt: skip
    json.dump(objects, sys.stdout, indent=1)
    print()
    return failed


PRINTERS = {"text": print_text, "csv": print_csv, "json": print_json}


if __name__ == "__main__":
    console.run(main)
