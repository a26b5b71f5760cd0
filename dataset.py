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
from classifier.duplicates import cached_near_copies, grey_images
from classifier.files import digest_of
from classifier.finding import find_images, only_one_class
from classifier.images import load_image
from classifier.parallel import in_chunks, prefetch
from classifier.splitting import group_names_of, split, split_groups


@dataclasses.dataclass
class TrainSets:
    """Both sides of the split, the classes in label order, and the files that were skipped: (path, reason)."""

    train: "DataSet"
    valid: "DataSet"
    classes: list[str]
    skipped: list[tuple[Path, str]]
    split: dict  # how it was made
    fingerprint: str  # of all that the network learns from: classes, images, split


def read_train_sets(
    train_path, image_size, classes=None, validation_size=0.2, limit_per_class=None, cache_dir=None, *,
    fit="squash", classes_from=None, group_by=None, group_near_copies=False, validation_path=None,
):  # fmt: skip
    """Find, decode and split the images in a folder: the whole way from a folder to batches.

    `validation_size` is the fraction of each class, between 0 and 1, that is kept for validation; at least one image of
    a class goes to either side. Images stay together if the regular expression `group_by` finds the same in their paths,
    and, with `group_near_copies`, if they show the same photograph: see duplicates.py.
    All are for training if those in the folder `validation_path` are for validation. `classes`, `limit_per_class`,
    `classes_from`: see find_images(). `cache_dir`: see decode_once(). `fit`: see fit_square().
    Returns TrainSets. Raises UserError where fewer than two classes, or fewer than two different images of a class, are
    usable.
    """
    found = find_images(train_path, classes, limit_per_class, classes_from)
    if len(found.classes) < 2:
        raise UserError(f"{only_one_class(found)}: at least two are needed", NO_DATA)
    num_train = len(found.paths)
    if validation_path is not None:
        found = found.with_others(find_images(validation_path, found.classes, classes_from=classes_from))
    decoded = decode_once(found.paths, image_size, cache_dir, fit)
    _warn_of_contradictions(found, decoded.digests)
    load = load_of(found, decoded, image_size, fit)
    if validation_path is not None:
        train, valid, how = _split_by_folder(found, decoded, num_train, validation_path)
    else:
        near_copies = _near_copies(found, decoded, load, f"{image_size} {fit}", cache_dir) if group_near_copies else None
        train, valid, how = _split_each_class(found, decoded, validation_size, group_by, near_copies)
    learnt_from = [[(decoded.digests[i], found.labels[i]) for i in side] for side in (train, valid)]
    shaping = [found.classes, learnt_from, *([fit] if fit != "squash" else [])]  # runs without a fit were squashed
    return TrainSets(
        data_set_of(found, train, load, image_size),
        data_set_of(found, valid, load, image_size),
        found.classes,
        [(path, reason) for path, reason in zip(found.paths, decoded.reasons, strict=True) if reason],
        how,
        digest_of(json.dumps(shaping).encode(), size=12),
    )


def _usable(found, reasons, positions):
    """{class: the positions of its usable images}."""
    usable = {name: [] for name in found.classes}
    for i in positions:
        if reasons[i] is None:
            usable[found.classes[found.labels[i]]].append(i)
    return usable


def _split_each_class(found, decoded, validation_size, group_by=None, near_copies=None):
    """(training, validation, how): positions in found.paths, and how they were split, for the metadata.

    `near_copies` is None, or a list: for each of found.paths an id that it shares with its near-copies, None if it has none.
    """
    usable = _usable(found, decoded.reasons, range(len(found.paths)))
    for name, members in usable.items():
        if len({decoded.digests[i] for i in members}) < 2:
            count = ["no usable images", "one usable image", "only copies of one image"][min(len(members), 2)]
            raise UserError(f"class {name!r} in {found.folder} has {count}: it needs two, one to validate on", NO_DATA)
    names = group_by and group_names_of([found.relative(i) for i in range(len(found.paths))], decoded.reasons, group_by)
    how = {"by": "group", "group_by": group_by} if group_by else {"by": "image"}
    if near_copies:
        groups = len({near_copies[i] for members in usable.values() for i in members})
        how |= {"near_copies": len({decoded.digests[i] for members in usable.values() for i in members}) - groups}
        try:
            train, valid, how["groups"] = split_groups(usable, decoded.digests, validation_size, names, near_copies)
            return train, valid, how | {"together": True}
        except UserError:  # a class has nothing else
            how["together"] = False
    if group_by:
        train, valid, how["groups"] = split_groups(usable, decoded.digests, validation_size, names)
    else:
        sides = [split(members, decoded.digests, validation_size) for members in usable.values()]
        train, valid = (sum(parts, []) for parts in zip(*sides, strict=True))
    return train, valid, how


def _near_copies(found, decoded, load, key, cache_dir):
    """For each of found.paths an id that it shares with its near-copies; None if no image has any but exact copies.

    `load` takes positions of usable images: see load_of(). The result is kept in the folder `cache_dir`; `key` is all that
    shapes the images beside their files.
    """
    usable = [i for i, reason in enumerate(decoded.reasons) if reason is None]
    greys = lambda: grey_images(lambda i: load([usable[i]])[0], len(usable))  # noqa: E731
    firsts = cached_near_copies(f"{key} {[decoded.digests[i] for i in usable]}", greys, cache_dir).tolist()
    if len(set(firsts)) == len({decoded.digests[i] for i in usable}):
        return None
    ids = [None] * len(found.paths)
    for i, first in zip(usable, firsts, strict=True):
        ids[i] = first
    return ids


def _split_by_folder(found, decoded, num_train, validation_path):
    """(training, validation, how): the first `num_train` images are for training. Warns of copies on both sides."""
    sides = []
    for folder, positions in (found.folder, range(num_train)), (validation_path, range(num_train, len(found.paths))):
        usable = _usable(found, decoded.reasons, positions)
        for name, members in usable.items():
            if not members:
                raise UserError(f"class {name!r} has no usable images in {folder}", NO_DATA)
        sides.append(sum(usable.values(), []))
    digests = {decoded.digests[i]: i for i in reversed(sides[0])}
    copies = [(i, digests[decoded.digests[i]]) for i in sides[1] if decoded.digests[i] in digests]
    if copies:
        copy, original = (found.paths[i] for i in copies[0])
        say(f"warning: {len(copies)} validation images are trained on, too, such as {copy}, a copy of {original}: the"
            " validation accuracy will be too high")  # fmt: skip
    return *sides, {"by": "folder", "validation_dir": str(Path(validation_path).absolute())}


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


def load_of(found, decoded, image_size, fit):
    """A function from positions of usable images, (k,), to the images: from the cache, or from their files without one."""
    rows = np.cumsum([reason is None for reason in decoded.reasons]) - 1

    def load(positions):
        if decoded.images is not None:
            return decoded.images[rows[positions]]
        return np.stack([load_image(found.paths[i], image_size, fit) for i in positions])

    return load


def data_set_of(found, members, load, image_size):
    """The DataSet of the found images at the positions `members`; load: see load_of()."""
    paths, labels, members = [found.paths[i] for i in members], [found.labels[i] for i in members], np.array(members, int)
    return DataSet(paths, labels, lambda positions: load(members[positions]), 3 * image_size**2)


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
