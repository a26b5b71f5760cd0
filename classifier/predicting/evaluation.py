"""Evaluation: the metrics of a predictor on labelled images, and on images of other things."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from classifier.base.console import NO_DATA, UserError, with_progress
from classifier.base.metrics import accuracy_interval, calibration_error, chance_error, log_softmax
from classifier.data.finding import Found
from classifier.predicting.classifier import Prediction, Predictor, predict
from classifier.predicting.listing import list_images

# scikit-learn is imported inside the functions that use it: it takes a second.

MANY_CLASSES = 10  # from which on the five most likely ones are of interest
MOST_COLUMNS = 20  # of a confusion matrix that can be read


class Scored:
    """What metrics need of Predictions: of each image a few numbers, however many classes there are.

    Of the images that could be read: `paths`, and (n,) arrays: `labels`; `predicted`, labels, with their `scores`,
    log-probabilities, and `confidences`; `plain_confidences`, without the temperature; `true_scores`, those of the true
    class, and `ranks`, how many classes are more likely; `last_scores`, those of the last of all classes; `ood_scores`.
    Of the others: `skipped`, [(path, label, reason)].
    """

    def __init__(self, predictions: Iterable[Prediction], found: Found, temperature: float = 1.0):
        """`predictions` are those for the images found. Raises UserError if none of these can be read."""
        self.paths, self.skipped, rows = [], [], []
        for (path, scores, reason, ood_score), label in zip(predictions, found.labels, strict=True):
            if scores is None:
                self.skipped.append((path, label, reason))
                continue
            self.paths.append(path)
            rank, plain = (scores > scores[label]).sum(), log_softmax(scores * temperature).max()
            rows.append((label, scores.argmax(), rank, scores.max(), plain, scores[label], scores[-1], ood_score))
        if not rows:
            raise UserError(f"none of the {len(self.skipped)} images in {found.folder} can be read", NO_DATA)
        columns = np.array(rows).T
        self.labels, self.predicted, self.ranks = columns[:3].astype(int)
        self.scores, plain, self.true_scores, self.last_scores, self.ood_scores = columns[3:]
        self.confidences, self.plain_confidences = np.exp(self.scores), np.exp(plain)
        self.correct = self.predicted == self.labels


def evaluate(scored: Scored, classes: list[str]) -> dict:
    """The metrics of Scored images, whose labels are indices in `classes`; those that could not be read are skipped.

    Returns a dictionary: accuracy; accuracy_interval, see metrics.py; balanced_accuracy, the mean recall of the classes that
    have images; top5_accuracy, how often the true class is among the five most likely, of MANY_CLASSES or more; majority,
    the accuracy of always predicting the largest class; log_loss, the mean of -ln(probability of the true class);
    calibration_error and chance_error: see metrics.py; classes; per_class, {class: {precision, recall, images}}, None where
    the class was never predicted, or has no images; confusion_matrix, [true][predicted], in the order of classes; unknown,
    how many images predict.py would predict as unknown, although they are scored; scored and skipped, numbers of images.
    """
    from sklearn.metrics import confusion_matrix

    count, correct = len(scored.labels), scored.correct
    confusion = confusion_matrix(scored.labels, scored.predicted, labels=range(len(classes)))
    ratio = lambda part, whole: float(part / whole) if whole else None  # noqa: E731
    columns = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    per_class = {
        name: {"precision": ratio(hits, predicted), "recall": ratio(hits, images), "images": int(images)}
        for name, hits, predicted, images in zip(classes, *columns, strict=True)
    }
    top5 = {"top5_accuracy": float((scored.ranks < 5).mean())} if len(classes) >= MANY_CLASSES else {}
    return {
        "accuracy": float(correct.mean()),
        "accuracy_interval": accuracy_interval(int(correct.sum()), count),
        "balanced_accuracy": float(np.mean([each["recall"] for each in per_class.values() if each["images"]])),
        **top5,
        "majority": float(confusion.sum(axis=1).max() / count),
        "log_loss": float(-scored.true_scores.mean()),
        "calibration_error": calibration_error(scored.confidences, correct),
        "chance_error": chance_error(scored.confidences),
        "classes": classes,
        "per_class": per_class,
        "confusion_matrix": confusion.tolist(),
        "unknown": int((scored.ood_scores > 1).sum()),
        "scored": count,
        "skipped": len(scored.skipped),
    }


def confusions(result: dict) -> list[tuple[int, str, str]]:
    """[(count, true class, predicted class)] of the incorrect predictions of an evaluate() result, most frequent first."""
    classes = result["classes"]
    confused = [
        (count, classes[true], classes[predicted])
        for true, row in enumerate(result["confusion_matrix"])
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(confused, key=lambda confusion: -confusion[0])


def prediction_table(scored: Scored, found: Found) -> tuple[list[str], list[list]]:
    """(header, rows) of a table of all images: the incorrect ones first, those with the highest confidence at the top.

    Then come the correct ones, those with the lowest confidence first, and those that could not be read, with the reason.
    """
    names = ["path", "true_class", "predicted_class", "probability", "true_class_probability", "ood_score"]
    header = [*names, "correct", "reason"]
    rows = []
    for i in np.lexsort([np.where(scored.correct, scored.scores, -scored.scores), scored.correct]):
        names = [found.classes[label] for label in (scored.labels[i], scored.predicted[i])]
        figures = [scored.confidences[i], np.exp(scored.true_scores[i]), scored.ood_scores[i]]
        correct = "yes" if scored.correct[i] else "no"
        rows.append([scored.paths[i], *names, *(f"{figure:.6g}" for figure in figures), correct, ""])
    rows += [[path, found.classes[label], *[""] * 5, reason] for path, label, reason in scored.skipped]
    return header, rows


def evaluate_ood(predictor: Predictor, image_size: int, folder: Path, known: np.ndarray, fit: str = "squash") -> dict:
    """How well the images in a folder, of none of the classes, are separated from those with the OOD scores `known`, (n,).

    Returns {area_under_roc: of the OOD scores, ½ is chance, 1 perfect; unknown: how many predict.py would predict as
    unknown; scored; skipped}.
    """
    from sklearn.metrics import roc_auc_score

    if not known.any():
        raise UserError("--ood-dir: the statistics of OOD scores are lost: restore the run folder, or use another", NO_DATA)
    paths = list_images([str(folder)])
    predictions = with_progress("predicting", predict(predictor, image_size, paths, fit=fit), len(paths))
    scores = [p.ood_score for p in predictions if not p.reason]
    if not scores:
        raise UserError(f"none of the {len(paths)} images in {folder} can be read", NO_DATA)
    is_other = np.arange(len(known) + len(scores)) >= len(known)
    return {
        "area_under_roc": float(roc_auc_score(is_other, [*known, *scores])),
        "unknown": sum(score > 1 for score in scores),
        "scored": len(scores),
        "skipped": len(paths) - len(scores),
    }
