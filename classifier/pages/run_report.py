"""The report of a run: what was trained on what, how good it is, its mistakes and its reasons, on one page."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from classifier.base.console import UserError, progress
from classifier.base.figures import draw_curves, draw_heat_map, draw_reliability, draw_tradeoff, svg_of
from classifier.base.metrics import calibration_error, reliability
from classifier.data.inspection import finding_sections, inspect_found
from classifier.pages.explanations import Explainer
from classifier.pages.report import Section, write_report
from classifier.predicting.evaluation import MOST_COLUMNS, Scored, confusions
from classifier.runs.folder import Run
from classifier.runs.history import read_history

MOST_MISTAKES, MOST_OTHERS = 48, 24  # images that a section shows
MOST_CONFUSIONS = 20
EXPLAINED, SIDE = 3, 160  # images of each kind; pixels of their longer side
SETTINGS = ("batch_size", "lr", "weight_decay", "label_smoothing", "dropout", "ema", "seed")


def write_run_report(path: Path, run: Run, result: dict, scored: Scored, found, temperature: float, suspects=None) -> None:
    """Write the report of a run as a page of HTML.

    `result`: see evaluate(), of the Scored images found; `temperature` is that without which `scored` knows confidences,
    too, or 1. If `suspects` are given, it shows those, too. Raises UserError if the page cannot be written.
    """
    sections = [
        Section("Training", rows=[["", ""], *_training_of(run)]),
        _accuracy(result),
        *_confusion_matrix(result),
        _classes(result),
        *(_thresholds(scored, found.classes[1]) if len(found.classes) == 2 else []),
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
    """Rows of what was trained on what."""
    record = run.record
    settings, selected, more = record.settings, record.selected, ", …" if len(record.classes) > MOST_COLUMNS else ""
    counts = [sum(of_class[side] for of_class in record.images.values()) for side in ("training", "validation")]
    layers = f", fine-tuned from {settings.fine_tune} on" if record.is_fine_tuned else ""
    of_weights = f", weights {settings.weights}" if settings.is_pretrained else ""
    yield "run", run.path
    yield "network", f"{record.network}{of_weights}{layers}"
    yield "images", settings.data_dir
    yield "training and validation images", f"{counts[0]:,} + {counts[1]:,}"
    yield "classes", f"{len(record.classes)}: {', '.join(record.classes[:MOST_COLUMNS])}{more}"
    yield "split", _listed(record.split)
    yield "image size", f"{record.image_size} px, {record.fit}"
    yield "epochs", record.epochs
    if selected:
        figures = f"validation accuracy {selected['val_accuracy']:.2%}, loss {selected['val_loss']:.4f}"
        yield "selected epoch", f"{selected['epoch']}: {figures}"
    yield "settings", _listed({name: getattr(settings, name) for name in SETTINGS})
    yield "temperature", f"{record.temperature or 1.0:.3f}"
    yield "device", _listed({name: value for name, value in record.device.items() if value != []})
    yield "versions", _listed(record.versions)


def _listed(values):
    return ", ".join(f"{name} {value}" for name, value in values.items())


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


def _confusion_matrix(result) -> Iterator[Section]:
    """The matrix as a table, or of many classes as an image; then what is confused."""
    classes, matrix = result["classes"], np.array(result["confusion_matrix"])
    text = "Rows are the true classes, columns the predicted ones."
    if len(classes) <= MOST_COLUMNS:
        yield Section("Confusion matrix", text, matrix=(classes, matrix.tolist()))
    else:
        text += " The numbers of the classes are those in the table of classes below."
        figure = (svg_of(draw_heat_map(matrix)), f"Heat map of the confusion matrix of {len(classes)} classes")
        yield Section("Confusion matrix", text, figures=[figure])
    of_class = dict(zip(classes, matrix.sum(axis=1), strict=True))
    rows = [[true, predicted, count, f"{count / of_class[true]:.1%}"] for count, true, predicted in confusions(result)]
    if rows:
        header = ["true class", "predicted as", "images", "share"]
        text = "The share is that of the images of the true class."
        yield Section("Most frequent confusions", text, rows=[header, *rows[:MOST_CONFUSIONS]])


def _classes(result):
    rows = [["number", "class", "images", "recall", "precision"]]
    for number, (name, scores) in enumerate(result["per_class"].items(), start=1):
        ratios = ("–" if scores[key] is None else f"{scores[key]:.1%}" for key in ("recall", "precision"))
        rows.append([number, name, scores["images"], *ratios])
    if len(result["classes"]) <= MOST_COLUMNS:  # else the heat map has only the numbers
        rows = [row[1:] for row in rows]
    text = "Recall: how many images of the class are predicted as it. "
    text += "Precision: how many images predicted as the class are of it."
    return Section("Precision and recall of each class", text, rows)


def _thresholds(scored, name) -> Iterator[Section]:
    """ROC and precision-recall curve of the second of two classes, called `name`, if the folder has images of both."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    positive, scores = scored.labels == 1, scored.last_scores
    if positive.all() or not positive.any():
        return
    area, average_precision = (score(positive, scores) for score in (roc_auc_score, average_precision_score))
    false_positives, recalls, _ = roc_curve(positive, scores)
    roc = draw_tradeoff(false_positives, recalls, f"false positive rate of {name}", f"recall of {name}", ([0, 1], [0, 1]))
    precisions, recalls, _ = precision_recall_curve(positive, scores, drop_intermediate=True)
    chance = [0, 1], [positive.mean()] * 2
    tradeoff = draw_tradeoff(recalls, precisions, f"recall of {name}", f"precision of {name}", chance)
    words = f"area under the ROC curve {area:.4f}", f"average precision {average_precision:.4f}"
    text = f"For every threshold on the probability of {name}: {', '.join(words)}."
    figures = [(svg_of(figure), shown) for figure, shown in zip((roc, tradeoff), words, strict=True)]
    yield Section("ROC and precision-recall curve", text, figures=figures)


def _calibration(scored, result, temperature):
    """The reliability diagram, and if there is a temperature also the one without it."""
    text = (
        f"Of the images predicted with 90 % confidence, 90 % should be correct. Calibration error "
        f"{result['calibration_error']:.2%}, from chance alone {result['chance_error']:.2%}"
    )
    plain, name = scored.plain_confidences, "as predicted" if temperature == 1 else f"with temperature {temperature:.2f}"
    bins_of = {name: reliability(scored.confidences, scored.correct)}
    if temperature != 1:
        bins_of["without"] = reliability(plain, scored.correct)
        text += f"; without the temperature {calibration_error(plain, scored.correct):.2%}"
    figure = (svg_of(draw_reliability(bins_of)), "Reliability diagram: accuracy over confidence")
    return Section("Calibration", f"{text}.", figures=[figure])


def _images_to_look_at(scored, classes, run) -> Iterator[Section]:
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
    some = dict.fromkeys(i for members in (mistakes, surest[::-1], unknown, correct) for i in members[:EXPLAINED])
    text = (
        "Where the image is bright in the heat map on the right, it speaks for the predicted class. Some of the surest "
        "mistakes, of the least certain images, of those called unknown, and of the surest correct ones."
    )
    try:
        images = [(image, caption(i)) for i, image in zip(some, _explained(some, scored, run), strict=True)]
    except UserError as error:
        text, images = f"Heat maps cannot be made: {error}", []
    yield Section("What the network looks at", text, images=images, side=2 * SIDE)


def _explained(members: Collection[int], scored, run) -> Iterator[np.ndarray]:
    """Some of the scored images, each beside its heat map for the predicted class: (height, width, 3) uint8 RGB."""
    explainer = Explainer(run)
    with progress("heat maps", len(members)) as advance:
        for i in members:
            photo, marked, _ = explainer.explain_file(scored.paths[i], SIDE, scored.predicted[i])
            yield np.hstack([photo, np.full((len(photo), 4, 3), 255, np.uint8), marked])
            advance()


def _curves(run) -> Iterator[Section]:
    if rows := read_history(run):
        record = run.record
        phases = {"head": 0, "fine-tuning": record.head_epochs} if record.is_fine_tuned else None
        figure = svg_of(draw_curves(rows, record.selected["epoch"], phases, width=5.6, height=7))
        yield Section("Training curves", figures=[(figure, "Loss, accuracy and learning rate of each epoch")])
