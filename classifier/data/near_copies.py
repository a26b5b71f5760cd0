"""Near-copies among the images of a training: found once, and kept in its run folder, so that the split can be repeated."""

import csv
import functools
from pathlib import Path

import cv2
import numpy as np

from classifier.base.console import NO_DATA, UserError
from classifier.base.files import csv_text, digest_of
from classifier.cluster import workers
from classifier.data.cache import cached_rows
from classifier.data.duplicates import are_compared, grey_images, group_near_copies
from classifier.runs.folder import read_metadata
from classifier.training.settings import trains_head

FILE, HEADER = "near_copies.csv", ["digest", "group", "path"]
VERSION = 1  # raise it when group_near_copies() comes to find others


def near_copies_finder(settings, cache_dir):
    """A function that finds near-copies for dataset.read_train_sets(): see group_near_copies().

    With the features of a pretrained network, if one is to be trained, it finds more: see there.
    """
    if not settings["group_near_copies"]:
        return None
    return functools.partial(_find, settings=settings, cache_dir=cache_dir)


def _find(images, settings, cache_dir):
    """{digest: the least digest of its group} of those images in a DataSet that have near-copies; kept for later runs.

    Of several workers, each computes features, and the chief compares them.
    """
    if not are_compared(len(images)):
        return {}
    features = functools.cache(lambda: _features(images, settings, cache_dir) if trains_head(settings) else None)
    if workers.count > 1:
        features()
    return workers.of_chief(lambda: _find_alone(images, settings, cache_dir, features))


def _find_alone(images, settings, cache_dir, features):
    def make(write):
        write(group_near_copies(grey_images(lambda i: images.load(np.array([i]))[0], len(images)), features()))

    network = [settings[name] for name in ("network", "weights")] if trains_head(settings) else None
    key = str([VERSION, cv2.__version__, settings["image_size"], settings["fit"], network, images.digests])
    try:
        firsts, _ = cached_rows(Path(cache_dir, f"{digest_of(key.encode(), size=12)}.copies"), (), np.int64, make)
    except OSError:  # no cache
        parts = []
        make(parts.append)
        (firsts,) = parts
    members = {}
    for digest, first in zip(images.digests, firsts.tolist(), strict=True):
        members.setdefault(first, set()).add(digest)
    return {digest: min(digests) for digests in members.values() if len(digests) > 1 for digest in digests}


def _features(images, settings, cache_dir):
    """The features of a DataSet by the pretrained network that is to be trained, (n, features) float32."""
    from classifier.networks.by_name import create_network, extract_features
    from classifier.networks.pretrained import load_weights, split_at_features

    network = create_network(settings["network"], settings["image_size"], num_classes=2)
    load_weights(network, settings["weights"])
    extractor, _ = split_at_features(network)
    return extract_features(images, extractor, cache_dir, settings["fit"]).load(np.arange(len(images)))


def near_copies_text(sets):
    """The near-copies of TrainSets as a CSV file."""
    pairs = zip(sets.images.digests, sets.images.paths, strict=True)
    rows = [[digest, sets.near_copies[digest], path] for digest, path in pairs if digest in sets.near_copies]
    return csv_text(HEADER, sorted(rows, key=lambda row: row[1]))


def near_copies_reader(run):
    """A function for dataset.read_train_sets() that gives the near-copies with which the images of a run were split."""
    if "near_copies" not in read_metadata(run).get("split", {}):
        return None
    try:
        with open(run / FILE, newline="", encoding="utf-8", errors="surrogateescape") as file:
            near_copies = {row["digest"]: row["group"] for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        raise UserError(f"{run / FILE} is missing or damaged: restore it, or start a new run", NO_DATA) from None
    return lambda images: near_copies
