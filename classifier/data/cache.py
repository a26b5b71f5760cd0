"""The cache: rows that are computed once, decoded images or features, in memory-mapped files that later runs use too."""

import contextlib
import dataclasses
import json
import math
import os
import time
import zlib
from pathlib import Path

import cv2
import numpy as np

from classifier.base.console import progress, say
from classifier.base.files import digest_of, replacing
from classifier.base.prefetch import prefetch
from classifier.cluster import workers
from classifier.data.images import BadImageError, decode_image, is_blank, read_file
from classifier.data.tars import tar_of

DECODING_VERSION = 2  # raise it when decode_image() comes to give other pixels
DAYS_UNUSED = 30


def cached_rows(path, row_shape, dtype, make):
    """(rows, index): the rows, (n, *row_shape), are a memory map of the file `path`.

    If that file is missing or not whole, `make(write)` computes the rows, passes them to write() in arrays of any number,
    and returns the index: all else that is known of them, JSON data. The index is written last, with a digest and the
    checksum of the rows: without it the file does not count. If index["temporary"] is true, it is not kept.
    Raises OSError if the file cannot be written.
    """
    index_path = path.with_suffix(".json")
    try:
        digest, text = index_path.read_text().split("\n", 1)
        kept = json.loads(text) if digest == digest_of(text.encode()) else {}
        rows = _map_rows(path, (kept["rows"], *row_shape), dtype)
        if checksum_of(path) != kept["checksum"]:
            raise ValueError(f"{path} was changed")
        for used in (path, index_path):
            os.utime(used)
        return rows, kept["index"]
    except OSError:  # there is none yet, or it cannot be read
        pass
    except (ValueError, KeyError, TypeError):
        say(f"warning: {path} is damaged, or of an earlier version: it is made anew")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_unused(path.parent)
    with replacing(path) as partial, open(partial, "wb") as file:
        # Not through the memory map: on a full disk that would be a crash, this is an error.
        index = make(lambda array: file.write(np.ascontiguousarray(array, dtype)))
        count = file.tell() // (math.prod(row_shape) * np.dtype(dtype).itemsize)
    rows = _map_rows(path, (count, *row_shape), dtype)
    if not (index and index.get("temporary")):
        text = json.dumps({"rows": count, "checksum": checksum_of(path), "index": index})
        with contextlib.suppress(OSError), replacing(index_path) as partial:  # without it, later runs compute it again
            partial.write_text(f"{digest_of(text.encode())}\n{text}")
    return rows, index


def rows_of_all(path, row_shape, dtype, items, make):
    """(rows, indexes): cached_rows() of these items, with make(items, write); of several workers, each makes a part.

    The parts are files of their own in one folder, where every worker finds the rows of all. `indexes` are those of the
    parts. Raises OSError, on all workers, if one of them cannot write or read a part.
    """
    if workers.count > 1:
        path = path.with_stem(f"{path.stem}-{workers.index + 1}-of-{workers.count}")
    try:
        rows, index = cached_rows(path, row_shape, dtype, lambda write: make(workers.part_of(items), write))
        if workers.count == 1:
            return rows, [index]
        problem = None
    except OSError as error:
        if workers.count == 1:
            raise
        rows, index, problem = [], None, str(error)
    parts = workers.gather([path.name, len(rows), index, problem])
    try:
        maps = [_map_rows(path.with_name(name), (length, *row_shape), dtype) for name, length, _, _ in parts]
    except (OSError, ValueError) as error:
        maps, problem = [], problem or str(error)
    problems = [problem for problem in workers.gather(problem) if problem]
    if problems:
        raise OSError(problems[0])
    return Parts(maps), [index for _, _, index, _ in parts]


class Parts:
    """Rows of several arrays, one after the other; indexed by an array of positions."""

    def __init__(self, arrays):
        self._arrays, self._starts = arrays, np.cumsum([0, *map(len, arrays)])

    def __getitem__(self, positions):
        rows = np.empty((len(positions), *self._arrays[0].shape[1:]), self._arrays[0].dtype)
        for row, position in zip(rows, positions, strict=True):
            part = np.searchsorted(self._starts, position, side="right") - 1
            row[...] = self._arrays[part][position - self._starts[part]]
        return rows


def checksum_of(path):
    """The CRC-32 of a file: it finds damage, not intent, in much less time than an epoch takes with the same images."""
    checksum = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _map_rows(path, shape, dtype):
    """A memory map of a file. Raises ValueError if the file has another size."""
    if os.path.getsize(path) != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"{path} is not whole")
    return np.memmap(path, dtype, "r", shape=shape) if shape[0] else np.empty(shape, dtype)


def _remove_unused(folder):
    """Remove the files that no run has used for DAYS_UNUSED."""
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > DAYS_UNUSED * 24 * 3600:
            path.unlink()


@dataclasses.dataclass
class Decoded:
    """The result of decoding files: for each path the digest of its bytes, or None and the reason why it is skipped.

    `blank` says which show nothing. `images`, (k, image_size, image_size, 3) uint8 RGB, are the usable ones that are in the
    cache; `rows`, (n,), says where each of the n usable ones is: -1 if it is not. Where there is no cache, none is.
    """

    digests: list[str | None]
    reasons: list[str | None]
    blank: list[bool]
    rows: np.ndarray
    images: np.ndarray | None = None


def decode_once(paths, image_size, folder=None, fit="squash", limit=None):
    """Decode every image, once for this run and later ones: they are kept in a folder. Returns Decoded.

    With a `limit`, in bytes, only the first ones are kept; the others will be decoded again whenever they are needed.

    The file is named after all that shapes its pixels: each image's path, size and time, image size and fit, OpenCV.
    Where nothing can be written (or `folder` is None) all images are checked, but decoded again whenever they are needed.
    Of several workers, each decodes its part.
    """
    images = indexes = None
    most = len(paths) if limit is None else min(int(limit // (3 * image_size**2)) // workers.count, len(paths))
    make = lambda part, write: _decode_all(part, image_size, fit, write, most)  # noqa: E731
    if most < len(paths) and folder is not None:
        say(
            f"--cache-limit: at most {most * workers.count} images are kept decoded; the others are decoded whenever they"
            " are needed, which is slower"
        )
    if folder is not None and most:
        path = Path(folder, f"{_decoding_key(paths, image_size, fit, most)}.pixels")
        try:
            images, indexes = rows_of_all(path, (image_size, image_size, 3), np.uint8, paths, make)
        except OSError as error:
            say(f"no cache ({error}): images are decoded whenever they are needed, which is slower")
    indexes = indexes or workers.gather(make(workers.part_of(paths), lambda image: None))
    # Earlier versions did not look which are blank.
    columns = [(part["digests"], part["reasons"], part.get("blank", [False] * len(part["digests"]))) for part in indexes]
    rows = [_rows_of(reasons, most if images is not None else 0) for _, reasons, _ in columns]
    starts = np.cumsum([0, *((part >= 0).sum() for part in rows)])
    rows = np.concatenate([np.where(part >= 0, part + start, -1) for part, start in zip(rows, starts[:-1], strict=True)])
    return Decoded(*(sum(parts, []) for parts in zip(*columns, strict=True)), rows, images)


def _rows_of(reasons, most):
    """The rows of a part's usable images in the cache, which has the first `most`; -1 of the others."""
    rows = np.arange(sum(reason is None for reason in reasons))
    return np.where(rows < most, rows, -1)


def _decoding_key(paths, image_size, fit, most):
    limit = f" {most}" if most < len(paths) else ""
    parts = [f"{DECODING_VERSION} {cv2.__version__} {image_size} {fit}{limit}".encode()]
    for path in paths:
        parts.append(os.fsencode(path.absolute()) + b"\0")
        with contextlib.suppress(OSError):  # decoding it will say what is wrong
            status = os.stat((tar_of(path) or (path,))[0])
            parts.append(b"%d %d\0" % (status.st_size, status.st_mtime_ns))
    return digest_of(*parts, size=12)


def _decode_all(paths, image_size, fit, write, most):
    """Decode all files in parallel, and pass the first usable images, at most so many, to write(); returns the index."""

    def attempt(path):
        try:
            data = read_file(path)
            return digest_of(data), decode_image(path, data, image_size, fit), None
        except BadImageError as error:
            return None, None, error

    index, usable = {"digests": [], "reasons": [], "blank": [], "temporary": False}, 0
    with progress("decoding images", len(paths)) as advance:
        for digest, image, error in prefetch(attempt, paths, 3 * image_size**2):
            index["digests"].append(digest)
            index["reasons"].append(error and error.reason)
            index["blank"].append(error is None and is_blank(image))
            if error is None:
                if usable < most:
                    write(image)
                usable += 1
            elif not error.lasting:
                index["temporary"] = True
            advance()
    return index
