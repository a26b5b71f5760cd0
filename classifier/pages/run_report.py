"""The report of a run: what was trained on what, how good it is, its mistakes and its reasons, on one page."""

import numpy as np

from classifier.base.console import UserError, progress
from classifier.base.figures import draw_curves, draw_heat_map, draw_reliability, draw_steps, svg_of
from classifier.base.metrics import area_under_roc, calibration_error, reliability, threshold_curves
from classifier.data.images import load_image, load_in_shape
from classifier.data.inspection import finding_sections, inspect_found
from classifier.pages.explanations import Explainer, in_shape, overlay
from classifier.pages.report import Section, write_report
from classifier.predicting.evaluation import MOST_COLUMNS, confusions
from classifier.runs.history import read_history

MOST_MISTAKES, MOST_OTHERS = 48, 24  # images that a section shows
MOST_CONFUSIONS = 20
MOST_POINTS = 400  # of a curve: more than it has pixels
EXPLAINED, SIDE = 3, 160  # images of each kind; pixels of their longer side


def write_run_report(path, run, result, scored, found, temperature, suspects=None):
    """Write the report of a run as a page of HTML.

    `result`: see evaluate(), of the Scored images found; `temperature` is that without which `scored` knows confidences,
    too, or 1. If `suspects` are given, it shows those, too. Raises UserError if the page cannot be written.
    """
    sections = [
        Section("Training", rows=[["", ""], *_training_of(run)]),
        _accuracy(result),
        *_confusion_matrix(result),
        _classes(result),
        *(_thresholds(scored, found.classes) if len(found.classes) == 2 else []),
        _calibration(scored, result, temperature),
        *_images_to_look_at(scored, found.classes, run),
        *_curves(run),
    ]
    if suspects is not None:
        text = "The label and its probability, and another class and its probability, by a head fitted to other images."
        sections.append(Section("Which labels are wrong?", text, images=suspects.contact_sheet(), most=MOST_OTHERS))
    for heading, text, rows, images in finding_sections(inspect_found(found)):
        sections.append(Section(f"Data: {heading[0].lower()}{heading[1:]}", text, rows, images, most=MOST_OTHERS))
    write_report(path, f"{run.path.name}: {run.record.network} on {result['folder']}", sections)


def _training_of(run):
    """Rows of what was trained on what; of earlier runs, what they recorded."""
    record = run.record
    settings, counts, best = record.settings, record.images, record.selected
    sums = {side: sum(of_class.get(side, 0) for of_class in counts.values()) for side in ("training", "validation")}
    layers = f", fine-tuned from {settings.fine_tune} on" if record.is_fine_tuned else ""
    of_weights = f", weights {settings.weights}" if settings.is_pretrained else ""
    rows = [
        ["run", run],
        ["network", f"{record.network}{of_weights}{layers}"],
        ["images", settings.get("data_dir", "–")],
        ["training and validation images", f"{sums['training']:,} + {sums['validation']:,}"],
        [
            "classes",
            f"{len(record.classes)}: {', '.join(record.classes[:MOST_COLUMNS])}"
            f"{', …' if len(record.classes) > MOST_COLUMNS else ''}",
        ],
        ["split", ", ".join(f"{name} {value}" for name, value in record.split.items())],
        ["image size", f"{record.image_size} px, {record.fit}"],
        ["epochs", record.epochs],
        [
            "selected epoch",
            f"{best['epoch']}: validation accuracy {best['val_accuracy']:.2%}, loss {best['val_loss']:.4f}" if best else "–",
        ],
        [
            "settings",
            ", ".join(
                f"{name} {settings[name]}"
                for name in ("batch_size", "lr", "weight_decay", "label_smoothing", "dropout", "ema", "seed")
                if name in settings
            ),
        ],
        ["temperature", f"{record.temperature or 1.0:.3f}"],
        ["device", ", ".join(f"{name} {value}" for name, value in record.device.items() if value != [])],
        ["versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())],
    ]
    return [row for row in rows if row[1] != ""]


def _accuracy(result):
    low, high = result["accuracy_interval"]
    text = (
        f"{result['accuracy']:.2%} of {result['scored']:,} images are predicted correctly (95 % confidence interval: "
        f"{low:.1%} to {high:.1%})."
    )
    figures = [
        ["always predicting the largest class", f"{result['majority']:.2%}"],
        ["balanced accuracy, the mean recall of the classes", f"{result['balanced_accuracy']:.2%}"],
        *([["top-5 accuracy", f"{result['top5_accuracy']:.2%}"]] if "top5_accuracy" in result else []),
        ["log loss", f"{result['log_loss']:.4f}"],
        ["images that would be predicted as unknown", f"{result['unknown']:,}"],
        ["images that cannot be read", f"{result['skipped']:,}"],
    ]
    for folder, others in result["out_of_distribution"].items():
        figures.append([f"of {others['scored']:,} images in {folder}, predicted as unknown", f"{others['unknown']:,}"])
        figures.append(["area under the ROC curve of their OOD scores", f"{others['area_under_roc']:.3f}"])
    return Section(f"Accuracy: {result['accuracy']:.2%}", text, [["", ""], *figures])


def _confusion_matrix(result):
    """The matrix as a table, or of many classes as an image; then what is confused."""
    classes, matrix = result["classes"], np.array(result["confusion_matrix"])
    heading, text = "Confusion matrix", "Rows are the true classes, columns the predicted ones."
    if len(classes) <= MOST_COLUMNS:
        yield Section(heading, text, matrix=(classes, matrix.tolist()))
    else:
        text += " The numbers of the classes are those in the table of classes below."
        figure = (svg_of(draw_heat_map(matrix)), f"Heat map of the confusion matrix of {len(classes)} classes")
        yield Section(heading, text, figures=[figure])
    of_class = dict(zip(classes, matrix.sum(axis=1), strict=True))
    rows = [[true, predicted, count, f"{count / of_class[true]:.1%}"] for count, true, predicted in confusions(result)]
    if rows:
        header = ["true class", "predicted as", "images", "share"]
        text = "The share is that of the images of the true class."
        yield Section("Most frequent confusions", text, rows=[header, *rows[:MOST_CONFUSIONS]])


def _classes(result):
    rows = [["class", "images", "recall", "precision"]]
    for name, scores in result["per_class"].items():
        ratios = ("–" if scores[key] is None else f"{scores[key]:.1%}" for key in ("recall", "precision"))
        rows.append([name, scores["images"], *ratios])
    if len(rows) - 1 > MOST_COLUMNS:
        rows = [["number", *rows[0]], *([number, *row] for number, row in enumerate(rows[1:], start=1))]
    text = (
        "Recall: how many images of the class are predicted as it. "
        "Precision: how many images predicted as the class are of it."
    )
    return Section("Precision and recall of each class", text, rows)


def _thresholds(scored, classes):
    """ROC and precision-recall curve of the second of two classes, if the folder has images of both."""
    positive = scored.labels == 1
    if positive.all() or not positive.any():
        return
    scores = scored.last_scores
    false_positives, recalls, precisions = threshold_curves(scores, positive)
    area = area_under_roc(scores[~positive], scores[positive])
    average_precision = float(np.diff(recalls, prepend=0) @ precisions)
    some = np.unique(np.linspace(0, len(recalls) - 1, MOST_POINTS).astype(int))
    name, share = classes[1], positive.mean()
    roc = draw_steps(
        np.append(0, false_positives[some]),
        np.append(0, recalls[some]),
        f"false positive rate of {name}",
        f"recall of {name}",
        ([0, 1], [0, 1]),
    )
    tradeoff = draw_steps(
        recalls[some], precisions[some], f"recall of {name}", f"precision of {name}", ([0, 1], [share, share])
    )
    text = (
        f"For every threshold on the probability of {name}: area under the ROC curve {area:.4f}, average precision "
        f"{average_precision:.4f}."
    )
    figures = [
        (svg_of(roc), f"ROC curve, area {area:.4f}"),
        (svg_of(tradeoff), f"Precision-recall curve, average precision {average_precision:.4f}"),
    ]
    yield Section("ROC and precision-recall curve", text, figures=figures)


def _calibration(scored, result, temperature):
    """The reliability diagram, and if there is a temperature also the one without it."""
    text = (
        f"Of the images predicted with 90 % confidence, 90 % should be correct. Calibration error "
        f"{result['calibration_error']:.2%}, from chance alone {result['chance_error']:.2%}"
    )
    bins_of = {"as predicted": reliability(scored.confidences, scored.correct)}
    if temperature != 1:
        plain = scored.plain_confidences
        bins_of = {
            f"with temperature {temperature:.2f}": bins_of["as predicted"],
            "without": reliability(plain, scored.correct),
        }
        text += f"; without the temperature {calibration_error(plain, scored.correct):.2%}"
    figure = (svg_of(draw_reliability(bins_of)), "Reliability diagram: accuracy over confidence")
    return Section("Calibration", f"{text}.", figures=[figure])


def _images_to_look_at(scored, classes, run):
    """The surest mistakes, the least certain images and those called unknown; then what the network looks at in some."""
    surest = np.argsort(-scored.confidences, kind="stable")
    mistakes, correct = (surest[scored.correct[surest] == answer] for answer in (False, True))
    unknown = np.argsort(-scored.ood_scores, kind="stable")[: (scored.ood_scores > 1).sum()]
    kinds = [
        ("Surest mistakes", "Incorrect predictions, the most confident first.", mistakes, MOST_MISTAKES),
        ("Least certain", "The lowest confidence, correct or not.", surest[::-1][:MOST_OTHERS], MOST_OTHERS),
        ("Called unknown", "Unlike all training images: an OOD score above 1, the highest first.", unknown, MOST_OTHERS),
    ]

    def caption(i):
        truth = "" if scored.correct[i] else f", is {classes[scored.labels[i]]}"
        score = f", OOD score {scored.ood_scores[i]:.2f}" if scored.ood_scores[i] > 1 else ""
        return f"{classes[scored.predicted[i]]} {scored.confidences[i]:.1%}{truth}{score}: {scored.paths[i]}"

    for heading, text, members, most in kinds:
        images = [(scored.paths[i], caption(i)) for i in members]
        yield Section(heading, text if images else "None.", images=images, most=most)
    some = [i for members in (mistakes, surest[::-1], unknown, correct) for i in members[:EXPLAINED]]
    heading = "What the network looks at"
    text = (
        "Where the image is bright in the heat map on the right, it speaks for the predicted class. Some of the surest "
        "mistakes, of the least certain images, of those called unknown, and of the surest correct ones."
    )
    try:
        images = _explained(dict.fromkeys(some), scored, run)
    except UserError as error:
        yield Section(heading, f"Heat maps cannot be made: {error}")
    else:
        yield Section(heading, text, images=[(image, caption(i)) for i, image in images], side=2 * SIDE)


def _explained(members, scored, run):
    """[(i, image beside its heat map for the predicted class, (height, width, 3) uint8 RGB)] of some scored images."""
    explainer, images = Explainer(run), []
    with progress("heat maps", len(members)) as advance:
        for i in members:
            square = load_image(scored.paths[i], run.record.image_size, run.record.fit)
            _, heat = explainer.explain(square, scored.predicted[i])
            whole = load_in_shape(scored.paths[i], SIDE)
            gap = np.full((len(whole), 4, 3), 255, np.uint8)
            images.append((i, np.hstack([whole, gap, overlay(whole, in_shape(heat, whole.shape[:2], run.record.fit))])))
            advance()
    return images


def _curves(run):
    rows, record = read_history(run), run.record
    if rows:
        selected = record.selected["epoch"]
        phases = {"head": 0, "fine-tuning": record.head_epochs} if record.is_fine_tuned else None
        figure = svg_of(draw_curves(rows, selected, phases, width=5.6, height=7))
        yield Section("Training curves", figures=[(figure, "Loss, accuracy and learning rate of each epoch")])
