"""Score a trained network on a folder of labelled images: python evaluate.py testing_data"""

import argparse
import json
from pathlib import Path

from classifier import console
from classifier.console import BELOW_ACCURACY, DONE, NO_DATA, PROJECT, USAGE, UserError, number, say
from classifier.runs import find_run, fit_of, read_metadata
from classifier.settings import PRETRAINED_NETWORKS


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Score a trained network on a folder of labelled images: class folders, or names like cat.1.jpg.",
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no usable images or a bad run folder, "
        "4 below --min-accuracy, 130 interrupted, 143 terminated",
    )
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=PROJECT / "testing_data",
        help="or a CSV file of path,label (default: testing_data)")  # fmt: skip
    add("--classes-from", choices=["leaf", "top"],
        help="which folders are the classes, if some are below others (default: those that the network knows)")  # fmt: skip
    add("--model", type=Path, default=PROJECT / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    add("--zero-shot", choices=PRETRAINED_NETWORKS, metavar="NAME",
        help="score a network of keras.applications without any training, if ImageNet has the folder's classes")  # fmt: skip
    add("--ood-dir", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="images of other things (out-of-distribution): also measure how well they are recognized as such")  # fmt: skip
    add("--format", choices=["table", "json"], default="table", help="format of standard output (default: table)")
    add("--tta", action="store_true", help="score the mirror image too (test-time augmentation), in twice the time")
    add("--min-accuracy", type=number(float, 0, 1), metavar="P", help="exit with code 4 if the accuracy is below P")
    return parser.parse_args(argv)


def main(argv=None):
    """Evaluate, print, and return the exit code."""
    arguments = parse_arguments(argv)
    for folder in arguments.ood_dir:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}", NO_DATA)
    if arguments.ood_dir and arguments.zero_shot:
        raise UserError("--ood-dir is for runs: --zero-shot has no out-of-distribution scores", USAGE)
    from classifier.evaluation import evaluate

    model, predictor, image_size, fit, found = load(arguments)
    result = {"model": str(model), "folder": str(arguments.folder)}
    result |= evaluate(predictor, image_size, found, arguments.tta, arguments.ood_dir, fit)
    print(json.dumps(result, indent=1) if arguments.format == "json" else table_of(result))
    if arguments.min_accuracy is not None and result["accuracy"] < arguments.min_accuracy:
        say(f"accuracy {result['accuracy']:.2%} is below the required {arguments.min_accuracy:.2%}")
        return BELOW_ACCURACY
    return DONE


def load(arguments):
    """(name or run folder, predictor, image_size, fit, labelled images) as the command line says."""
    from classifier.finding import find_images

    if arguments.zero_shot:
        from classifier.zero_shot import load_zero_shot

        found = find_images(arguments.folder, classes_from=arguments.classes_from)
        return arguments.zero_shot, *load_zero_shot(arguments.zero_shot, found.classes), "squash", found
    from classifier.inference import load_predictor

    run = find_run(arguments.model)
    metadata = read_metadata(run)
    if arguments.ood_dir and "novelty" not in metadata:
        raise UserError(f"--ood-dir: {run} has no out-of-distribution scores", USAGE)
    found = find_images(arguments.folder, metadata["classes"], classes_from=arguments.classes_from)
    return run, load_predictor(run, metadata), metadata["image_size"], fit_of(metadata), found


def table_of(result):
    """The result for people: the confusion matrix with each class's recall and precision, then the totals."""
    classes = result["classes"]
    rows = [["true class", *(f"as {name}" for name in classes), "recall", "precision"]]
    for name, counts in zip(classes, result["confusion_matrix"], strict=True):
        scores = result["per_class"][name]
        shown = ["–" if scores[key] is None else f"{scores[key]:.1%}" for key in ("recall", "precision")]
        rows.append([name, *counts, *shown])
    lines = [console.aligned(rows, ">")]
    lines.append(f"accuracy {result['accuracy']:.2%} (always predicting the largest class: {result['majority']:.2%}), "
                 f"log loss {result['log_loss']:.4f}")  # fmt: skip
    lines.append(f"calibration error {result['calibration_error']:.2%} (from chance alone: {result['chance_error']:.2%})")
    lines.append(f"{result['scored']} images scored, {result['skipped']} skipped; "
                 f"{result['unknown']} would be predicted as unknown")  # fmt: skip
    for folder, others in result["out_of_distribution"].items():
        lines.append(f"{others['unknown']} of {others['scored']} images in {folder} would be predicted as unknown, "
                     f"area under the ROC curve {others['area_under_roc']:.3f}")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    console.run(main)
