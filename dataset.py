"""The data: images and their classes, split into training and validation, in batches.

Read here how images come from a folder to the network: find, decode, split, batch. The order of a batch and the
augmentation of its images depend on nothing but (seed, epoch, image), so that a training can resume anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent))  # python -I leaves it out

from classifier.base import console
from classifier.base.console import DONE, NO_DATA, PROJECT, UserError, say, show
from classifier.base.files import check_output, digest_of
from classifier.base.prefetch import in_chunks, prefetch
from classifier.cluster.workers import compare_files
from classifier.data import inspection
from classifier.data.cache import Decoded, Parts, decode_once
from classifier.data.finding import Found, Paths, find_images, only_one_class
from classifier.data.splitting import group_names_of, members_of, refuse_small_classes, split_classes
from classifier.runs.settings import Settings


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a training: what was found in its folders, and what of that can be used."""

    found: Found
    data: DataSet  # those that can be decoded
    border: int  # position in `data` of the first one from the validation_dir
    skipped: list[tuple[Path, str]]  # files, and why


def read_images(settings: Settings, cache_dir: Path | None) -> Images:
    """Find, decode and check the images in the folders of the settings: see find_images() and decode_once().

    Raises UserError where fewer than two classes, or fewer than two different images of a class, are usable, and where
    workers that train together do not find the same.
    """
    # Find: paths and labels, no file is opened.
    found = find_images(settings.data_dir, None, settings.limit_per_class, settings.classes_from)
    if len(found.classes) < 2:
        raise UserError(f"{only_one_class(found)}: at least two are needed", NO_DATA)
    num_found = len(found.paths)
    if settings.validation_dir is not None:
        found += find_images(settings.validation_dir, found.classes, classes_from=settings.classes_from)
    compare_files(found)  # if several workers train together: each decodes a part
    # Decode: each file once, for this run and later ones.
    cache_bytes = settings.cache_limit and 1e9 * settings.cache_limit
    decoded = decode_once(found.paths, settings.image_size, cache_dir, settings.fit, cache_bytes)
    data = _usable(found, decoded, settings.image_size)
    # Check: what would spoil the training.
    inspection.warn_of_contradictions(data.paths, data.labels, data.digests)
    inspection.warn_of_flaws(decoded.flawed, len(found.paths))
    border = int(np.searchsorted(decoded.usable, num_found))
    if settings.validation_dir is None:
        refuse_small_classes(settings.data_dir, found.classes, data.labels, data.digests, decoded.skipped, least=2)
    else:
        for folder, side in (settings.data_dir, slice(border)), (settings.validation_dir, slice(border, None)):
            refuse_small_classes(folder, found.classes, data.labels[side], data.digests[side], decoded.skipped, least=1)
        inspection.warn_of_copies(data.paths, data.digests, border)
    return Images(found, data, border, decoded.skipped)


def read_labelled(found: Found, image_size: int, fit: str, cache_dir: Path | None) -> tuple[DataSet, list[tuple[Path, str]]]:
    """(those of the found images that can be decoded, the files that cannot, each with the reason)."""
    decoded = decode_once(found.paths, image_size, cache_dir, fit)
    return _usable(found, decoded, image_size), decoded.skipped


def _usable(found: Found, decoded: Decoded, image_size: int) -> DataSet:
    paths, labels = found.paths.take(decoded.usable), np.array(found.labels)[decoded.usable]
    return DataSet(paths, labels, decoded.digests, decoded.load, 3 * image_size**2)


@dataclasses.dataclass(frozen=True)
class TrainSets:
    """All usable images, the positions of those on each side of the split, and what is known of them."""

    images: DataSet
    train_positions: np.ndarray
    valid_positions: np.ndarray
    classes: list[str]  # in label order
    skipped: list[tuple[Path, str]]  # files, and why
    split: dict  # how it was made
    near_copies: dict[str, str]  # of digests of images that have near-copies, the name of their group
    fingerprint: str  # of all that the network learns from: classes, images, split

    @functools.cached_property
    def train(self) -> DataSet:
        """The DataSet for training."""
        return self.images.take(self.train_positions)

    @functools.cached_property
    def valid(self) -> DataSet:
        """The DataSet for validation."""
        return self.images.take(self.valid_positions)


def split_images(images: Images, settings: Settings, near_copies: dict[str, str]) -> TrainSets:
    """Split images: those in the settings' validation_dir are for validation, or else a part of each class.

    `validation_split` is that part, between 0 and 1; at least one image of a class goes to either side. Images stay
    together if the regular expression `group_by` finds the same in their paths, or if they are in a group of near_copies.
    """
    data, found = images.data, images.found
    if settings.validation_dir is not None:
        train, valid = np.split(np.arange(len(data)), [images.border])
        how = {"by": "folder", "validation_dir": str(Path(settings.validation_dir).absolute())}
    else:
        names, how = None, {"by": "image"}
        if settings.group_by is not None:
            relative = [path.relative_to(found.root).as_posix() for path in data.paths]
            names, how = group_names_of(relative, settings.group_by), {"by": "group", "group_by": settings.group_by}
        members = members_of(found.classes, data.labels)
        sides = split_classes(members, data.digests, settings.validation_split, names, near_copies)
        train, valid, how = np.array(sides[0]), np.array(sides[1]), how | sides[2]
    of_all = json.dumps([found.classes, settings.fit]).encode(), "".join(data.digests).encode(), data.labels
    fingerprint = digest_of(*of_all, train, valid, size=12)
    return TrainSets(data, train, valid, found.classes, images.skipped, how, near_copies, fingerprint)


class DataSet:
    """Labelled images: `paths`, `labels`, (n,) int32, and `digests` of the files, in a fixed order."""

    def __init__(self, paths: Paths, labels: np.ndarray | list[int], digests: list[str], load: Callable, image_bytes: int):
        """`load` takes positions, (k,) integers, and returns their images, (k, image_size, image_size, 3) uint8 RGB.

        `image_bytes` is the size of one of them in memory.
        """
        self.paths, self.labels, self.digests = paths, np.asarray(labels, np.int32), digests
        self.load, self._image_bytes = load, image_bytes

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, positions: np.ndarray) -> DataSet:
        """The DataSet of the images at these positions, (k,) integers, alone."""
        paths, digests = self.paths.take(positions), [self.digests[i] for i in positions]
        return DataSet(paths, self.labels[positions], digests, lambda rows: self.load(positions[rows]), self._image_bytes)

    def with_features(self, features: np.ndarray | Parts, rows: np.ndarray) -> DataSet:
        """The same labelled images with features in place of their pixels: `rows`, (n,), of (m, features) float32."""
        return DataSet(self.paths, self.labels, self.digests, lambda i: features[rows[i]], features[rows[:1]].nbytes)

    def batches(
        self,
        batch_size: int,
        seed: int | None = None,
        epoch: int = 0,
        first: int = 0,
        augment: Callable | None = None,
        share: Callable | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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

    def paths_of_batch(self, number: int, batch_size: int, seed: int, epoch: int) -> list[Path]:
        """The paths of the images in a batch, counted from 0: see batches()."""
        return [self.paths[i] for i in self._chunks(batch_size, seed, epoch)[number]]

    def _chunks(self, batch_size, seed, epoch):
        """The positions of the images of each batch, in order."""
        order = np.arange(len(self)) if seed is None else np.random.default_rng((seed, epoch)).permutation(len(self))
        return list(in_chunks(order, batch_size))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(description="Look at images before training: classes, sizes, unreadable files, copies.")
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=PROJECT / "training_data", help="default: training_data")
    add("--against", type=Path, metavar="FOLDER", help="images for testing, perhaps: also find those that both folders have")
    add("--format", choices=["table", "json"], default="table", help="format of standard output (default: table)")
    add("--html", type=Path, metavar="FILE", help="also write a page with the images of each finding and each class")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Look at the images, print what was found, and return the exit code."""
    arguments = parse_arguments(argv)
    check_output("--html", arguments.html, ".html", arguments.folder)
    found = find_images(arguments.folder)
    findings = inspection.inspect_found(found, arguments.against)
    show(json.dumps(findings, indent=1) if arguments.format == "json" else inspection.table_of(findings))
    if arguments.html is not None:
        from classifier.pages.report import write_report

        sections = inspection.finding_sections(findings) + inspection.class_sections(found)
        write_report(arguments.html, f"Images in {arguments.folder}", sections)
        say(f"written: {arguments.html}")
    return DONE


if __name__ == "__main__":
    console.run(main)
