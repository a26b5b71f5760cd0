"""The data: images and their classes, split into training and validation, in batches.

Read here how images come from a folder to the network: find, decode, split, batch. The order of a batch and the
augmentation of its images depend on nothing but (seed, epoch, image), so that a training can resume anywhere.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from classifier import console
from classifier.cache import decode_once
from classifier.console import DONE, NO_DATA, PROJECT, UserError, say
from classifier.files import digest_of
from classifier.finding import find_images, only_one_class
from classifier.images import load_image
from classifier.parallel import in_chunks, prefetch


@dataclasses.dataclass
class TrainSets:
    """Both sides of the split, the classes in label order, and the files that were skipped: (path, reason)."""

    train: "DataSet"
    valid: "DataSet"
    classes: list[str]
    skipped: list[tuple[Path, str]]
    fingerprint: str  # of all that the network learns from: classes, images, split


def read_train_sets(train_path, image_size, classes=None, validation_size=0.2, limit_per_class=None, cache_dir=None):
    """Find, decode and split the images in a folder: the whole way from a folder to batches.

    `validation_size` is the fraction of each class, between 0 and 1, that is kept for validation; at least one image of
    a class goes to either side. `classes`, `limit_per_class`: see find_images(). `cache_dir`: see decode_once().
    Returns TrainSets. Raises UserError where fewer than two classes, or fewer than two different images of a class, are
    usable.
    """
    found = find_images(train_path, classes, limit_per_class)
    if len(found.classes) < 2:
        raise UserError(f"{only_one_class(found)}: at least two are needed", NO_DATA)
    decoded = decode_once(found.paths, image_size, cache_dir)
    _warn_of_contradictions(found, decoded.digests)
    train, valid = _split_each_class(found, decoded, validation_size)
    learnt_from = [[(decoded.digests[i], found.labels[i]) for i in side] for side in (train, valid)]
    return TrainSets(
        _data_set(found, decoded, train, image_size),
        _data_set(found, decoded, valid, image_size),
        found.classes,
        [(path, reason) for path, reason in zip(found.paths, decoded.reasons, strict=True) if reason],
        digest_of(json.dumps([found.classes, learnt_from]).encode(), size=12),
    )


def _split_each_class(found, decoded, validation_size):
    """Positions in found.paths of the training images, and of the validation images."""
    usable = [[] for _ in found.classes]
    for i, (label, reason) in enumerate(zip(found.labels, decoded.reasons, strict=True)):
        if reason is None:
            usable[label].append(i)
    train, valid = [], []
    for name, members in zip(found.classes, usable, strict=True):
        if len({decoded.digests[i] for i in members}) < 2:
            count = ["no usable images", "one usable image", "only copies of one image"][min(len(members), 2)]
            raise UserError(f"class {name!r} in {found.folder} has {count}: it needs two, one to validate on", NO_DATA)
        train_part, valid_part = split(members, decoded.digests, validation_size)
        train += train_part
        valid += valid_part
    return train, valid


def split(members, digests, validation_size):
    """Split the images of one class, a list of positions in `digests`: returns (training, validation), both in order.

    At least two of them must be different. They are ranked by the digest of their bytes. Chance, order and file names have
    no influence: an image stays on its side when others are added, except a few next to the border, and so do its copies.
    """
    ranked = sorted(members, key=lambda i: (digests[i], i))
    borders = [n for n in range(1, len(ranked)) if digests[ranked[n - 1]] != digests[ranked[n]]]  # between two images
    count = next((n for n in borders if n >= round(len(members) * validation_size)), borders[-1])
    return sorted(ranked[count:]), sorted(ranked[:count])


def _warn_of_contradictions(found, digests):
    """Warn of images that are in more than one class: at least one of their labels is wrong."""
    first_of, contradicting = {}, []
    for path, label, digest in zip(found.paths, found.labels, digests, strict=True):
        if digest is not None:
            other_path, other_label = first_of.setdefault(digest, (path, label))
            if other_label != label:
                contradicting.append((other_path, path))
    if contradicting:
        one, other = contradicting[0]
        say(f"warning: {len(contradicting)} images are in two classes, such as {other}, a copy of {one}: remove those whose"
            " class is wrong")  # fmt: skip


class DataSet:
    """Labelled images of one side of the split: `paths` and `labels`, (n,) int32, in a fixed order."""

    def __init__(self, paths, labels, load, image_bytes):
        """`load` takes positions, (k,) integers, and returns images, (k, image_size, image_size, 3) uint8 RGB.

        `image_bytes` is the size of one of them in memory.
        """
        self.paths = paths
        self.labels = np.asarray(labels, np.int32)
        self._load, self._image_bytes = load, image_bytes

    def __len__(self):
        return len(self.paths)

    def take(self, positions):
        """The DataSet of the images at these positions, (k,) integers, alone."""
        paths, labels = [self.paths[i] for i in positions], self.labels[positions]
        return DataSet(paths, labels, lambda rows: self._load(positions[rows]), self._image_bytes)

    def batches(self, batch_size, seed=None, epoch=0, first=0, augment=None):
        """Yield (images, labels): (k, image_size, image_size, 3) uint8 RGB and (k,) int32.

        The last batch may be smaller. With a `seed` the images are shuffled. The order depends on nothing but (seed, epoch),
        so a run can resume within an epoch, at batch `first`, with the same batches. `augment(image, rng=...)`, if given,
        changes each image; its numpy Generator depends on nothing but (seed, epoch, image).
        """

        def load(positions):
            images = self._load(positions)
            if augment is not None:
                rngs = (np.random.default_rng((seed, epoch, i)) for i in positions)
                images = np.stack([augment(image, rng=rng) for image, rng in zip(images, rngs, strict=True)])
            return images, self.labels[positions]

        order = np.arange(len(self)) if seed is None else np.random.default_rng((seed, epoch)).permutation(len(self))
        chunks = list(in_chunks(order, batch_size))[first:]
        return prefetch(load, chunks, batch_size * self._image_bytes)


def _data_set(found, decoded, members, image_size):
    """The DataSet of some of the found images: from the cache, or from their files if there is none."""
    paths = [found.paths[i] for i in members]
    rows = np.cumsum([reason is None for reason in decoded.reasons])[members] - 1

    def load(positions):
        if decoded.images is not None:
            return decoded.images[rows[positions]]
        return np.stack([load_image(paths[i], image_size) for i in positions])

    return DataSet(paths, [found.labels[i] for i in members], load, 3 * image_size**2)


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Look at a folder of images before training: classes, sizes, unreadable files, copies, odd images. "
        "Nothing is changed.",
    )
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=PROJECT / "training_data", help="default: training_data")
    add("--against", type=Path, metavar="FOLDER", help="images for testing, perhaps: also find those that both folders have")
    add("--format", choices=["table", "json"], default="table", help="format of standard output (default: table)")
    add("--html", type=Path, metavar="FILE", help="also write a page with the images of each finding and each class")
    return parser.parse_args(argv)


def main(argv=None):
    """Look at the images, print what was found, and return the exit code."""
    arguments = parse_arguments(argv)
    from classifier.inspection import inspect, sections_of, table_of

    findings, found = inspect(arguments.folder, arguments.against)
    print(json.dumps(findings, indent=1) if arguments.format == "json" else table_of(findings))
    if arguments.html is not None:
        from classifier.report import write_report

        write_report(arguments.html, f"Images in {arguments.folder}", sections_of(findings, found))
        say(f"written: {arguments.html}")
    return DONE


if __name__ == "__main__":
    console.run(main)
