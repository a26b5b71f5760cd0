"""Compare heads with scikit-learn's logistic regression on the same features: python -m experiments.heads runs/001

The regression is fitted to the standardized features of the images that a run was trained and validated on; its C is chosen
by five-fold cross-validation.
"""

from pathlib import Path

import numpy as np

from classifier.base import console
from classifier.base.console import DONE, aligned
from classifier.data.finding import find_images
from classifier.data.images import decode_batches
from classifier.runs.folder import Run, find_run
from classifier.runs.record import RunRecord
from experiments.scripts import Parser, test_accuracy_of

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C, the inverse of the regularization


def main(argv: list[str] | None = None) -> int:
    """Print a table of both for each run; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_folder("--test-dir", "testing_data", "labelled images")
    arguments = parser.parse_args(argv)
    rows = [["run", "head, validation", "head, test", "C", "regression, cross-validation", "regression, test"]]
    for run in map(find_run, arguments.runs):
        strength, *accuracies = regression(run, arguments.test_dir)
        head = run.record.selected["val_accuracy"], test_accuracy_of(run.path, arguments.test_dir)
        shown = [f"{accuracy:.2%}" for accuracy in (*head, *accuracies)]
        rows.append([run.path.name, *shown[:2], str(strength), *shown[2:]])
    print(aligned(rows))
    return DONE


def regression(run: Run, test_dir: Path) -> tuple[float, float, float]:
    """(C, cross-validation accuracy, test accuracy) of logistic regression on the features of a run."""
    import keras
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from classifier.networks.by_name import last_features
    from classifier.runs.checkpoints import load_trained_network

    network = load_trained_network(run)
    extract = keras.Model(network.input, last_features(network)).predict_on_batch
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    search = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, cv=5)
    search.fit(*features_of(run.record.settings.data_dir, extract, run.record))
    test_accuracy = search.score(*features_of(test_dir, extract, run.record))
    return search.best_params_["logisticregression__C"], search.best_score_, test_accuracy


def features_of(folder: Path, extract, record: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    """(features, labels) of the images in a folder that can be read."""
    found = find_images(folder, record.classes)
    features, usable = [], []
    for _, reasons, images in decode_batches(found.paths, record.image_size, record.fit):
        features.append(np.asarray(extract(images)))
        usable += [reason is None for reason in reasons]
    return np.concatenate(features), np.asarray(found.labels)[usable]


if __name__ == "__main__":
    console.run(main)
