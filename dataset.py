"""Pictures: finds them, names their classes, decodes them, splits them, and yields them in batches.

Everything here is NumPy and OpenCV. A picture is always the same array, for training and for prediction:
`(image_size, image_size, 3)`, uint8, RGB, upright.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import stat
import struct
import time
import unicodedata
from pathlib import Path

import libraries

# isort: split
import cv2
import numpy as np

import cpu
from console import NO_DATA, UserError, progress, put_in_place, say, write_whole

MAX_FILE_BYTES = 1 << 30
READ_AHEAD_BYTES = 1 << 29  # of decoded pictures, at most, on a machine of however many cores
KIND_OF_SUFFIX = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".bmp": "BMP", ".gif": "GIF",
    ".webp": "WebP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff", "PNG": rb"\x89PNG\r\n\x1a\n", "BMP": rb"BM", "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP", "TIFF": rb"II\*\0|MM\0\*",
}  # fmt: skip
REDUCTIONS = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
CACHE_VERSION = 2  # raise it when decode_picture() comes to give other pixels

cv2.setNumThreads(1)  # pictures are decoded side by side; threads inside each one would only get in the way


class BadPictureError(UserError):
    """A file that cannot be used as a picture; `error.reason` says why."""

    def __init__(self, path, reason, lasting=True):
        """`lasting` is False where the same file may be good the next time."""
        super().__init__(f"{path}: {reason}", NO_DATA)
        self.reason, self.lasting = reason, lasting


# --- Find: folders to paths and labels --------------------------------------------------------------------------------


@dataclasses.dataclass
class Found:
    """Labelled pictures, not yet opened: `labels[i]` is the index in `classes` of `paths[i]`."""

    folder: Path
    classes: list[str]
    paths: list[Path]
    labels: list[int]


def natural_key(path):
    """Sort key that reads numbers as numbers: `cat.2.jpg` before `cat.10.jpg`."""
    parts = re.split(r"([0-9]+)", str(path))  # every second one is a number
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(path)


def walk_pictures(folder):
    """Relative paths of all files below `folder` with a picture's suffix, in natural order, and how many others.

    Hidden files and folders are passed over without counting, links are followed. What cannot be opened is said.
    """
    pictures, others, seen = [], collections.Counter(), set()
    cannot_open = lambda error: say(f"ignored: {error.filename}: {error.strerror}")  # noqa: E731
    for root, folders, names in os.walk(folder, onerror=cannot_open, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads in a circle
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in names:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in KIND_OF_SUFFIX:
                pictures.append(Path(root, name).relative_to(folder))
            else:
                others[suffix or name] += 1
    return sorted(pictures, key=natural_key), others


def find_pictures(folder, classes=None, limit_per_class=None):
    """Find labelled pictures in class folders (`cats/1.jpg`) or in Kaggle's flat naming (`cat.1.jpg`).

    `classes` are the classes to look for, in the order of their labels; None takes all, sorted by name.
    `limit_per_class` takes the first so many of each class, in natural order. What is passed over is said.
    Raises UserError where there is nothing to learn from, or a class is not one of `classes`.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"there is no folder {folder}", NO_DATA)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", NO_DATA)
    pictures, others = walk_pictures(folder)
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        say(f"ignored: {others.total()} files in {folder} that are not pictures ({kinds})")
    by_class = _group_by_class(folder, pictures)
    _refuse_names_that_differ_by_case(folder, by_class)
    names = sorted(by_class) if classes is None else list(classes)
    unknown = sorted(set(by_class) - set(names))
    if unknown:
        raise UserError(f"{folder}: class {unknown[0]!r} is not one of the model's: {', '.join(names)}", NO_DATA)
    found = Found(folder, names, [], [])
    for label, name in enumerate(names):
        chosen = by_class.get(name, [])[:limit_per_class]
        found.paths += [folder / path for path in chosen]
        found.labels += [label] * len(chosen)
    return found


def _group_by_class(folder, pictures):
    """{class name: its relative paths}: by top folder if there are any, else by the name's part before the first dot."""
    in_folders = [path for path in pictures if len(path.parts) > 1]
    flat = [path for path in pictures if len(path.parts) == 1]
    by_class = collections.defaultdict(list)
    if in_folders:
        for path in in_folders:
            by_class[path.parts[0]].append(path)
        for name in sorted(os.listdir(folder)):
            if os.path.isdir(folder / name) and name not in by_class and not name.startswith((".", "__MACOSX")):
                say(f"ignored: folder {folder / name}, which holds no picture")
        stray, why = flat, "lie beside the class folders"
    else:
        labelled = [path for path in flat if path.name.count(".") >= 2]
        for path in labelled:
            by_class[path.name.split(".")[0]].append(path)
        stray, why = [path for path in flat if path.name.count(".") < 2], "have no class in their names"
    if not by_class:
        advice = "put them in a folder for each class, or name them like cat.1.jpg"
        problem = f"the pictures in {folder} have no class: {advice}" if stray else f"no pictures in {folder}"
        raise UserError(problem, NO_DATA)
    if stray:
        say(f"ignored: {len(stray)} pictures in {folder} that {why} ({stray[0]}{' …' if len(stray) > 1 else ''})")
    return by_class


def _refuse_names_that_differ_by_case(folder, names):
    seen = {}
    for name in sorted(names):
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UserError(f"{folder}: the classes {other!r} and {name!r} differ only by case: rename one", NO_DATA)


# --- Decode: one file to one array ------------------------------------------------------------------------------------


def read_picture(path):
    """The bytes of an ordinary file of sensible size, not empty; raises BadPictureError for any other."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadPictureError(path, "not a file")
        if status.st_size == 0:
            raise BadPictureError(path, "empty file")
        if status.st_size > MAX_FILE_BYTES:
            raise BadPictureError(path, "too large: more than 1 GiB")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadPictureError(path, error.strerror, lasting=isinstance(error, FileNotFoundError)) from None
    except ValueError as error:  # a zero byte in the path
        raise BadPictureError(path, str(error)) from None


def decode_picture(path, data, image_size):
    """The one way from the bytes of a file to the pixels that the network sees.

    The suffix in `path` has to fit the content. Grey, palette, 16-bit, CMYK and transparent pictures become 8-bit RGB
    (alpha is dropped), Exif orientation is applied, and the whole picture is resized to `image_size` square, whatever
    its shape. Of an animation, it is the first picture.

    Returns (image_size, image_size, 3) uint8 RGB. Raises BadPictureError with the reason.
    """
    kind = next((kind for kind, signature in SIGNATURES.items() if re.match(signature, data, re.DOTALL)), None)
    if kind is None:
        raise BadPictureError(path, "not a picture of a known kind")
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if KIND_OF_SUFFIX.get(suffix, kind) != kind:
        raise BadPictureError(path, f"a {kind} renamed {suffix}")
    flags = cv2.IMREAD_COLOR_RGB | (REDUCTIONS[_jpeg_reduction(data, image_size)] if kind == "JPEG" else 0)
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise BadPictureError(path, "too large for the memory of this machine", lasting=False) from None
        if "CV_IO_MAX_IMAGE" in error.err:
            limit = f"{libraries.MAX_PIXELS:,} pixels" if "PIXELS" in error.err else "a million pixels wide or high"
            raise BadPictureError(path, f"too large: more than {limit}") from None
        picture = None
    if picture is None:
        raise BadPictureError(path, f"damaged, truncated or unsupported {kind}")
    # Bilinear interpolation looks at two pixels each way. Where more of them fall into one, averaging over areas, five
    # times as slow, keeps the result free of jagged edges.
    height, width = picture.shape[:2]
    averages = max(height, width) >= 2 * image_size and min(height, width) >= image_size
    interpolation = cv2.INTER_AREA if averages else cv2.INTER_LINEAR
    return cv2.resize(picture, (image_size, image_size), interpolation=interpolation)


def _jpeg_reduction(data, image_size):
    """By how much a JPEG can be shrunk while it is decoded, 1, 2, 4 or 8, and still be no smaller than wanted.

    The decoder then computes fewer pixels from the same coefficients, several times as fast. The size is in the frame
    header, which follows some other segments, each a marker of two bytes and its length.
    """
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker, length, height, width = struct.unpack_from(">xBHxHH", data, position)
        if marker == 0xFF:  # padding
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return max(n for n in REDUCTIONS if n == 1 or min(height, width) // n >= image_size)
        else:
            position += 2 + length
    return 1


def load_picture(path, image_size):
    """Read and decode one file: (image_size, image_size, 3) uint8 RGB, or BadPictureError."""
    return decode_picture(path, read_picture(path), image_size)


def _ahead(function, items, result_bytes):
    """Yield `function(item)` for each item, in order, computed in threads a little ahead of the reader.

    It is ahead by four results a core, or by fewer, at least two, where these, each of `result_bytes`, would be more than
    READ_AHEAD_BYTES.
    Exceptions of `function` reach the reader at the item's turn.
    """
    workers = cpu.cores()
    most = max(2, min(4 * workers, READ_AHEAD_BYTES // result_bytes))
    items = iter(items)
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        waiting = collections.deque(pool.submit(function, item) for item in itertools.islice(items, most))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _in_chunks(items, size):
    for start in range(0, len(items), size):
        yield items[start : start + size]


def fitting_batch(image_size):
    """How many pictures a network that is not training takes at a time: the maps inside it grow with the picture."""
    return max(1, min(64, 64 * 128**2 // image_size**2))


def decode_batches(paths, image_size):
    """Decode files in parallel, for evaluation and prediction, in order and fitting_batch() at a time.

    Yields (paths, reasons, pixels): some of `paths`; for each why it cannot be used, or None; and the pixels of the
    usable ones, (n, image_size, image_size, 3) uint8 RGB.
    """

    def attempt(path):
        try:
            return None, load_picture(path, image_size)
        except BadPictureError as error:
            return error.reason, None

    results = _ahead(attempt, paths, 3 * image_size**2)
    for batch in _in_chunks(paths, fitting_batch(image_size)):
        reasons, pictures = zip(*itertools.islice(results, len(batch)), strict=True)
        pixels = np.empty((reasons.count(None), image_size, image_size, 3), np.uint8)
        for row, picture in enumerate(picture for picture in pictures if picture is not None):
            pixels[row] = picture
        yield batch, reasons, pixels


# --- Check and cache: every picture is decoded once, into one memory-mapped file --------------------------------------


@dataclasses.dataclass
class Checked:
    """What decoding all pictures told: for each path a digest of the file's bytes, or None and the reason why not.

    `pixels` holds the good pictures in order, (n, image_size, image_size, 3) uint8, or None where there is no cache.
    """

    digests: list[str | None]
    reasons: list[str | None]
    pixels: np.ndarray | None = None
    lasting: bool = True  # False: some reason may be gone the next time


def check_pictures(paths, image_size, cache_dir=None):
    """Decode every picture once and keep the pixels in the folder `cache_dir`, for this run and later ones.

    The cache is a file of raw pixels beside a JSON index, which is written last: without it the pixels don't count.
    Its name comes from all that shapes the pixels: each file's path, size and time, the picture size, OpenCV.
    Where it cannot be written (or `cache_dir` is None) pictures are checked all the same, and decoded as needed.
    """
    if cache_dir is None:
        return _decode_all(paths, image_size, None)
    pixels_path = Path(cache_dir, f"{_cache_key(paths, image_size)}.pixels")
    index_path = pixels_path.with_suffix(".json")
    checked = _open_cache(pixels_path, index_path, len(paths), image_size)
    if checked is not None:
        return checked
    partial_path = pixels_path.with_suffix(f".partial-{os.getpid()}")
    try:
        os.makedirs(cache_dir, exist_ok=True)
        _remove_unused(cache_dir)
        with open(partial_path, "wb") as file:
            checked = _decode_all(paths, image_size, file)
        put_in_place(partial_path, pixels_path)
        checked.pixels = _map_pixels(pixels_path, checked.digests, image_size)
        if checked.lasting:
            write_whole(index_path, json.dumps({"digests": checked.digests, "reasons": checked.reasons}))
    except (OSError, UserError) as error:
        say(f"no cache ({error}): pictures are decoded whenever they are needed, which is slower")
        checked = checked or _decode_all(paths, image_size, None)
    finally:
        with contextlib.suppress(OSError):
            partial_path.unlink()
    return checked


def _cache_key(paths, image_size):
    key = hashlib.blake2b(f"{CACHE_VERSION} {cv2.__version__} {image_size}".encode(), digest_size=12)
    for path in paths:
        key.update(os.fsencode(path.absolute()) + b"\0")
        with contextlib.suppress(OSError):  # the decoder will tell what is wrong with it
            status = os.stat(path)
            key.update(b"%d %d\0" % (status.st_size, status.st_mtime_ns))
    return key.hexdigest()


def _open_cache(pixels_path, index_path, count, image_size):
    """The Checked of an earlier run, or None if there is none that is whole."""
    try:
        index = json.loads(index_path.read_text())
        checked = Checked(index["digests"], index["reasons"])
        checked.pixels = _map_pixels(pixels_path, checked.digests, image_size)
        os.utime(pixels_path)
        os.utime(index_path)
        return checked if len(checked.digests) == len(checked.reasons) == count else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map_pixels(path, digests, image_size):
    """The good pictures' pixels in a file, (n, image_size, image_size, 3) uint8. Raises ValueError if it isn't whole."""
    shape = (sum(digest is not None for digest in digests), image_size, image_size, 3)
    if os.path.getsize(path) != math.prod(shape):
        raise ValueError(f"{path} is not whole")
    return np.memmap(path, np.uint8, "r", shape=shape) if shape[0] else np.empty(shape, np.uint8)


def _remove_unused(cache_dir, days=30):
    """Remove what no run has used for long from a cache folder."""
    for path in Path(cache_dir).iterdir():
        if time.time() - path.stat().st_mtime > days * 24 * 3600:
            path.unlink()


def _decode_all(paths, image_size, file):
    """Decode all pictures in parallel; write the good ones' pixels to `file`, one after the other."""

    def attempt(path):
        try:
            data = read_picture(path)
            return hashlib.blake2b(data, digest_size=16).hexdigest(), decode_picture(path, data, image_size), None
        except BadPictureError as error:
            return None, None, error

    checked = Checked([], [])
    with progress("decoding pictures", len(paths)) as advance:
        for digest, pixels, error in _ahead(attempt, paths, 3 * image_size**2):
            checked.digests.append(digest)
            checked.reasons.append(error and error.reason)
            checked.lasting &= error is None or error.lasting
            if error is None and file is not None:
                file.write(pixels)  # not through the memory map: on a full disk that would be a crash, this is an error
            advance()
    return checked


# --- Split, order, batch ----------------------------------------------------------------------------------------------


class DataSet:
    """Labelled pictures of one side of the split.

    `paths` and `labels` ((n,) int32) are in a fixed order; `batches()` yields them in that order or shuffled.
    """

    def __init__(self, paths, labels, load, picture_bytes):
        """`load` takes positions, (k,) integers, and returns pixels, (k, image_size, image_size, 3) uint8 RGB.

        `picture_bytes` is what one of them takes in memory.
        """
        self.paths = paths
        self.labels = np.asarray(labels, np.int32)
        self._load, self._picture_bytes = load, picture_bytes

    def __len__(self):
        return len(self.paths)

    def take(self, positions):
        """The DataSet of the pictures at these positions, (k,) integers, alone."""
        paths, labels = [self.paths[i] for i in positions], self.labels[positions]
        return DataSet(paths, labels, lambda rows: self._load(positions[rows]), self._picture_bytes)

    def batches(self, batch_size, seed=None, epoch=0, first=0, view=None):
        """Yield (pixels, labels): (k, image_size, image_size, 3) uint8 RGB and (k,) int32.

        The last batch may be smaller. With a `seed` the order is a shuffle that depends on nothing but
        (seed, epoch), so a run can resume in the middle of an epoch, at batch `first`, and see what it would have seen.
        `view(pixels, rng=...)`, if given, makes of each picture what is shown; its numpy Generator depends on nothing
        but (seed, epoch, picture).
        """

        def load(positions):
            pixels = self._load(positions)
            if view is not None:
                views = zip(pixels, positions, strict=True)
                pixels = np.stack([view(one, rng=np.random.default_rng((seed, epoch, i))) for one, i in views])
            return pixels, self.labels[positions]

        order = np.arange(len(self)) if seed is None else np.random.default_rng((seed, epoch)).permutation(len(self))
        chunks = list(_in_chunks(order, batch_size))[first:]
        return _ahead(load, chunks, batch_size * self._picture_bytes)


@dataclasses.dataclass
class TrainSets:
    """Both sides of the split, the classes in label order, and the files that were skipped: (path, reason)."""

    train: DataSet
    valid: DataSet
    classes: list[str]
    skipped: list[tuple[Path, str]]
    fingerprint: str  # of all that decides what a run learns from: classes, pictures, split


def read_train_sets(train_path, image_size, classes=None, validation_size=0.2, limit_per_class=None, cache_dir=None):
    """Find, check, decode and split the pictures in a folder: the front door of this module.

    `validation_size` is the part of each class, between 0 and 1, that is kept for validation; at least one picture of
    a class goes to either side. `classes`, `limit_per_class`: see find_pictures(). `cache_dir`: see check_pictures().
    Returns TrainSets. Raises UserError where fewer than two classes, or fewer than two different pictures of a class, are
    usable.
    """
    found = find_pictures(train_path, classes, limit_per_class)
    if len(found.classes) < 2:
        raise UserError(f"{_only_one_class(found)}: at least two are needed", NO_DATA)
    checked = check_pictures(found.paths, image_size, cache_dir)
    usable = [[] for _ in found.classes]  # positions in found.paths
    for i, (label, reason) in enumerate(zip(found.labels, checked.reasons, strict=True)):
        if reason is None:
            usable[label].append(i)
    _say_contradictions(found, checked.digests)
    sides = ([], [])
    for name, members in zip(found.classes, usable, strict=True):
        if len({checked.digests[i] for i in members}) < 2:
            count = ["no usable pictures", "one usable picture", "only copies of one picture"][min(len(members), 2)]
            raise UserError(f"class {name!r} in {found.folder} has {count}: it needs two, one to validate on", NO_DATA)
        for side, part in zip(sides, split(members, checked.digests, validation_size), strict=True):
            side.extend(part)
    learnt_from = [[(checked.digests[i], found.labels[i]) for i in side] for side in sides]
    fingerprint = hashlib.blake2b(json.dumps([found.classes, learnt_from]).encode(), digest_size=12)
    return TrainSets(
        *(_data_set(found, checked, side, image_size) for side in sides),
        found.classes,
        [(path, reason) for path, reason in zip(found.paths, checked.reasons, strict=True) if reason],
        fingerprint.hexdigest(),
    )


def split(members, digests, validation_size):
    """Split the pictures of one class, a list of positions in `digests`: returns (training, validation), both in order.

    At least two of them have to be different.
    A picture's rank by the digest of its bytes decides: no chance, no order and no file name is in it, so that it
    stays where it is when others are added, all but the few next to the border, and copies of it are with it.
    """
    ranked = sorted(members, key=lambda i: (digests[i], i))
    borders = [n for n in range(1, len(ranked)) if digests[ranked[n - 1]] != digests[ranked[n]]]  # between two pictures
    count = next((n for n in borders if n >= round(len(members) * validation_size)), borders[-1])
    return sorted(ranked[count:]), sorted(ranked[:count])


def _say_contradictions(found, digests):
    """Warn of pictures that are in more than one class: at least one of their labels is wrong."""
    first_of, contradicting = {}, []
    for path, label, digest in zip(found.paths, found.labels, digests, strict=True):
        if digest is not None:
            other_path, other_label = first_of.setdefault(digest, (path, label))
            if other_label != label:
                contradicting.append((other_path, path))
    if contradicting:
        one, other = contradicting[0]
        say(f"warning: pictures that are in two classes: {len(contradicting)}, such as {other}, a copy of {one}: remove"
            " those whose class is wrong")  # fmt: skip


def _data_set(found, checked, members, image_size):
    """The DataSet of some of the found pictures: their pixels from the cache, or from their files if there is none."""
    paths = [found.paths[i] for i in members]
    rows = np.cumsum([reason is None for reason in checked.reasons])[members] - 1

    def load(positions):
        if checked.pixels is not None:
            return checked.pixels[rows[positions]]
        return np.stack([load_picture(paths[i], image_size) for i in positions])

    return DataSet(paths, [found.labels[i] for i in members], load, 3 * image_size**2)


def _only_one_class(found):
    """Say which class is the only one, and what to do if the class folders lie one level deeper."""
    message = f"there is only one class, {found.classes[0]!r}, in {found.folder}"
    first = found.paths[0].relative_to(found.folder)
    if len(first.parts) > 2 or (len(first.parts) == 2 and first.name.count(".") >= 2):
        message += f" (are the classes in {found.folder / first.parts[0]}?)"
    return message
