"""Near-copies among the images of a training: found once, and kept in its run folder, so that the split can be repeated."""

import csv
from pathlib import Path

import cv2
import numpy as np

from classifier.base.console import NO_DATA, UserError
from classifier.base.files import csv_text, digest_of
from classifier.data.cache import cached_rows
from classifier.data.duplicates import grey_images, group_near_copies

FILE, HEADER = "near_copies.csv", ["digest", "group", "path"]
VERSION = 1  # raise it when group_near_copies() comes to find others


def find_near_copies(images, cache_dir, image_size, fit, features=None):
    """{digest: the least digest of its group} of those images in a DataSet that have near-copies; kept for later runs."""

    def make(write):
        write(group_near_copies(grey_images(lambda i: images.load(np.array([i]))[0], len(images)), features))

    known = None if features is None else digest_of(features.tobytes())
    key = str([VERSION, cv2.__version__, image_size, fit, known, images.digests])
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


def near_copies_text(sets):
    """The near-copies of TrainSets as a CSV file."""
    pairs = zip(sets.images.digests, sets.images.paths, strict=True)
    rows = [[digest, sets.near_copies[digest], path] for digest, path in pairs if digest in sets.near_copies]
    return csv_text(HEADER, sorted(rows, key=lambda row: row[1]))


def read_near_copies(path):
    """What near_copies_text() gave."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return {row["digest"]: row["group"] for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        raise UserError(f"{path} is missing or damaged: restore it, or start a new run", NO_DATA) from None
