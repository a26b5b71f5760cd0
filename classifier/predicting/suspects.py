"""Suspects: which labels are wrong? Predictions by a head that was not fitted to an image disagree with its label."""

import dataclasses
import warnings

import keras
import numpy as np

from classifier.base.console import progress
from classifier.data.near_copies import are_compared, find_near_copies
from classifier.networks.by_name import extract_features, last_features
from classifier.runs.checkpoints import load_trained_network
from classifier.runs.folder import Run

FOLDS = 5
DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01)  # weight decay of the head: the one with the lowest loss on other folds is used
STEPS = 100  # of fitting a head, at most
LEAST = 1e-30  # the probability of a class that a head has never seen
DOUBTFUL = 0.05  # a label with a lower probability is worth a look
SHOWN = 200  # images in the contact sheet
HEADER = ["rank", "path", "label", "suggested_class", "label_probability", "suggested_probability", "score"]


@dataclasses.dataclass
class Suspects:
    """Images with (n,) `labels`, and the (n, classes) `log_probabilities` of heads that never saw them."""

    classes: list[str]
    paths: list
    labels: np.ndarray
    log_probabilities: np.ndarray

    def ranked(self) -> np.ndarray:
        """Positions of the images, the one whose label is the least probable first.

        This "self-confidence" found as many planted labels as any other score, or more: see experiments/suspects.py.
        """
        return np.argsort(self._of_label(), kind="stable")

    def summary(self) -> dict:
        """A dictionary: scored, the number of images; out_of_fold_accuracy, how often the most likely class is the label;
        doubtful, how many labels have a probability below DOUBTFUL."""
        return {
            "scored": len(self.labels),
            "out_of_fold_accuracy": float((self.log_probabilities.argmax(axis=1) == self.labels).mean()),
            "doubtful": int((np.exp(self._of_label()) < DOUBTFUL).sum()),
        }

    def table(self) -> list[list]:
        """The rows of a table of all images, see HEADER, the most suspicious first; score is 1 - label_probability."""
        of_label, others = self._of_label(), self.log_probabilities.copy()
        others[np.arange(len(self.labels)), self.labels] = -np.inf
        rows = []
        for rank, i in enumerate(self.ranked(), start=1):
            figures = [np.exp(of_label[i]), np.exp(others[i].max()), -np.expm1(of_label[i])]
            names = [self.paths[i], self.classes[self.labels[i]], self.classes[others[i].argmax()]]
            rows.append([rank, *names, *(f"{figure:.6g}" for figure in figures)])
        return rows

    def contact_sheet(self) -> list[tuple]:
        """[(path, caption)] of the most suspicious images."""
        rows = self.table()[:SHOWN]
        return [(row[1], f"{row[0]}. {row[2]} {float(row[4]):.1%}; {row[3]}? {float(row[5]):.1%}") for row in rows]

    def _of_label(self):
        return self.log_probabilities[np.arange(len(self.labels)), self.labels]


def find_suspects(images, classes: list[str], run: Run) -> Suspects:
    """Suspects among a DataSet of these classes, by the features of a run's network: the input of its last layer.

    The run's cache keeps the features for later, after labels were corrected, too. The classes may be other ones than the
    run's; each has at least two different images.
    """
    digests, labels = np.array(images.digests), images.labels
    network, settings = load_trained_network(run), run.record.settings
    extractor = keras.Model(network.input, last_features(network))
    rows, row_of_image = extract_features(images, extractor, run.cache, settings.fit)
    features = rows[row_of_image]
    near_copies = {}
    if are_compared(len(images)):
        telling = features if settings.is_pretrained else None
        near_copies = find_near_copies(images, run.cache, settings.image_size, settings.fit, telling)
    groups = np.array([near_copies.get(digest, digest) for digest in digests])
    if any(len(set(groups[labels == label])) < 2 for label in range(len(classes))):  # nothing would be left to fit to
        groups = digests
    return Suspects(classes, images.paths, labels, out_of_fold(features, labels, groups))


def out_of_fold(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Log-probabilities, (n, classes), of each image by a head that was fitted to the images of other folds.

    `features` are (n, features). Each fold has about the same part of every class, and images of the same group, (n,)
    strings, are in one: a copy with the same wrong label would vouch for it. The head is multinomial logistic regression on
    standardized features, with the weight decay of DECAYS, from strong to weak, after which the loss rises.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.preprocessing import StandardScaler

    features, classes = StandardScaler().fit_transform(features), labels.max() + 1
    folds = min(FOLDS, np.bincount(labels).max(), len(set(groups)))
    best, least_loss = np.empty(0), np.inf
    with warnings.catch_warnings(), progress("fitting heads", len(DECAYS)) as advance:
        warnings.simplefilter("ignore", ConvergenceWarning)  # more steps would not rank the images otherwise
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        split = list(StratifiedGroupKFold(folds).split(features, labels, groups))
        heads = [LogisticRegression(tol=1e-3, max_iter=STEPS, warm_start=True) for _ in split]
        for decay in DECAYS:
            probabilities = np.full((len(labels), classes), LEAST)
            for head, (others, fold) in zip(heads, split, strict=True):
                if len(fold) and len(set(labels[others])) > 1:
                    head.set_params(C=1 / (decay * len(others))).fit(features[others], labels[others])
                    probabilities[np.ix_(fold, head.classes_)] = head.predict_proba(features[fold])
            predicted = np.log(np.maximum(probabilities, LEAST))
            loss = -predicted[np.arange(len(labels)), labels].mean()
            if loss >= least_loss:
                break
            best, least_loss = predicted, loss
            advance()
    return best
