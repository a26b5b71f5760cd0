"""Score a trained network on a folder of labelled images: python evaluate.py testing_data"""

import argparse
import json
from pathlib import Path

from classifier.base import console
from classifier.base.console import BELOW_ACCURACY, DONE, NO_DATA, PROJECT, USAGE, UserError, number, printable, say, show
from classifier.base.files import csv_text, write_text
from classifier.networks import PRETRAINED_NETWORKS
from classifier.runs.folder import find_run


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Score a trained network on a folder of labelled images: class folders, or names like cat.1.jpg.",
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no usable images or a bad run folder, "
        "4 below --min-accuracy, 130 interrupted, 143 terminated",
    )
    add = parser.add_argument
    add(
        "folder",
        type=Path,
        nargs="?",
        default=PROJECT / "testing_data",
        help="or a CSV file of path,label (default: testing_data)",
    )
    add(
        "--classes-from",
        choices=["leaf", "top"],
        help="which folders are the classes, if some are below others (default: those that the network knows)",
    )
    add("--model", type=Path, default=PROJECT / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    add(
        "--zero-shot",
        choices=PRETRAINED_NETWORKS,
        metavar="NAME",
        help="score a network of keras.applications without any training, if ImageNet has the folder's classes",
    )
    add(
        "--ood-dir",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="images of other things (out-of-distribution): also measure how well they are recognized as such",
    )
    add("--format", choices=["table", "json"], default="table", help="format of standard output (default: table)")
    add("--tta", action="store_true", help="score the mirror image too (test-time augmentation), in twice the time")
    add(
        "--predictions",
        type=Path,
        metavar="FILE.csv",
        help="also write a table of all images: incorrect predictions first, the most confident at the top",
    )
    add(
        "--suspects",
        type=Path,
        metavar="FILE.csv",
        help="instead: which labels are wrong? Rank the images, whatever their classes, most suspicious first, and write a "
        "table and a contact sheet, FILE.html",
    )
    add(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="also write a page: the training, all figures, mistakes, what the network looks at",
    )
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
    if arguments.report and arguments.zero_shot:
        raise UserError("--report is for runs: --zero-shot has none", USAGE)
    for flag in ("predictions", "suspects", "report"):
        path = getattr(arguments, flag)
        if path and not path.parent.is_dir():
            raise UserError(f"there is no folder {path.parent} for --{flag}", USAGE)
    suspects = show_suspects(arguments) if arguments.suspects else None
    if suspects and not arguments.report:
        return DONE
    from classifier.predicting.classifier import predict
    from classifier.predicting.evaluation import Scored, evaluate, evaluate_ood, prediction_table

    model, predictor, image_size, fit, found = load(arguments)
    temperature = model.record.temperature if arguments.report and not arguments.tta else 1.0
    scored = Scored(predict(predictor, image_size, found.paths, arguments.tta, fit), found, temperature)
    result = {"model": str(model), "folder": str(arguments.folder)} | evaluate(scored, found.classes)
    result["out_of_distribution"] = {
        str(folder): evaluate_ood(predictor, image_size, folder, scored.ood_scores, fit) for folder in arguments.ood_dir
    }
    if not suspects:
        show(json.dumps(result, indent=1) if arguments.format == "json" else table_of(result))
    if arguments.predictions:
        write_text(arguments.predictions, csv_text(*prediction_table(scored, found)))
    if arguments.report:
        from classifier.pages.run_report import write_run_report

        write_run_report(arguments.report, model, result, scored, found, temperature, suspects)
        say(f"written: {arguments.report}")
    if arguments.min_accuracy is not None and result["accuracy"] < arguments.min_accuracy:
        say(f"accuracy {result['accuracy']:.2%} is below the required {arguments.min_accuracy:.2%}")
        return BELOW_ACCURACY
    return DONE


def show_suspects(arguments):
    """Rank the labels by how likely they are to be wrong, print them and write both files; returns the Suspects."""
    others = [arguments.zero_shot, arguments.ood_dir, arguments.tta, arguments.predictions, arguments.min_accuracy]
    if any(other not in (None, False, []) for other in others):
        raise UserError("--suspects does not go with --zero-shot, --ood-dir, --tta, --predictions or --min-accuracy", USAGE)
    if arguments.suspects.suffix.lower() != ".csv":
        raise UserError(f"--suspects: {arguments.suspects} does not end in .csv", USAGE)
    from classifier.data.finding import find_images
    from classifier.pages.report import write_report
    from classifier.predicting.suspects import DOUBTFUL, find_suspects

    run = find_run(arguments.model)
    suspects = find_suspects(find_images(arguments.folder), run)
    for path, reason in suspects.skipped:
        say(f"skipped: {path}: {reason}")
    write_text(arguments.suspects, csv_text(*suspects.table()))
    sheet = arguments.suspects.with_suffix(".html")
    text = "The label and its probability, and another class and its probability, by a head that was fitted to other images."
    write_report(sheet, "Which labels are wrong?", [("Most suspicious first", text, None, suspects.contact_sheet())])
    result = {"model": str(run), "folder": str(arguments.folder)} | suspects.summary()
    if arguments.format == "json":
        show(json.dumps(result, indent=1))
        return suspects
    for path, caption in suspects.contact_sheet()[:10]:
        show(printable(f"{caption}  {path}"))
    show(
        f"{result['scored']} images ranked, {result['skipped']} skipped; {result['doubtful']} labels have a probability "
        f"below {DOUBTFUL:.0%}; accuracy out of fold {result['out_of_fold_accuracy']:.2%}"
    )
    say(f"all of them in {arguments.suspects}, images in {sheet}: look at them in this order until most labels are correct")
    return suspects


def load(arguments):
    """(name or run folder, predictor, image_size, fit, labelled images) as the command line says."""
    from classifier.data.finding import find_images

    if arguments.zero_shot:
        from classifier.networks.zero_shot import load_zero_shot

        found = find_images(arguments.folder, classes_from=arguments.classes_from)
        return arguments.zero_shot, *load_zero_shot(arguments.zero_shot, found.classes), "squash", found
    from classifier.predicting.classifier import load_predictor

    run = find_run(arguments.model)
    record = run.record
    if arguments.ood_dir and record.ood is None:
        raise UserError(f"--ood-dir: {run} has no out-of-distribution scores", USAGE)
    found = find_images(arguments.folder, record.classes, classes_from=arguments.classes_from)
    return run, load_predictor(run), record.image_size, record.fit, found


def table_of(result):
    """The result for people: recall and precision of each class, which classes are confused, then the totals."""
    from classifier.predicting.evaluation import MOST_COLUMNS

    classes, counts = result["classes"], [figures["images"] for figures in result["per_class"].values()]
    lines = [confusion_matrix(result)] if len(classes) <= MOST_COLUMNS else [class_table(result), most_confused(result)]
    low, high = result["accuracy_interval"]
    lines.append(
        f"accuracy {result['accuracy']:.2%} (95% confidence interval: {low:.1%} to {high:.1%}; always predicting "
        f"the largest class: {result['majority']:.2%}), log loss {result['log_loss']:.4f}"
    )
    if "top5_accuracy" in result:
        lines.append(f"top-5 accuracy {result['top5_accuracy']:.2%}")
    if max(counts) >= 1.5 * min(counts):
        lines.append(f"balanced accuracy, the mean recall, {result['balanced_accuracy']:.2%}")
    lines.append(f"calibration error {result['calibration_error']:.2%} (from chance alone: {result['chance_error']:.2%})")
    lines.append(
        f"{result['scored']} images scored, {result['skipped']} skipped; {result['unknown']} would be predicted as unknown"
    )
    for folder, others in result["out_of_distribution"].items():
        lines.append(
            f"{others['unknown']} of {others['scored']} images in {folder} would be predicted as unknown, "
            f"area under the ROC curve {others['area_under_roc']:.3f}"
        )
    return "\n".join(lines)


def confusion_matrix(result):
    """The confusion matrix, with each class's recall and precision."""
    rows = [["true class", *(f"as {name}" for name in result["classes"]), "recall", "precision"]]
    for name, counts in zip(result["classes"], result["confusion_matrix"], strict=True):
        rows.append([name, *counts, *recall_and_precision(result, name)])
    return console.aligned(rows, ">")


def class_table(result):
    """Each class's number of images, recall and precision, for classes that are too many for a confusion matrix."""
    rows = [["true class", "images", "recall", "precision"]]
    for name in result["classes"]:
        rows.append([name, result["per_class"][name]["images"], *recall_and_precision(result, name)])
    return console.aligned(rows, ">")


def recall_and_precision(result, name):
    """Both figures of a class as text; a dash where there is none."""
    scores = result["per_class"][name]
    return ["–" if scores[key] is None else f"{scores[key]:.1%}" for key in ("recall", "precision")]


def most_confused(result, most=10):
    """The most frequent confusions, a line each."""
    from classifier.predicting.evaluation import confusions

    lines = (f"{count} × {true} predicted as {predicted}" for count, true, predicted in confusions(result)[:most])
    return "\n".join(map(printable, lines))


if __name__ == "__main__":
    console.run(main)
