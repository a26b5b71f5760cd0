"""Score a trained network on a folder of labelled pictures: python evaluate.py testing_data"""

import argparse
import json
from pathlib import Path

import console
from backbones import BACKBONES
from console import BELOW_ACCURACY, DONE, NO_DATA, USAGE, UserError, number, say
from runs import find_run, read_card

HERE = Path(__file__).resolve().parent


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Score a trained network on a folder of labelled pictures: class folders, or names like cat.1.jpg.",
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no usable pictures or a bad model folder, "
        "4 below --min-accuracy, 130 interrupted, 143 terminated",
    )
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=HERE / "testing_data", help="default: testing_data")
    add("--model", type=Path, default=HERE / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    add("--zero-shot", choices=BACKBONES, metavar="NAME",
        help="score a network of keras.applications as it is, where ImageNet has kinds of the folder's classes")  # fmt: skip
    add("--ood-dir", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="pictures of other things (out-of-distribution): also say how well they are told from these")  # fmt: skip
    add("--format", choices=["table", "json"], default="table", help="of standard output (default: table)")
    add("--tta", action="store_true", help="score the mirror image too (test-time augmentation), in twice the time")
    add("--min-accuracy", type=number(float, 0, 1), metavar="P", help="leave with exit code 4 below it, such as 0.9")
    return parser.parse_args(argv)


def main(argv=None):
    """Evaluate, print, and return the exit code."""
    arguments = parse_arguments(argv)
    from dataset import find_pictures
    from inference import load_judge

    for folder in arguments.ood_dir:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}", NO_DATA)
    if arguments.ood_dir and arguments.zero_shot:
        raise UserError("--ood-dir is for runs: --zero-shot does not tell how unlike its training a picture is", USAGE)
    if arguments.zero_shot:
        from zero_shot import load_zero_shot

        model, found = arguments.zero_shot, find_pictures(arguments.folder)
        judge, image_size = load_zero_shot(model, found.classes)
    else:
        model = find_run(arguments.model)
        card = read_card(model)
        found = find_pictures(arguments.folder, card["classes"])
        judge, image_size = load_judge(model, card), card["image_size"]
        if arguments.ood_dir and "novelty" not in card:
            raise UserError(f"--ood-dir: {model} does not tell how unlike its training a picture is", USAGE)
    result = {"model": str(model), "folder": str(arguments.folder)}
    result |= evaluate(judge, image_size, found, arguments.tta, arguments.ood_dir)
    print(json.dumps(result, indent=1) if arguments.format == "json" else table_of(result))
    if arguments.min_accuracy is not None and result["accuracy"] < arguments.min_accuracy:
        say(f"accuracy {result['accuracy']:.2%} is below the demanded {arguments.min_accuracy:.2%}")
        return BELOW_ACCURACY
    return DONE


def evaluate(judge, image_size, found, tta=False, ood_dirs=()):
    """Score each of the pictures found, see dataset.Found, once; for the rest, see predict().

    Returns a dictionary: accuracy; majority, the accuracy of always naming the largest class; log_loss, the mean of
    -ln(probability of the true class); calibration_error and chance_error: see metrics.py; classes; per_class,
    {class: {precision, recall, pictures}}, None where nothing was predicted or nothing was there;
    confusion_matrix[true][predicted], in the order of classes; unknown, how many predict.py would not name, although they
    are scored; scored and skipped, counts of pictures; out_of_distribution: {folder: see score_others()} of `ood_dirs`.
    Raises UserError where no picture can be scored.
    """
    import numpy as np

    from metrics import calibration_error, chance_error
    from predict import predict, say_failed

    classes = found.classes
    answers, labels, skipped = [], [], 0
    for label, answer in zip(found.labels, predict(judge, image_size, found.paths, tta), strict=True):
        if answer.reason:
            skipped += say_failed(answer)
        else:
            answers.append(answer)
            labels.append(label)
    scored = len(labels)
    if not scored:
        raise UserError(f"none of the {skipped} pictures in {found.folder} can be read", NO_DATA)
    scores, labels = np.array([answer.scores for answer in answers]), np.array(labels)  # (scored, classes), (scored,)
    named, confidences = scores.argmax(axis=1), np.exp(scores.max(axis=1))
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, named), 1)
    right = confusion.diagonal()
    ordinary = [answer.novelty for answer in answers]
    if ood_dirs and not any(ordinary):
        raise UserError("--ood-dir: what the run knows of its training pictures is lost", NO_DATA)
    per_class = {
        name: {"precision": ratio(right[i], confusion[:, i].sum()), "recall": ratio(right[i], confusion[i].sum()),
               "pictures": int(confusion[i].sum())}
        for i, name in enumerate(classes)
    }  # fmt: skip
    return {
        "accuracy": right.sum() / scored,
        "majority": confusion.sum(axis=1).max() / scored,
        "log_loss": -scores[np.arange(scored), labels].mean(),
        "calibration_error": calibration_error(confidences, named == labels),
        "chance_error": chance_error(confidences),
        "classes": classes,
        "per_class": per_class,
        "confusion_matrix": confusion.tolist(),
        "unknown": sum(novelty > 1 for novelty in ordinary),
        "scored": scored,
        "skipped": skipped,
        "out_of_distribution": {str(folder): score_others(judge, image_size, folder, ordinary) for folder in ood_dirs},
    }


def score_others(judge, image_size, folder, ordinary):
    """How well the pictures in a folder, of none of the classes, are told from others, whose novelty `ordinary` is, (n,).

    Returns {area_under_roc: see metrics.py, unknown: how many predict.py would call so, scored, skipped}.
    """
    from metrics import area_under_roc
    from predict import list_pictures, predict

    answers = list(predict(judge, image_size, list_pictures([folder])))
    odd = [answer.novelty for answer in answers if not answer.reason]
    if not odd:
        raise UserError(f"none of the {len(answers)} pictures in {folder} can be read", NO_DATA)
    return {
        "area_under_roc": area_under_roc(ordinary, odd),
        "unknown": sum(novelty > 1 for novelty in odd),
        "scored": len(odd),
        "skipped": len(answers) - len(odd),
    }


def ratio(part, whole):
    """part / whole as a float, None for 0 / 0."""
    return float(part / whole) if whole else None


def table_of(result):
    """The result for people: the confusion matrix with each class's recall and precision, then the totals."""
    classes = result["classes"]
    rows = [["true class", *(f"as {name}" for name in classes), "recall", "precision"]]
    for name, counts in zip(classes, result["confusion_matrix"], strict=True):
        scores = result["per_class"][name]
        shown = ["–" if scores[key] is None else f"{scores[key]:.1%}" for key in ("recall", "precision")]
        rows.append([name, *map(str, counts), *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.append(f"accuracy {result['accuracy']:.2%} (always naming the largest class: {result['majority']:.2%}), "
                 f"log loss {result['log_loss']:.4f}")  # fmt: skip
    lines.append(f"calibration error {result['calibration_error']:.2%} (from chance alone: {result['chance_error']:.2%})")
    lines.append(f"{result['scored']} pictures scored, {result['skipped']} skipped; "
                 f"{result['unknown']} would be called unknown")  # fmt: skip
    for folder, others in result["out_of_distribution"].items():
        lines.append(f"{others['unknown']} of {others['scored']} pictures in {folder} would be called unknown, "
                     f"area under the ROC curve {others['area_under_roc']:.3f}")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    console.run(main)
