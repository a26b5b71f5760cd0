"""Suspects: which labels are wrong? Predictions by a head that was not fitted to an image disagree with its label."""

import dataclasses

import numpy as np

from classifier.base.console import NO_DATA, UserError, progress
from classifier.base.metrics import log_softmax
from classifier.data.cache import decode_once
from classifier.data.finding import only_one_class
from classifier.runs.folder import read_metadata
from dataset import usable_images

FOLDS = 5
DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01)  # weight decay of the head: the one with the lowest loss on other folds is used
STEPS = 100  # of fitting the head
DOUBTFUL = 0.05  # a label with a lower probability is worth a look
SHOWN = 200  # images in the contact sheet


@dataclasses.dataclass
class Suspects:
    """All images of a folder that could be read, with (n,) `labels`, and what a head predicts that never saw them.

    `log_probabilities` are (n, classes). `skipped` are the other images: (path, reason).
    """

    classes: list[str]
    paths: list
    labels: np.ndarray
    log_probabilities: np.ndarray
    skipped: list

    def ranked(self):
        """Positions of the images, the one whose label is the least probable first.

        This "self-confidence" found as many planted labels as any other score, or more: see experiments/suspects.py.
        """
        return np.argsort(self._of_label(), kind="stable")

    def suggested(self):
        """(labels, log-probabilities) of the most likely class that is not the image's own, (n,) each."""
        others = self.log_probabilities.copy()
        others[np.arange(len(self.labels)), self.labels] = -np.inf
        return others.argmax(axis=1), others.max(axis=1)

    def summary(self):
        """A dictionary: scored and skipped, numbers of images; out_of_fold_accuracy, how often the most likely class is the
        label; doubtful, how many labels have a probability below DOUBTFUL."""
        return {
            "scored": len(self.labels),
            "skipped": len(self.skipped),
            "out_of_fold_accuracy": float((self.log_probabilities.argmax(axis=1) == self.labels).mean()),
            "doubtful": int((np.exp(self._of_label()) < DOUBTFUL).sum()),
        }

    def table(self):
        """(header, rows) of a table of all images, the most suspicious first; score is 1 - probability of the label."""
        header = ["rank", "path", "label", "suggested_class", "label_probability", "suggested_probability", "score"]
        of_label = self._of_label()
        suggested, of_suggested = self.suggested()
        rows = []
        for rank, i in enumerate(self.ranked(), start=1):
            figures = [np.exp(of_label[i]), np.exp(of_suggested[i]), -np.expm1(of_label[i])]
            names = [self.paths[i], self.classes[self.labels[i]], self.classes[suggested[i]]]
            rows.append([rank, *names, *(f"{figure:.6g}" for figure in figures)])
        return header, rows

    def contact_sheet(self):
        """[(path, caption)] of the most suspicious images."""
        _, rows = self.table()
        return [(row[1], f"{row[0]}. {row[2]} {float(row[4]):.1%}; {row[3]}? {float(row[5]):.1%}") for row in rows[:SHOWN]]

    def _of_label(self):
        return self.log_probabilities[np.arange(len(self.labels)), self.labels]


def find_suspects(found, run):
    """Suspects among labelled images, see finding.Found, by the features of a run's network: the input of its last layer.

    The run's cache keeps the features for later. The classes may be other ones than the run's. Raises UserError where fewer
    than two classes have images, or a class has less than two different ones.
    """
    if len(found.classes) < 2:
        raise UserError(f"--suspects: {only_one_class(found)}: at least two are needed", NO_DATA)
    record = read_metadata(run)
    decoded = decode_once(found.paths, record.image_size, run.parent / ".cache", record.fit)
    images = usable_images(found, decoded, record.image_size, record.fit)
    digests, labels = images.digests, images.labels
    for label, name in enumerate(found.classes):
        if len({digest for digest, other in zip(digests, labels, strict=True) if other == label}) < 2:
            raise UserError(f"--suspects: class {name!r} in {found.folder} has less than two different images", NO_DATA)
    features = _features(images, run, record)
    return Suspects(
        found.classes,
        images.paths,
        labels,
        out_of_fold(features, labels, folds_of(labels, digests)),
        [(path, reason) for path, reason in zip(found.paths, decoded.reasons, strict=True) if reason],
    )


def folds_of(labels, groups, folds=FOLDS):
    """The fold of each image, (n,) from 0 to folds - 1: each has about the same part of every class.

    Images of the same group, (n,) digests, are in one fold: a copy with the same wrong label would vouch for it. Digests of
    images are as good as random numbers.
    """
    fold_of = {}
    for group in [groups[i] for i in sorted(range(len(labels)), key=lambda i: (labels[i], groups[i]))]:
        fold_of.setdefault(group, len(fold_of) % folds)
    return np.array([fold_of[group] for group in groups])


def out_of_fold(features, labels, folds):
    """Log-probabilities, (n, classes), of each image by a head that was fitted to the images of the other folds.

    `features` are (n, features). The head is multinomial logistic regression on standardized features, with the weight decay
    of DECAYS, from strong to weak, after which the loss rises.
    """
    spread = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.maximum(spread, 0.01 * spread.mean() + 1e-6)
    rows, best, start = np.arange(len(labels)), None, None
    with progress("fitting heads", len(DECAYS)) as advance:
        for decay in DECAYS:
            logits, start = fit_heads(features.astype(np.float32), labels, folds, decay, start)
            predicted = log_softmax(logits[rows, folds])
            loss = -predicted[rows, labels].mean()
            if best is not None and loss >= best[0]:
                break
            best = loss, predicted
            advance()
    return best[1]


def fit_heads(features, labels, folds, decay, start=None):
    """Fit a head for every fold, to the images of all other folds, together: they share each multiplication.

    `features` are (n, features) float32, standardized. Returns (logits, heads): (n, folds, classes), and the `start` for
    another decay. The method is gradient descent with momentum and restarts (Nesterov, 1983; O'Donoghue and Candès,
    "Adaptive Restart for Accelerated Gradient Schemes", 2015), with the step that the largest curvature allows.
    """
    count, size = features.shape
    num_folds, num_classes = folds.max() + 1, labels.max() + 1
    fitted = folds[:, None] != np.arange(num_folds)
    weights = (fitted / fitted.sum(axis=0)).astype(np.float32)[:, :, None]  # (n, folds, 1)
    targets = np.eye(num_classes, dtype=np.float32)[labels][:, None]  # (n, 1, classes)
    step = 1 / (0.5 * _largest_eigenvalue(features) * weights.max() + decay)  # softmax has a curvature of ½ at most
    shape = (num_folds, num_classes)
    kernel, bias = start or (np.zeros((size, num_folds * num_classes), np.float32), np.zeros(shape, np.float32))
    ahead_kernel, ahead_bias, momentum = kernel, bias, 1.0
    for _ in range(STEPS):
        logits = (features @ ahead_kernel).reshape(count, *shape) + ahead_bias
        errors = np.exp(logits - logits.max(axis=2, keepdims=True))
        errors = (errors / errors.sum(axis=2, keepdims=True) - targets) * weights
        new_kernel = ahead_kernel - step * (features.T @ errors.reshape(count, -1) + decay * ahead_kernel)
        new_bias = ahead_bias - step * errors.sum(axis=0)
        if ((ahead_kernel - new_kernel) * (new_kernel - kernel)).sum() > 0:  # it has gone too far
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        carry = np.float32((momentum - 1) / following)
        ahead_kernel = new_kernel + carry * (new_kernel - kernel)
        ahead_bias = new_bias + carry * (new_bias - bias)
        kernel, bias, momentum = new_kernel, new_bias, following
    return (features @ kernel).reshape(count, *shape) + bias, (kernel, bias)


def _largest_eigenvalue(features):
    """Of features.T @ features, or a little more, by power iteration."""
    vector = np.ones(features.shape[1], np.float32)
    for _ in range(20):
        vector = features.T @ (features @ (vector / np.linalg.norm(vector)))
    return 1.1 * np.linalg.norm(vector)


def _features(images, run, record):
    """The features of a DataSet, (n, features) float32. The cache serves after labels were corrected, too."""
    import keras

    from classifier.networks.by_name import create_network, extract_features, last_features
    from classifier.runs.checkpoints import load_selected

    size, fit, scales = (record[name] for name in ("image_size", "fit", "feature_scales"))
    network = create_network(record.network, size, len(record.classes), feature_scales=scales)
    load_selected(run, network)
    extractor = keras.Model(network.input, last_features(network))
    return extract_features(images, extractor, run.parent / ".cache", fit).load(np.arange(len(images)))
