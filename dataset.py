"""The data: images and their classes, split into training and validation, in batches.

Read here how images come from a folder to the network: find, decode, split, batch. The order of a batch and the
augmentation of its images depend on nothing but (seed, epoch, image), so that a training can resume anywhere.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from classifier.base import console
from classifier.base.console import DONE, NO_DATA, PROJECT, UserError, say, show
from classifier.base.files import digest_of
from classifier.base.prefetch import in_chunks, prefetch
from classifier.data.cache import decode_once
from classifier.data.finding import find_images, only_one_class
from classifier.data.images import load_image
from classifier.data.splitting import group_names_of, split, split_groups


@dataclasses.dataclass
class TrainSets:
    """All usable images, the positions of those on each side of the split, and what is known of them."""

    images: "DataSet"
    train_positions: np.ndarray
    valid_positions: np.ndarray
    classes: list[str]  # in label order
    skipped: list[tuple[Path, str]]  # files, and why
    split: dict  # how it was made
    near_copies: dict[str, str]  # of digests of images that have near-copies, the name of their group
    fingerprint: str  # of all that the network learns from: classes, images, split

    @functools.cached_property
    def train(self):
        """The DataSet for training."""
        return self.images.take(self.train_positions)

    @functools.cached_property
    def valid(self):
        """The DataSet for validation."""
        return self.images.take(self.valid_positions)


@dataclasses.dataclass
class Images:
    """All images that were found in the folders of the settings, and those that can be used."""

    found: object
    decoded: object
    data: "DataSet"
    num_train: int  # of those found, how many are in --data-dir


def read_images(settings, cache_dir):
    """Find, check and decode the images."""
    found = find_images(settings.data_dir, None, settings.limit_per_class, settings.classes_from)
    if len(found.classes) < 2:
        raise UserError(f"{only_one_class(found)}: at least two are needed", NO_DATA)
    num_train = len(found.paths)
    if settings.validation_dir is not None:
        found = found.with_others(find_images(settings.validation_dir, found.classes, classes_from=settings.classes_from))
    limit = settings.cache_limit and 1e9 * settings.cache_limit
    decoded = decode_once(found.paths, settings.image_size, cache_dir, settings.fit, limit)
    _warn_of_contradictions(found, decoded.digests)
    _warn_of_blank(found, decoded.blank)
    return Images(found, decoded, usable_images(found, decoded, settings.image_size, settings.fit), num_train)


def split_images(images, settings, near_copies):
    """TrainSets."""
    found, decoded = images.found, images.decoded
    if settings.validation_dir is not None:
        train, valid, how = _split_by_folder(found, decoded, images.num_train, settings.validation_dir)
    else:
        _refuse_classes_too_small(found, decoded)
        train, valid, how = _split_each_class(found, decoded, settings.validation_split, settings.group_by, near_copies)
    row_of = np.cumsum([reason is None for reason in decoded.reasons]) - 1
    return TrainSets(
        images.data,
        row_of[train],
        row_of[valid],
        found.classes,
        [(path, reason) for path, reason in zip(found.paths, decoded.reasons, strict=True) if reason],
        how,
        near_copies,
        _fingerprint(found, decoded.digests, (train, valid), settings.fit),
    )


def _fingerprint(found, digests, sides, fit):
    """Identifies classes, the images of both sides of the split, and the fit: a digest of them as JSON, piece by piece."""

    def pieces():
        yield f"[{json.dumps(found.classes)}, ["
        for number, side in enumerate(sides):
            yield ", [" if number else "["
            for start in range(0, len(side), 1000):
                rows = [[digests[i], found.labels[i]] for i in side[start : start + 1000]]
                yield f"{', ' if start else ''}{json.dumps(rows)[1:-1]}"
            yield "]"
        yield "]]" if fit == "squash" else f"], {json.dumps(fit)}]"  # runs without a fit were squashed

    return digest_of(*(piece.encode() for piece in pieces()), size=12)


def _usable(found, reasons, positions):
    """{class: the positions of its usable images}."""
    usable = {name: [] for name in found.classes}
    for i in positions:
        if reasons[i] is None:
            usable[found.classes[found.labels[i]]].append(i)
    return usable


def _refuse_classes_too_small(found, decoded):
    """Raise UserError if a class has less than two different images."""
    for name, members in _usable(found, decoded.reasons, range(len(found.paths))).items():
        if len({decoded.digests[i] for i in members}) < 2:
            count = ["no usable images", "one usable image", "only copies of one image"][min(len(members), 2)]
            raise UserError(f"class {name!r} in {found.folder} has {count}: it needs two, one to validate on", NO_DATA)


def _split_each_class(found, decoded, validation_size, group_by, near_copies):
    """(training, validation, how): positions in found.paths, and how they were split, for the metadata."""
    usable = _usable(found, decoded.reasons, range(len(found.paths)))
    names = group_by and group_names_of([found.relative(i) for i in range(len(found.paths))], decoded.reasons, group_by)
    how = {"by": "group", "group_by": group_by} if group_by else {"by": "image"}
    if near_copies:
        how["near_copies"] = len(near_copies) - len(set(near_copies.values()))
        ids = [near_copies.get(digest) for digest in decoded.digests]
        try:
            train, valid, how["groups"] = split_groups(usable, decoded.digests, validation_size, names, ids)
            return train, valid, how | {"together": True}
        except UserError:  # a class has nothing else
            how["together"] = False
    if group_by:
        train, valid, how["groups"] = split_groups(usable, decoded.digests, validation_size, names)
    else:
        sides = [split(members, decoded.digests, validation_size) for members in usable.values()]
        train, valid = (sum(parts, []) for parts in zip(*sides, strict=True))
    return train, valid, how


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
        say(
            f"warning: {len(copies)} validation images are trained on, too, such as {copy}, a copy of {original}: the"
            " validation accuracy will be too high"
        )
    return *sides, {"by": "folder", "validation_dir": str(Path(validation_path).absolute())}


def _warn_of_contradictions(found, digests):
    """Warn of images that are in more than one class: at least one of their labels is wrong."""
    first_of, contradicting = {}, []
    for i, digest in enumerate(digests):
        if digest is not None:
            other = first_of.setdefault(digest, i)
            if found.labels[other] != found.labels[i]:
                contradicting.append((other, i))
    if contradicting:
        one, other = (found.paths[i] for i in contradicting[0])
        say(
            f"warning: {len(contradicting)} images are in two classes, such as {other}, a copy of {one}: remove those whose"
            " class is wrong"
        )


def _warn_of_blank(found, blank):
    """Warn of images that show nothing."""
    paths = [path for path, is_blank in zip(found.paths, blank, strict=True) if is_blank]
    if paths:
        count = f"all {len(paths)}" if len(paths) == len(found.paths) else f"{len(paths)} of {len(found.paths)}"
        say(f"warning: {count} images show nothing but one colour, such as {paths[0]}: there is little to learn from them")


class DataSet:
    """Labelled images: `paths`, `labels`, (n,) int32, and `digests` of the files, in a fixed order."""

    def __init__(self, paths, labels, digests, load, image_bytes):
        """`paths` are finding.Paths; `load` takes positions, (k,) integers, and returns their images.

        These are (k, image_size, image_size, 3) uint8 RGB; `image_bytes` is the size of one of them in memory.
        """
        self.paths, self.digests = paths, digests
        self.labels = np.asarray(labels, np.int32)
        self.load, self._image_bytes = load, image_bytes

    def __len__(self):
        return len(self.paths)

    def take(self, positions):
        """The DataSet of the images at these positions, (k,) integers, alone."""
        paths, digests = self.paths.take(positions), [self.digests[i] for i in positions]
        return DataSet(paths, self.labels[positions], digests, lambda rows: self.load(positions[rows]), self._image_bytes)

    def with_features(self, features, rows):
        """The same with features."""
        return DataSet(
            self.paths, self.labels, self.digests, lambda positions: features[rows[positions]], features[:1].nbytes
        )

    def batches(self, batch_size, seed=None, epoch=0, first=0, augment=None, share=None):
        """Yield (images, labels): (k, image_size, image_size, 3) uint8 RGB and (k,) int32.

        The last batch may be smaller. With a `seed` the images are shuffled. The order depends on nothing but (seed, epoch),
        so a run can resume within an epoch, at batch `first`, with the same batches. `augment(image, rng=...)`, if given,
        changes each image; its numpy Generator depends on nothing but (seed, epoch, image). `share(positions)`, if given,
        says which images of a batch to yield.
        """

        def load(positions):
            images = self.load(positions)
            if augment is not None and len(positions):
                rngs = (np.random.default_rng((seed, epoch, i)) for i in positions)
                images = np.stack([augment(image, rng=rng) for image, rng in zip(images, rngs, strict=True)])
            return images, self.labels[positions]

        chunks = self._chunks(batch_size, seed, epoch)[first:]
        return prefetch(load, map(share, chunks) if share else chunks, batch_size * self._image_bytes)

    def paths_of_batch(self, number, batch_size, seed, epoch):
        """The paths of the images in a batch, counted from 0: see batches()."""
        return [self.paths[i] for i in self._chunks(batch_size, seed, epoch)[number]]

    def _chunks(self, batch_size, seed, epoch):
        """The positions of the images of each batch, in order."""
        order = np.arange(len(self)) if seed is None else np.random.default_rng((seed, epoch)).permutation(len(self))
        return list(in_chunks(order, batch_size))


def usable_images(found, decoded, image_size, fit):
    """The DataSet of all found images that can be decoded: from the cache, or from their files if there is none."""
    usable = [i for i, reason in enumerate(decoded.reasons) if reason is None]
    paths = found.paths.take(usable)
    labels, digests = ([column[i] for i in usable] for column in (found.labels, decoded.digests))

    def load(positions):
        rows = decoded.rows[positions]
        if len(rows) and (rows >= 0).all():
            return decoded.images[rows]
        images = np.empty((len(rows), image_size, image_size, 3), np.uint8)
        images[rows >= 0] = decoded.images[rows[rows >= 0]] if (rows >= 0).any() else 0
        for i in np.flatnonzero(rows < 0):
            images[i] = load_image(paths[positions[i]], image_size, fit)
        return images

    return DataSet(paths, labels, digests, load, 3 * image_size**2)


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Look at a folder of images before training: classes, sizes, unreadable files, copies, odd images. "
        "Nothing is changed."
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
    from classifier.data.inspection import inspect, sections_of, table_of

    findings, found = inspect(arguments.folder, arguments.against)
    show(json.dumps(findings, indent=1) if arguments.format == "json" else table_of(findings))
    if arguments.html is not None:
        from classifier.pages.report import write_report

        write_report(arguments.html, f"Images in {arguments.folder}", sections_of(findings, found))
        say(f"written: {arguments.html}")
    return DONE


if __name__ == "__main__":
    console.run(main)
