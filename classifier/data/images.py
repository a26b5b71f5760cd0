"""Images: from a file to the array that a network sees, for training and prediction alike.

An image is always `(image_size, image_size, 3)`, uint8, RGB, upright.
"""

import itertools
import os
import stat
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from classifier.base.console import NO_DATA, UserError
from classifier.base.prefetch import in_chunks, prefetch
from classifier.data.decoding import FORMATS, KIND_OF_SUFFIX, RefusalError, Shape, decode_bytes, kind_of, why_not
from classifier.data.tars import members_of, tar_of

MAX_FILE_BYTES = 1 << 30
BLANK = 3  # grey levels: the standard deviation of an image that shows nothing
DIM = 16  # grey levels, that all those of a dim image are below, as 12-bit values in 16-bit files are
ImagePath = str | os.PathLike[str]


class BadImageError(UserError):
    """A file that cannot be used as an image; `error.reason` says why."""

    def __init__(self, path: ImagePath, reason: str, lasting: bool = True):
        """`lasting` is False where the same file may be good the next time."""
        super().__init__(f"{path}: {reason}", NO_DATA)
        self.reason, self.lasting = reason, lasting


def load_image(path: ImagePath, image_size: int, fit: str = "squash") -> np.ndarray:
    """Read and decode one file: (image_size, image_size, 3) uint8 RGB; see decode_image(). Raises BadImageError."""
    return decode_image(path, read_file(path), image_size, fit)


def load_in_shape(path: ImagePath, side: int) -> np.ndarray:
    """Read and decode one file in its own shape, the longer side of `side` pixels: (height, width, 3) uint8 RGB."""
    image, _ = decode(path, read_file(path), side, "pad")
    _, _, height, width = padded_area(image.shape[:2], side)
    return _resize(image, width, height)


def read_file(path: ImagePath) -> bytes:
    """The bytes of an ordinary file of sensible size, not empty, or of one in a tar; raises BadImageError for any other."""
    try:
        if in_tar := tar_of(path):
            file, name = in_tar
            if name not in (members := members_of(file)):
                raise BadImageError(path, "no such file in the tar")
            offset, size = members[name]
        else:
            file, status = os.fspath(path), os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise BadImageError(path, "a folder without images" if stat.S_ISDIR(status.st_mode) else "not a file")
            offset, size = 0, status.st_size
        if size == 0:
            raise BadImageError(path, "empty file")
        if size > MAX_FILE_BYTES:
            raise BadImageError(path, "too large: more than 1 GiB")
        with open(file, "rb") as opened:
            opened.seek(offset)
            return opened.read(size)
    except OSError as error:
        raise BadImageError(path, error.strerror or str(error), lasting=isinstance(error, FileNotFoundError)) from None
    except ValueError as error:  # a zero byte in the path
        raise BadImageError(path, str(error)) from None


def decode_image(path: ImagePath, data: bytes, image_size: int, fit: str = "squash") -> np.ndarray:
    """Decode the bytes of a file to (image_size, image_size, 3) uint8 RGB: see decode() and fit_square()."""
    return fit_square(decode(path, data, image_size, fit)[0], image_size, fit)


def decode(path: ImagePath, data: bytes, image_size: int, fit: str = "squash") -> tuple[np.ndarray, Shape]:
    """Decode the bytes of a file: (height, width, 3) uint8 RGB, and its (height, width) in the file, both upright.

    Pixels may be fewer than in the file, but not than fit_square() needs. The suffix in `path` must fit the content. Grey,
    palette, 16-bit and CMYK images become 8-bit RGB, and what is transparent lies on white, as viewers show it. The
    orientation that the file gives is applied. Of an animation, it is the first frame. Raises BadImageError with the reason.
    """
    kind = kind_of(data[:32])
    if kind is None:
        raise BadImageError(path, why_not(data[:132]))
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if KIND_OF_SUFFIX.get(suffix, kind) != kind:
        raise BadImageError(path, f"{kind} data in a {suffix} file: rename it to {FORMATS[kind][0].split()[0]}")
    try:
        return decode_bytes(data, kind, image_size, fit)
    except MemoryError:
        raise BadImageError(path, "too large for the memory of this machine", lasting=False) from None
    except ImportError:
        reason = "HEIC needs pillow-heif: pip install -c requirements-optional.txt pillow-heif"
        raise BadImageError(path, reason, lasting=False) from None
    except RefusalError as error:
        raise BadImageError(path, str(error)) from None
    except Exception:  # decoders raise exceptions of many kinds
        raise BadImageError(path, f"damaged or truncated {kind}") from None


def fit_square(image: np.ndarray, image_size: int, fit: str) -> np.ndarray:
    """Make an image, (height, width, 3) uint8, a square: (image_size, image_size, 3) uint8.

    "squash" resizes the whole image, whatever its shape; "crop" takes the largest square in the centre; "pad" keeps the
    shape of the whole image and fills the rest with its mean colour, which adds the weakest edge. Raises ValueError for an
    array of another kind.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an image is (height, width, 3) uint8 RGB, not {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if fit != "pad" or height == width:
        return _resize(image, image_size, image_size)
    top, left, height, width = padded_area((height, width), image_size)
    square = np.empty((image_size, image_size, 3), np.uint8)
    image = _resize(image, width, height)
    square[:] = image.mean(axis=(0, 1)).round()
    square[top : top + height, left : left + width] = image
    return square


def padded_area(shape: Shape, image_size: int) -> tuple[int, int, int, int]:
    """Where an image of a shape, (height, width), lies in a padded square: (top, left, height, width)."""
    scale = image_size / max(shape)
    height, width = (max(round(side * scale), 1) for side in shape)
    return (image_size - height) // 2, (image_size - width) // 2, height, width


def _resize(image, width, height):
    """Resize an image, (height, width, 3) uint8.

    Bilinear interpolation reads two pixels in each direction. Where more of them become one, averaging over areas, five
    times as slow, keeps edges smooth.
    """
    down, across = image.shape[0] / height, image.shape[1] / width
    averages = max(down, across) >= 2 and min(down, across) >= 1
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if averages else cv2.INTER_LINEAR)


def flaw_of(image: np.ndarray) -> str | None:
    """What makes an image, uint8, useless to learn from: it is "blank" or "dim", see above; None if nothing does."""
    deviation = cv2.meanStdDev(image)[1].max()
    if deviation > 0 and image.max() < DIM:
        return "dim"
    return "blank" if deviation < BLANK else None


def inference_batch_size(image_size: int) -> int:
    """How many images a network takes at a time when it is not training: its feature maps grow with the image."""
    return max(1, min(64, 64 * 128**2 // image_size**2))


def decode_batches(paths: Sequence, image_size: int, fit: str = "squash") -> Iterator[tuple[Sequence, tuple, np.ndarray]]:
    """Decode files in parallel and in order, for evaluation and prediction, inference_batch_size() at a time.

    Yields (paths, reasons, images): some of `paths`; for each the reason why it cannot be used, or None; and the usable
    images, (n, image_size, image_size, 3) uint8 RGB. In place of a path there may be the bytes of a file, or an array: see
    fit_square().
    """

    def attempt(image):
        try:
            if isinstance(image, np.ndarray):
                return None, fit_square(image, image_size, fit)
            if isinstance(image, bytes):
                return None, decode_image("", image, image_size, fit)
            return None, load_image(image, image_size, fit)
        except BadImageError as error:
            return error.reason, None

    # For one image, as services ask, threads would take longer to start than most images to decode.
    results = prefetch(attempt, paths, 3 * image_size**2) if len(paths) > 1 else map(attempt, paths)
    for batch in in_chunks(paths, inference_batch_size(image_size)):
        reasons, decoded = zip(*itertools.islice(results, len(batch)), strict=True)
        images = np.array([image for image in decoded if image is not None], np.uint8)
        yield batch, reasons, images.reshape(-1, image_size, image_size, 3)  # of the same shape if there is none
