"""Compare heads with scikit-learn's logistic regression on the same features: python -m tools.logistic_regression runs/001

The regression is fitted to the training images of the run, its features standardized, its C chosen by the validation images.
"""

import argparse
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, PROJECT, USAGE, UserError, aligned
from classifier.runs.folder import find_run, read_metadata
from tools.scripts import test_accuracy_of

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C, the inverse of the regularization


def main(argv=None):
    """Print a table of both for each run; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Compare the heads of runs with a frozen pretrained network with scikit-learn's logistic regression."
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN_FOLDER")
    add("--test-dir", type=Path, default=PROJECT / "testing_data", metavar="FOLDER", help="default: testing_data")
    arguments = parser.parse_args(argv)
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UserError("this needs scikit-learn: pip install -c requirements-optional.txt scikit-learn", USAGE) from None
    rows = [["run", "head, validation", "head, test", "C", "regression, validation", "regression, test"]]
    for run in map(find_run, arguments.runs):
        strength, validation, test = regression(run, arguments.test_dir)
        head = read_metadata(run)["selected"]["val_accuracy"], test_accuracy_of(run, arguments.test_dir)
        shown = [f"{accuracy:.2%}" for accuracy in (*head, validation, test)]
        rows.append([run.name, *shown[:2], strength, *shown[2:]])
    print(aligned(rows))
    return DONE


def regression(run, test_dir):
    """(C, validation accuracy, test accuracy) of logistic regression on the features of a run."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (train, train_labels), (valid, valid_labels), (test, test_labels) = features_of(run, test_dir)
    fitted = []
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(train, train_labels)
        fitted.append((model.score(valid, valid_labels), -strength, model))
    validation, strength, model = max(fitted, key=lambda row: row[:2])
    return -strength, validation, model.score(test, test_labels)


def features_of(run, test_dir):
    """(features, labels) of the training, validation and test images of a run with a frozen pretrained network."""
    from classifier.data.cache import decode_once
    from classifier.data.finding import find_images
    from classifier.data.near_copies import near_copies_reader
    from classifier.networks.by_name import create_network, extract_features
    from classifier.networks.pretrained import split_at_features
    from classifier.runs.checkpoints import load_selected
    from classifier.training.settings import data_options
    from dataset import read_train_sets, usable_images

    metadata, cache = read_metadata(run), run.parent / ".cache"
    size, fit, classes = (metadata[name] for name in ("image_size", "fit", "classes"))
    network = create_network(metadata["network"], size, len(classes), feature_scales=metadata["feature_scales"])
    load_selected(run, network)
    extractor, _ = split_at_features(network)
    options = data_options(metadata["settings"]) | {"cache_dir": cache, "near_copies_of": near_copies_reader(run)}
    sets = read_train_sets(metadata["settings"]["data_dir"], size, classes, **options)
    found = find_images(test_dir, classes)
    test = usable_images(found, decode_once(found.paths, size, cache, fit), size, fit)
    parts = sets.images, test
    of_images, of_test = (extract_features(part, extractor, cache, fit).load(slice(None)) for part in parts)
    sides = [(of_images[rows], sets.images.labels[rows]) for rows in (sets.train_positions, sets.valid_positions)]
    return [*sides, (of_test, test.labels)]


if __name__ == "__main__":
    console.run(main)
