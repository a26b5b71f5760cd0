"""Evaluation: the metrics of a predictor on labelled images, and on images of other things."""

import numpy as np

from classifier.console import NO_DATA, UserError
from classifier.inference import list_images, predict
from classifier.metrics import area_under_roc, calibration_error, chance_error


def evaluate(predictor, image_size, found, tta=False, ood_dirs=(), fit="squash"):
    """Score each of the images found, see dataset.Found, once; for the rest, see predict().

    Returns a dictionary: accuracy; majority, the accuracy of always predicting the largest class; log_loss, the mean of
    -ln(probability of the true class); calibration_error and chance_error: see metrics.py; classes; per_class and
    confusion_matrix: see per_class_metrics(); unknown, how many images predict.py would predict as unknown, although they
    are scored; scored and skipped, numbers of images; out_of_distribution: {folder: see evaluate_ood()} of `ood_dirs`.
    Raises UserError if no image can be scored.
    """
    predictions, labels, skipped = [], [], 0
    for label, prediction in zip(found.labels, predict(predictor, image_size, found.paths, tta, fit), strict=True):
        if prediction.reason:
            skipped += 1
        else:
            predictions.append(prediction)
            labels.append(label)
    scored = len(labels)
    if not scored:
        raise UserError(f"none of the {skipped} images in {found.folder} can be read", NO_DATA)
    scores, labels = np.array([p.scores for p in predictions]), np.array(labels)  # (scored, classes), (scored,)
    predicted, confidences = scores.argmax(axis=1), np.exp(scores.max(axis=1))
    correct = predicted == labels
    ood_scores = [p.ood_score for p in predictions]
    if ood_dirs and not any(ood_scores):
        raise UserError("--ood-dir: the statistics for out-of-distribution scores are lost", NO_DATA)
    return {
        "accuracy": float(correct.mean()),
        "majority": np.bincount(labels).max() / scored,
        "log_loss": -scores[np.arange(scored), labels].mean(),
        "calibration_error": calibration_error(confidences, correct),
        "chance_error": chance_error(confidences),
        "classes": found.classes,
        **per_class_metrics(predicted, labels, found.classes),
        "unknown": sum(score > 1 for score in ood_scores),
        "scored": scored,
        "skipped": skipped,
        "out_of_distribution": {
            str(folder): evaluate_ood(predictor, image_size, folder, ood_scores, fit) for folder in ood_dirs
        },
    }


def per_class_metrics(predicted, labels, classes):
    """{per_class: {class: {precision, recall, pictures}}, confusion_matrix: [true][predicted], in the order of classes}.

    Precision is None where the class was never predicted, recall where it has no images.
    """
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, predicted), 1)
    correct, as_predicted, as_true = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    ratio = lambda part, whole: float(part / whole) if whole else None  # noqa: E731
    per_class = {
        name: {"precision": ratio(correct[i], as_predicted[i]), "recall": ratio(correct[i], as_true[i]),
               "pictures": int(as_true[i])}
        for i, name in enumerate(classes)
    }  # fmt: skip
    return {"per_class": per_class, "confusion_matrix": confusion.tolist()}


def evaluate_ood(predictor, image_size, folder, in_distribution, fit="squash"):
    """How well the images in a folder, of none of the classes, are separated from others, whose OOD scores are given, (n,).

    Returns {area_under_roc: see metrics.py, unknown: how many predict.py would predict as unknown, scored, skipped}.
    """
    predictions = list(predict(predictor, image_size, list_images([folder]), fit=fit))
    scores = [p.ood_score for p in predictions if not p.reason]
    if not scores:
        raise UserError(f"none of the {len(predictions)} images in {folder} can be read", NO_DATA)
    return {
        "area_under_roc": area_under_roc(in_distribution, scores),
        "unknown": sum(score > 1 for score in scores),
        "scored": len(scores),
        "skipped": len(predictions) - len(scores),
    }
