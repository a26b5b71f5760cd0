"""Images: from the bytes of a file to the array that a network sees, for training and prediction alike.

An image is always `(image_size, image_size, 3)`, uint8, RGB, upright.
"""

import itertools
import os
import re
import stat
import struct

import cv2
import numpy as np

from classifier import MAX_PIXELS
from classifier.console import NO_DATA, UserError
from classifier.parallel import in_chunks, prefetch

MAX_FILE_BYTES = 1 << 30
KIND_OF_SUFFIX = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".bmp": "BMP", ".gif": "GIF",
    ".webp": "WebP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff", "PNG": rb"\x89PNG\r\n\x1a\n", "BMP": rb"BM", "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP", "TIFF": rb"II\*\0|MM\0\*",
}  # fmt: skip
REDUCTIONS = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}

cv2.setNumThreads(1)  # images are decoded in parallel; more threads inside each one would only compete with these


class BadImageError(UserError):
    """A file that cannot be used as an image; `error.reason` says why."""

    def __init__(self, path, reason, lasting=True):
        """`lasting` is False where the same file may be good the next time."""
        super().__init__(f"{path}: {reason}", NO_DATA)
        self.reason, self.lasting = reason, lasting


def load_image(path, image_size):
    """Read and decode one file: (image_size, image_size, 3) uint8 RGB. Raises BadImageError with the reason."""
    return decode_image(path, read_file(path), image_size)


def read_file(path):
    """The bytes of an ordinary file of sensible size, not empty; raises BadImageError for any other."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError(path, "not a file")
        if status.st_size == 0:
            raise BadImageError(path, "empty file")
        if status.st_size > MAX_FILE_BYTES:
            raise BadImageError(path, "too large: more than 1 GiB")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadImageError(path, error.strerror, lasting=isinstance(error, FileNotFoundError)) from None
    except ValueError as error:  # a zero byte in the path
        raise BadImageError(path, str(error)) from None


def decode_image(path, data, image_size):
    """Decode the bytes of a file to (image_size, image_size, 3) uint8 RGB. See decode_with_shape()."""
    return decode_with_shape(path, data, image_size)[0]


def decode_with_shape(path, data, image_size):
    """Decode the bytes of a file to (image_size, image_size, 3) uint8 RGB, and its (height, width) in the file, upright.

    The suffix in `path` must fit the content. Grey, palette, 16-bit, CMYK and transparent images become 8-bit RGB (alpha
    is dropped), Exif orientation is applied, and the whole image is resized to a square, whatever its shape. Of an
    animation, it is the first frame. Raises BadImageError with the reason.
    """
    kind = next((kind for kind, signature in SIGNATURES.items() if re.match(signature, data, re.DOTALL)), None)
    if kind is None:
        raise BadImageError(path, "not an image of a known kind")
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if KIND_OF_SUFFIX.get(suffix, kind) != kind:
        raise BadImageError(path, f"{kind} data in a {suffix} file")
    shape = _jpeg_shape(data) if kind == "JPEG" else None
    # A JPEG can be reduced while it is decoded: fewer pixels are computed from the same coefficients, several times as fast.
    reduction = max(n for n in REDUCTIONS if n == 1 or (shape and min(shape) // n >= image_size))
    flags = cv2.IMREAD_COLOR_RGB | REDUCTIONS[reduction]
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise BadImageError(path, "too large for the memory of this machine", lasting=False) from None
        if "CV_IO_MAX_IMAGE" in error.err:
            limit = f"{MAX_PIXELS:,} pixels" if "PIXELS" in error.err else "a million pixels wide or high"
            raise BadImageError(path, f"too large: more than {limit}") from None
        image = None
    if image is None:
        raise BadImageError(path, f"damaged, truncated or unsupported {kind}")
    # Bilinear interpolation reads two pixels in each direction. Where more of them become one, averaging over areas, five
    # times as slow, keeps edges smooth.
    height, width = image.shape[:2]
    averages = max(height, width) >= 2 * image_size and min(height, width) >= image_size
    interpolation = cv2.INTER_AREA if averages else cv2.INTER_LINEAR
    if reduction == 1:
        shape = height, width
    elif (height > width) != (shape[0] > shape[1]):  # turned by its Exif orientation
        shape = shape[::-1]
    return cv2.resize(image, (image_size, image_size), interpolation=interpolation), shape


def _jpeg_shape(data):
    """The (height, width) of a JPEG, or None: they are in its frame header.

    It follows some other segments, each a marker of two bytes and its length.
    """
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker, length, height, width = struct.unpack_from(">xBHxHH", data, position)
        if marker == 0xFF:  # padding
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return height, width
        else:
            position += 2 + length
    return None


def inference_batch_size(image_size):
    """How many images a network takes at a time when it is not training: its feature maps grow with the image."""
    return max(1, min(64, 64 * 128**2 // image_size**2))


def decode_batches(paths, image_size):
    """Decode files in parallel and in order, for evaluation and prediction, inference_batch_size() at a time.

    Yields (paths, reasons, images): some of `paths`; for each the reason why it cannot be used, or None; and the usable
    images, (n, image_size, image_size, 3) uint8 RGB.
    """

    def attempt(path):
        try:
            return None, load_image(path, image_size)
        except BadImageError as error:
            return error.reason, None

    results = prefetch(attempt, paths, 3 * image_size**2)
    for batch in in_chunks(paths, inference_batch_size(image_size)):
        reasons, decoded = zip(*itertools.islice(results, len(batch)), strict=True)
        images = np.empty((reasons.count(None), image_size, image_size, 3), np.uint8)
        for row, image in enumerate(image for image in decoded if image is not None):
            images[row] = image
        yield batch, reasons, images
