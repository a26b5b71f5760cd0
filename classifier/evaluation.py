"""Evaluation: the metrics of a predictor on labelled images, and on images of other things."""

import numpy as np

from classifier.console import NO_DATA, UserError
from classifier.inference import list_images, predict
from classifier.metrics import accuracy_interval, area_under_roc, calibration_error, chance_error, confusion_matrix

MANY_CLASSES = 10  # from which on the five most likely ones are of interest
MOST_COLUMNS = 20  # of a confusion matrix that can be read


def evaluate(predictions, found):
    """Score the Prediction of each of the images found, see finding.Found; those that could not be read are skipped.

    Returns a dictionary: accuracy; accuracy_interval, see metrics.py; balanced_accuracy, the mean recall of the classes that
    have images; top5_accuracy, how often the true class is among the five most likely, of MANY_CLASSES or more; majority,
    the accuracy of always predicting the largest class; log_loss, the mean of -ln(probability of the true class);
    calibration_error and chance_error: see metrics.py; classes; per_class and confusion_matrix: see per_class_metrics();
    unknown, how many images predict.py would predict as unknown, although they are scored; scored and skipped, numbers of
    images. Raises UserError if no image can be scored.
    """
    pairs = [(p, label) for p, label in zip(predictions, found.labels, strict=True) if not p.reason]
    scored, skipped = len(pairs), len(predictions) - len(pairs)
    if not scored:
        raise UserError(f"none of the {skipped} images in {found.folder} can be read", NO_DATA)
    scores = np.array([p.scores for p, _ in pairs])  # (scored, classes)
    labels = np.array([label for _, label in pairs])
    of_label = scores[np.arange(scored), labels]
    predicted, confidences = scores.argmax(axis=1), np.exp(scores.max(axis=1))
    correct = predicted == labels
    per_class = per_class_metrics(predicted, labels, found.classes)
    recalls = [figures["recall"] for figures in per_class["per_class"].values() if figures["pictures"]]
    top5 = float(((scores > of_label[:, None]).sum(axis=1) < 5).mean())
    return {
        "accuracy": float(correct.mean()),
        "accuracy_interval": accuracy_interval(int(correct.sum()), scored),
        "balanced_accuracy": float(np.mean(recalls)),
        **({"top5_accuracy": top5} if len(found.classes) >= MANY_CLASSES else {}),
        "majority": np.bincount(labels).max() / scored,
        "log_loss": -of_label.mean(),
        "calibration_error": calibration_error(confidences, correct),
        "chance_error": chance_error(confidences),
        "classes": found.classes,
        **per_class,
        "unknown": sum(p.ood_score > 1 for p, _ in pairs),
        "scored": scored,
        "skipped": skipped,
    }


def per_class_metrics(predicted, labels, classes):
    """{per_class: {class: {precision, recall, pictures}}, confusion_matrix: [true][predicted], in the order of classes}.

    Precision is None where the class was never predicted, recall where it has no images.
    """
    confusion = confusion_matrix(predicted, labels, len(classes))
    correct, as_predicted, as_true = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    ratio = lambda part, whole: float(part / whole) if whole else None  # noqa: E731
    per_class = {
        name: {"precision": ratio(correct[i], as_predicted[i]), "recall": ratio(correct[i], as_true[i]),
               "pictures": int(as_true[i])}
        for i, name in enumerate(classes)
    }  # fmt: skip
    return {"per_class": per_class, "confusion_matrix": confusion.tolist()}


def confusions(result):
    """[(count, true class, predicted class)] of the incorrect predictions of an evaluate() result, most frequent first."""
    classes = result["classes"]
    confused = [(count, classes[true], classes[predicted]) for true, row in enumerate(result["confusion_matrix"])
                for predicted, count in enumerate(row) if count and true != predicted]  # fmt: skip
    return sorted(confused, key=lambda confusion: -confusion[0])


def prediction_table(predictions, found):
    """(header, rows) of a table of all images: the incorrect ones first, those with the highest confidence at the top.

    Then come the correct ones, those with the lowest confidence first, and those that could not be read, with the reason.
    """
    header = ["path", "true_class", "predicted_class", "probability", "true_class_probability", "ood_score", "correct",
              "reason"]  # fmt: skip
    ranked = []
    for prediction, label in zip(predictions, found.labels, strict=True):
        row = [prediction.path, found.classes[label]]
        if prediction.reason:
            ranked.append(((2, 0.0), [*row, "", "", "", "", "", prediction.reason]))
            continue
        predicted = int(np.argmax(prediction.scores))
        correct, score = predicted == label, prediction.scores[predicted]
        figures = [np.exp(score), np.exp(prediction.scores[label]), prediction.ood_score]
        row += [found.classes[predicted], *(f"{figure:.6g}" for figure in figures), "yes" if correct else "no", ""]
        ranked.append(((1, score) if correct else (0, -score), row))
    return header, [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def evaluate_ood(predictor, image_size, folder, in_distribution, fit="squash"):
    """How well the images in a folder, of none of the classes, are separated from those of Predictions.

    Returns {area_under_roc: see metrics.py, unknown: how many predict.py would predict as unknown, scored, skipped}.
    """
    known = [p.ood_score for p in in_distribution if not p.reason]
    if not any(known):
        raise UserError("--ood-dir: the statistics for out-of-distribution scores are lost", NO_DATA)
    predictions = list(predict(predictor, image_size, list_images([folder]), fit=fit))
    scores = [p.ood_score for p in predictions if not p.reason]
    if not scores:
        raise UserError(f"none of the {len(predictions)} images in {folder} can be read", NO_DATA)
    return {
        "area_under_roc": area_under_roc(known, scores),
        "unknown": sum(score > 1 for score in scores),
        "scored": len(scores),
        "skipped": len(predictions) - len(scores),
    }
