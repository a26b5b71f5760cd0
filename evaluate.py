"""Score a trained network on a folder of labelled images: python evaluate.py testing_data"""

import argparse
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -I leaves it out

from classifier.base import console
from classifier.base.console import BELOW_ACCURACY, DONE, NO_DATA, PROJECT, USAGE, UserError, number, printable, say, show
from classifier.base.files import check_output, csv_text, write_text
from classifier.networks import PRETRAINED_NETWORKS
from classifier.runs.folder import find_run

CONFLICTS = {  # flags that do not go together
    "zero_shot": ("ood_dir", "report", "suspects"),
    "suspects": ("ood_dir", "tta", "predictions", "min_accuracy"),
}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line as a namespace. Raises UserError where flags do not go together, or a folder is missing."""
    parser = argparse.ArgumentParser(
        description="Score a trained network on a folder of labelled images: class folders, or names like cat.1.jpg.",
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no usable images or a bad run folder, "
        "4 below --min-accuracy, 128+N: signal N",
    )
    add = parser.add_argument
    text = "or a CSV file of path,label (default: testing_data)"
    add("folder", type=Path, nargs="?", default=PROJECT / "testing_data", help=text)
    text = "which folders are the classes, if some are below others (default: those that the network knows)"
    add("--classes-from", choices=["leaf", "top"], help=text)
    add("--model", type=Path, default=PROJECT / "runs", metavar="RUN_FOLDER", help="default: the newest finished run")
    text = "score a network of keras.applications without any training, if ImageNet has the folder's classes"
    add("--zero-shot", choices=PRETRAINED_NETWORKS, metavar="NAME", help=text)
    text = "images of other things (out-of-distribution): also measure how well they are recognized as such"
    add("--ood-dir", type=Path, nargs="+", default=[], metavar="FOLDER", help=text)
    add("--format", choices=["table", "json"], default="table", help="format of standard output (default: table)")
    add("--tta", action="store_true", help="score the mirror image too (test-time augmentation), in twice the time")
    text = "also write a table of all images: incorrect predictions first, the most confident at the top"
    add("--predictions", type=Path, metavar="FILE.csv", help=text)
    text = (
        "instead: which labels are wrong? Rank the images, whatever their classes, most suspicious first, and write a table "
        "and a contact sheet, FILE.html"
    )
    add("--suspects", type=Path, metavar="FILE.csv", help=text)
    text = "also write a page: the training, all figures, mistakes, what the network looks at"
    add("--report", type=Path, metavar="FILE.html", help=text)
    add("--min-accuracy", type=number(float, 0, 1), metavar="P", help="exit with code 4 if the accuracy is below P")
    arguments = parser.parse_args(argv)

    for flag, others in CONFLICTS.items():
        for other in others:
            if getattr(arguments, flag) and getattr(arguments, other) not in (None, False, []):
                first, second = (f"--{name.replace('_', '-')}" for name in (flag, other))
                raise UserError(f"{first} does not go with {second}", USAGE)
    for folder in arguments.ood_dir:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}", NO_DATA)
    for flag, suffix in (("predictions", ".csv"), ("suspects", ".csv"), ("report", ".html")):
        check_output(f"--{flag}", getattr(arguments, flag), suffix, arguments.folder)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Evaluate, print, and return the exit code."""
    arguments = parse_arguments(argv)
    suspects = show_suspects(arguments) if arguments.suspects else None
    if suspects and not arguments.report:
        return DONE
    from classifier.predicting.classifier import predict
    from classifier.predicting.evaluation import Scored, evaluate, evaluate_ood, prediction_table

    name, run, predictor, image_size, fit, found = load(arguments)
    temperature = run.record.temperature if run and arguments.report and not arguments.tta else None
    predictions = predict(predictor, image_size, found.paths, arguments.tta, fit)
    scored = Scored(console.with_progress("predicting", predictions, len(found.paths)), found, temperature or 1.0)
    result = {"model": name, "folder": str(arguments.folder)} | evaluate(scored, found.classes)
    result["out_of_distribution"] = {
        str(folder): evaluate_ood(predictor, image_size, folder, scored.ood_scores, fit) for folder in arguments.ood_dir
    }
    if not suspects:
        show(json.dumps(result, indent=1) if arguments.format == "json" else table_of(result))
    if arguments.predictions:
        write_text(arguments.predictions, csv_text(*prediction_table(scored, found)))
    if arguments.report:
        from classifier.pages.run_report import write_run_report

        write_run_report(arguments.report, run, result, scored, found, temperature or 1.0, suspects)
        say(f"written: {arguments.report}")
    if arguments.min_accuracy is not None and result["accuracy"] < arguments.min_accuracy:
        say(f"accuracy {result['accuracy']:.2%} is below the required {arguments.min_accuracy:.2%}")
        return BELOW_ACCURACY
    return DONE


def load(arguments: argparse.Namespace):
    """(name, run, predictor, image_size, fit, labelled images) as the command line says; without a run for --zero-shot."""
    from classifier.data.finding import find_images

    if arguments.zero_shot:
        from classifier.networks.zero_shot import load_zero_shot

        found = find_images(arguments.folder, classes_from=arguments.classes_from)
        predictor, image_size = load_zero_shot(arguments.zero_shot, found.classes)
        return arguments.zero_shot, None, predictor, image_size, "squash", found
    from classifier.predicting.classifier import load_predictor

    run = find_run(arguments.model)
    if arguments.ood_dir and run.record.ood is None:
        raise UserError(
            f"--ood-dir: {run.path} has no out-of-distribution scores: train it to its end, or use another", USAGE
        )
    found = find_images(arguments.folder, run.record.classes, classes_from=arguments.classes_from)
    return str(run.path), run, load_predictor(run), run.record.image_size, run.record.fit, found


def show_suspects(arguments: argparse.Namespace):
    """Rank the labels by how likely they are to be wrong, print them and write both files; returns the Suspects."""
    from classifier.data.finding import find_images, only_one_class
    from classifier.data.splitting import refuse_small_classes
    from classifier.pages.report import write_report
    from classifier.predicting.suspects import DOUBTFUL, HEADER, find_suspects
    from dataset import read_labelled

    run, found = find_run(arguments.model), find_images(arguments.folder, classes_from=arguments.classes_from)
    if len(found.classes) < 2:
        raise UserError(f"--suspects: {only_one_class(found)}: at least two are needed", NO_DATA)
    images, skipped = read_labelled(found, run.record.image_size, run.record.fit, run.cache)
    refuse_small_classes(arguments.folder, found.classes, images.labels, images.digests, skipped, least=2)
    suspects = find_suspects(images, found.classes, run)
    for path, reason in skipped:
        say(f"skipped: {path}: {reason}")
    write_text(arguments.suspects, csv_text(HEADER, suspects.table()))
    sheet = arguments.suspects.with_suffix(".html")
    text = "The label and its probability, and another class and its probability, by a head that was fitted to other images."
    write_report(sheet, "Which labels are wrong?", [("Most suspicious first", text, None, suspects.contact_sheet())])
    result = {"model": str(run.path), "folder": str(arguments.folder)} | suspects.summary() | {"skipped": len(skipped)}
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


def table_of(result: dict) -> str:
    """The result for people: recall and precision of each class, which classes are confused, then the totals."""
    from classifier.predicting.evaluation import MOST_COLUMNS, confusions

    few = len(result["classes"]) <= MOST_COLUMNS  # else only the number of images of each class, and what is confused most
    rows = [["true class", *([f"as {name}" for name in result["classes"]] if few else ["images"]), "recall", "precision"]]
    for (name, figures), confused in zip(result["per_class"].items(), result["confusion_matrix"], strict=True):
        ratios = ("–" if figures[key] is None else f"{figures[key]:.1%}" for key in ("recall", "precision"))
        rows.append([name, *(confused if few else [figures["images"]]), *ratios])
    lines = [console.aligned(rows, ">")]
    if not few:
        lines += [printable(f"{count} × {true} predicted as {other}") for count, true, other in confusions(result)[:10]]
    low, high = result["accuracy_interval"]
    lines.append(
        f"accuracy {result['accuracy']:.2%} (95% confidence interval: {low:.1%} to {high:.1%}; always predicting "
        f"the largest class: {result['majority']:.2%}), log loss {result['log_loss']:.4f}"
    )
    if "top5_accuracy" in result:
        lines.append(f"top-5 accuracy {result['top5_accuracy']:.2%}")
    counts = [figures["images"] for figures in result["per_class"].values()]
    if max(counts) >= 1.5 * min(counts):
        lines.append(f"balanced accuracy, the mean recall, {result['balanced_accuracy']:.2%}")
    lines += [
        f"calibration error {result['calibration_error']:.2%} (to expect by chance: {result['chance_error']:.2%})",
        f"{result['scored']} images scored, {result['skipped']} skipped; {result['unknown']} would be predicted as unknown",
    ]
    for folder, others in result["out_of_distribution"].items():
        lines.append(
            f"{others['unknown']} of {others['scored']} images in {folder} would be predicted as unknown, "
            f"area under the ROC curve {others['area_under_roc']:.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    console.run(main)
