"""Evaluation: the metrics of a predictor on labelled images, and on images of other things."""

import numpy as np

from classifier.base.console import NO_DATA, UserError
from classifier.base.metrics import (
    accuracy_interval,
    area_under_roc,
    calibration_error,
    chance_error,
    confusion_matrix,
    log_softmax,
)
from classifier.predicting.classifier import list_images, predict

MANY_CLASSES = 10  # from which on the five most likely ones are of interest
MOST_COLUMNS = 20  # of a confusion matrix that can be read


class Scored:
    """What metrics need of Predictions: of each image a few numbers, however many classes there are.

    Of the images that could be read: `paths`, and (n,) arrays: `labels`; `predicted`, labels, with their `scores`,
    log-probabilities, and `confidences`; `plain_confidences`, without the temperature; `true_scores`, those of the true
    class, and `ranks`, how many classes are more likely; `last_scores`, those of the last of all classes; `ood_scores`.
    Of the others: `skipped`, [(path, label, reason)].
    """

    def __init__(self, predictions, found, temperature=1.0):
        """`predictions`, an iterable, are those for the images found. Raises UserError if none of these can be read."""
        self.paths, self.skipped, rows = [], [], []
        for prediction, label in zip(predictions, found.labels, strict=True):
            if prediction.reason:
                self.skipped.append((prediction.path, label, prediction.reason))
                continue
            scores = prediction.scores
            plain = log_softmax(scores * temperature) if temperature != 1 else scores
            self.paths.append(prediction.path)
            rows.append(
                (
                    label,
                    scores.argmax(),
                    (scores > scores[label]).sum(),
                    scores.max(),
                    plain.max(),
                    scores[label],
                    scores[-1],
                    prediction.ood_score,
                )
            )
        if not rows:
            raise UserError(f"none of the {len(self.skipped)} images in {found.folder} can be read", NO_DATA)
        self.labels, self.predicted, self.ranks, *columns = np.array(rows).T
        self.labels, self.predicted = self.labels.astype(int), self.predicted.astype(int)
        self.scores, plain, self.true_scores, self.last_scores, self.ood_scores = columns
        self.confidences, self.plain_confidences = np.exp(self.scores), np.exp(plain)
        self.correct = self.predicted == self.labels


def evaluate(scored, classes):
    """The metrics of Scored images, whose labels are indices in `classes`; those that could not be read are skipped.

    Returns a dictionary: accuracy; accuracy_interval, see metrics.py; balanced_accuracy, the mean recall of the classes that
    have images; top5_accuracy, how often the true class is among the five most likely, of MANY_CLASSES or more; majority,
    the accuracy of always predicting the largest class; log_loss, the mean of -ln(probability of the true class);
    calibration_error and chance_error: see metrics.py; classes; per_class and confusion_matrix: see per_class_metrics();
    unknown, how many images predict.py would predict as unknown, although they are scored; scored and skipped, numbers of
    images.
    """
    count, correct = len(scored.labels), scored.correct
    per_class = per_class_metrics(scored.predicted, scored.labels, classes)
    recalls = [figures["recall"] for figures in per_class["per_class"].values() if figures["images"]]
    top5 = float((scored.ranks < 5).mean())
    return {
        "accuracy": float(correct.mean()),
        "accuracy_interval": accuracy_interval(int(correct.sum()), count),
        "balanced_accuracy": float(np.mean(recalls)),
        **({"top5_accuracy": top5} if len(classes) >= MANY_CLASSES else {}),
        "majority": np.bincount(scored.labels).max() / count,
        "log_loss": -scored.true_scores.mean(),
        "calibration_error": calibration_error(scored.confidences, correct),
        "chance_error": chance_error(scored.confidences),
        "classes": classes,
        **per_class,
        "unknown": int((scored.ood_scores > 1).sum()),
        "scored": count,
        "skipped": len(scored.skipped),
    }


def per_class_metrics(predicted, labels, classes):
    """{per_class: {class: {precision, recall, images}}, confusion_matrix: [true][predicted], in the order of classes}.

    Precision is None where the class was never predicted, recall where it has no images.
    """
    confusion = confusion_matrix(predicted, labels, len(classes))
    correct, as_predicted, as_true = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    ratio = lambda part, whole: float(part / whole) if whole else None  # noqa: E731
    per_class = {
        name: {
            "precision": ratio(correct[i], as_predicted[i]),
            "recall": ratio(correct[i], as_true[i]),
            "images": int(as_true[i]),
        }
        for i, name in enumerate(classes)
    }
    return {"per_class": per_class, "confusion_matrix": confusion.tolist()}


def confusions(result):
    """[(count, true class, predicted class)] of the incorrect predictions of an evaluate() result, most frequent first."""
    classes = result["classes"]
    confused = [
        (count, classes[true], classes[predicted])
        for true, row in enumerate(result["confusion_matrix"])
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(confused, key=lambda confusion: -confusion[0])


def prediction_table(scored, found):
    """(header, rows) of a table of all images: the incorrect ones first, those with the highest confidence at the top.

    Then come the correct ones, those with the lowest confidence first, and those that could not be read, with the reason.
    """
    header = [
        "path",
        "true_class",
        "predicted_class",
        "probability",
        "true_class_probability",
        "ood_score",
        "correct",
        "reason",
    ]
    rows = []
    for i in np.lexsort([np.where(scored.correct, scored.scores, -scored.scores), scored.correct]):
        names = [found.classes[label] for label in (scored.labels[i], scored.predicted[i])]
        figures = [scored.confidences[i], np.exp(scored.true_scores[i]), scored.ood_scores[i]]
        correct = "yes" if scored.correct[i] else "no"
        rows.append([scored.paths[i], *names, *(f"{figure:.6g}" for figure in figures), correct, ""])
    rows += [[path, found.classes[label], *[""] * 5, reason] for path, label, reason in scored.skipped]
    return header, rows


def evaluate_ood(predictor, image_size, folder, known, fit="squash"):
    """How well the images in a folder, of none of the classes, are separated from those with the OOD scores `known`, (n,).

    Returns {area_under_roc: see metrics.py, unknown: how many predict.py would predict as unknown, scored, skipped}.
    """
    if not known.any():
        raise UserError("--ood-dir: the statistics for out-of-distribution scores are lost", NO_DATA)
    paths = list_images([folder])
    scores = [p.ood_score for p in predict(predictor, image_size, paths, fit=fit) if not p.reason]
    if not scores:
        raise UserError(f"none of the {len(paths)} images in {folder} can be read", NO_DATA)
    return {
        "area_under_roc": area_under_roc(known, scores),
        "unknown": sum(score > 1 for score in scores),
        "scored": len(scores),
        "skipped": len(paths) - len(scores),
    }
