"""The cache: rows that are computed once, decoded images or features, in memory-mapped files that later runs use too."""

import contextlib
import dataclasses
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL

from classifier.base.console import describe, progress, say
from classifier.base.files import digest_of, replacing
from classifier.base.prefetch import prefetch
from classifier.cluster import workers
from classifier.data.images import BadImageError, decode_image, flaw_of, load_image, read_file
from classifier.data.tars import tar_of

DECODING_VERSION = f"3 {PIL.__version__}"  # raise the first number when decode_image() comes to give other pixels
DAYS_UNUSED = 30


def cached_rows(path: Path, row_shape: tuple[int, ...], dtype: type, make: Callable) -> tuple[np.ndarray, Any]:
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
            raise ValueError
        for used in (path, index_path):
            os.utime(used)
        return rows, kept["index"]
    except OSError:  # there is none yet, or it cannot be read
        pass
    except (ValueError, KeyError):
        say(f"warning: {path} is damaged: it is made anew")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_unused(path.parent)
    with replacing(path) as partial, open(partial, "wb") as file:
        # Not through the memory map: on a full disk that would be a crash, this is an error.
        index = make(lambda array: file.write(np.ascontiguousarray(array, dtype).data))
        count = file.tell() // (math.prod(row_shape) * np.dtype(dtype).itemsize)
    rows = _map_rows(path, (count, *row_shape), dtype)
    if not (index and index.get("temporary")):
        text = json.dumps({"rows": count, "checksum": checksum_of(path), "index": index})
        with contextlib.suppress(OSError), replacing(index_path) as partial:  # without it, later runs compute it again
            partial.write_text(f"{digest_of(text.encode())}\n{text}")
    return rows, index


def rows_of_all(
    path: Path, row_shape: tuple[int, ...], dtype: type, items: Sequence, make: Callable
) -> tuple["np.ndarray | Parts", list]:
    """(rows, indexes): cached_rows() of these items, with make(items, write); of several workers, each makes a part.

    The parts are files of their own in one folder, where every worker finds the rows of all. `indexes` are those of the
    parts. Raises OSError, on all workers, if one of them cannot write or read a part.
    """
    if workers.count == 1:
        rows, index = cached_rows(path, row_shape, dtype, lambda write: make(items, write))
        return rows, [index]
    path = path.with_stem(f"{path.stem}-{workers.index + 1}-of-{workers.count}")
    count, index, maps, problem = 0, None, [], None
    try:
        rows, index = cached_rows(path, row_shape, dtype, lambda write: make(workers.part_of(items), write))
        count = len(rows)
    except OSError as error:
        problem = str(error)
    parts = workers.gather([path.name, count, index])
    try:
        maps = [_map_rows(path.with_name(name), (length, *row_shape), dtype) for name, length, _ in parts]
    except (OSError, ValueError) as error:
        problem = problem or str(error)
    if problems := [told for told in workers.gather(problem) if told]:
        raise OSError(problems[0])
    return Parts(maps), [index for _, _, index in parts]


class Parts:
    """Rows of several arrays, one after the other; indexed by an array of positions."""

    def __init__(self, arrays: list[np.ndarray]):
        self._arrays, self._starts = arrays, np.cumsum([0, *map(len, arrays)])

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        rows = np.empty((len(positions), *self._arrays[0].shape[1:]), self._arrays[0].dtype)
        for row, position in zip(rows, positions, strict=True):
            part = np.searchsorted(self._starts, position, side="right") - 1
            row[...] = self._arrays[part][position - self._starts[part]]
        return rows


def checksum_of(path: Path) -> int:
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
    """The result of decoding files: which can be used, and the images of these."""

    skipped: list[tuple[Path, str]]  # files that cannot be used, and why
    flawed: dict[str, list[Path]]  # images of little use: see images.flaw_of()
    usable: np.ndarray  # (n,), positions of the files that can be used
    digests: list[str]  # of the bytes of these
    load: Callable[[np.ndarray], np.ndarray]  # of rows of `usable`, (k,), the images, (k, image_size, image_size, 3) uint8


def decode_once(
    paths: Sequence[Path], image_size: int, folder: Path | None = None, fit: str = "squash", limit: float | None = None
) -> Decoded:
    """Decode every image, once for this run and later ones: they are kept in a folder.

    With a `limit`, in bytes, only the first ones are kept; the others will be decoded again whenever they are needed.
    The file is named after all that shapes its pixels: each image's path, size, times and place on the disk, which tell an
    image from another that was moved to its path; image size and fit; the versions of the decoders.
    Where nothing can be written (or `folder` is None) all images are checked, but decoded again whenever they are needed.
    Of several workers, each decodes its part.
    """
    most = len(paths) if limit is None else min(int(limit // (3 * image_size**2)) // workers.count, len(paths))
    if most < len(paths) and folder is not None:
        say(
            f"--cache-limit: at most {most * workers.count} images are kept decoded; the others are decoded whenever they"
            " are needed, which is slower"
        )
    images: np.ndarray | Parts | None = None
    if folder is not None and most:
        path = Path(folder, f"{_decoding_key(paths, image_size, fit, most)}.pixels")
        make = lambda part, write: _decode_all(part, image_size, fit, write, most)  # noqa: E731
        try:
            images, indexes = rows_of_all(path, (image_size, image_size, 3), np.uint8, paths, make)
        except OSError as error:
            say(f"no cache in {folder} ({describe(error)}): images are decoded whenever they are needed, which is slower")
    if images is None:
        indexes = workers.gather(_decode_all(workers.part_of(paths), image_size, fit))
    digests, reasons, flaws, cached = zip(*(file for index in indexes for file in index["files"]), strict=True)
    usable = np.array([i for i, reason in enumerate(reasons) if reason is None], int)
    is_cached = np.array(cached)[usable]
    row_of = np.where(is_cached, np.cumsum(is_cached) - 1, -1)
    skipped = [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason is not None]
    flawed = {flaw: [paths[i] for i, found in enumerate(flaws) if found == flaw] for flaw in ("dim", "blank")}

    def load(positions):
        rows = row_of[positions]
        if images is not None and (rows >= 0).all():
            return images[rows]
        pairs = zip(rows, usable[positions], strict=True)
        loaded = [images[[row]][0] if row >= 0 else load_image(paths[i], image_size, fit) for row, i in pairs]
        return np.array(loaded, np.uint8).reshape(-1, image_size, image_size, 3)  # of the same shape if there is none

    return Decoded(skipped, flawed, usable, [digests[i] for i in usable], load)


def _decoding_key(paths, image_size, fit, most):
    limit = f" {most}" if most < len(paths) else ""
    parts = [f"{DECODING_VERSION} {cv2.__version__} {image_size} {fit}{limit}".encode()]
    for path in paths:
        parts.append(os.fsencode(path.absolute()) + b"\0")
        with contextlib.suppress(OSError):  # decoding it will say what is wrong
            status = os.stat((tar_of(path) or (path,))[0])
            parts.append(b"%d %d %d %d\0" % (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    return digest_of(*parts, size=12)


def _decode_all(paths, image_size, fit, write=None, most=0):
    """Decode all files in parallel, and pass the first usable images, at most so many, to write().

    Returns the index: "files" are (digest, reason, flaw, whether it was written).
    """

    def attempt(path):
        try:
            data = read_file(path)
            return digest_of(data), decode_image(path, data, image_size, fit), None
        except BadImageError as error:
            return None, None, error

    files, lasting = [], True
    with progress("decoding images", len(paths)) as advance:
        for digest, image, error in prefetch(attempt, paths, 3 * image_size**2):
            advance()
            if error is not None:
                files.append((None, error.reason, None, False))
                lasting &= error.lasting
                continue
            files.append((digest, None, flaw_of(image), most > 0))
            if most > 0:
                write(image)
                most -= 1
    return {"files": files, "temporary": not lasting}
