"""Images: from the bytes of a file to the array that a network sees, for training and prediction alike.

An image is always `(image_size, image_size, 3)`, uint8, RGB, upright.
"""

import functools
import io
import itertools
import math
import os
import re
import stat
import struct
import warnings

import cv2
import numpy as np

from classifier import MAX_PIXELS
from classifier.base.console import NO_DATA, UserError
from classifier.base.prefetch import in_chunks, prefetch
from classifier.data.tars import find_member, tar_of

MAX_FILE_BYTES = 1 << 30
BLANK = 3  # grey levels: the standard deviation of an image that shows nothing
KIND_OF_SUFFIX = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WebP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".avif": "AVIF",
}
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "BMP": rb"BM",
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP",
    "TIFF": rb"II\*\0|MM\0\*",
    "AVIF": rb"....ftyp(avi[fs]|mif1(....){1,8}?avi[fs])",
    "HEIC": rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
}
PILLOW_PACKAGES = {"HEIC": "pillow-heif", "AVIF": "pillow"}  # OpenCV reads no HEIC, and turns and colours AVIF wrongly
REDUCTIONS = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}

cv2.setNumThreads(1)  # images are decoded in parallel; more threads inside each one would only compete with these


class BadImageError(UserError):
    """A file that cannot be used as an image; `error.reason` says why."""

    def __init__(self, path, reason, lasting=True):
        """`lasting` is False where the same file may be good the next time."""
        super().__init__(f"{path}: {reason}", NO_DATA)
        self.reason, self.lasting = reason, lasting


def load_image(path, image_size, fit="squash"):
    """Read and decode one file: (image_size, image_size, 3) uint8 RGB; see decode_image(). Raises BadImageError."""
    return decode_image(path, read_file(path), image_size, fit)


def read_file(path):
    """The bytes of an ordinary file of sensible size, not empty, or of one in a tar; raises BadImageError for any other."""
    try:
        if in_tar := tar_of(path):
            file_path, offset, size = find_member(*in_tar)
        else:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise BadImageError(path, "not a file")
            file_path, offset, size = path, 0, status.st_size
        if size == 0:
            raise BadImageError(path, "empty file")
        if size > MAX_FILE_BYTES:
            raise BadImageError(path, "too large: more than 1 GiB")
        with open(file_path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise BadImageError(path, error.strerror, lasting=isinstance(error, FileNotFoundError)) from None
    except ValueError as error:  # a zero byte in the path
        raise BadImageError(path, str(error)) from None


def is_blank(image):
    """True if an image, (height, width, 3) uint8, shows nothing but one colour."""
    return bool(cv2.meanStdDev(image)[1].max() < BLANK)


def decode_image(path, data, image_size, fit="squash"):
    """Decode the bytes of a file to (image_size, image_size, 3) uint8 RGB: see decode_with_shape()."""
    return decode_with_shape(path, data, image_size, fit)[0]


def decode_with_shape(path, data, image_size, fit="squash"):
    """Decode the bytes of a file to (image_size, image_size, 3) uint8 RGB, and its (height, width) in the file, upright.

    The suffix in `path` must fit the content. Grey, palette, 16-bit, CMYK and transparent images become 8-bit RGB (alpha
    is dropped) and the orientation that the file gives is applied. Of an animation, it is the first frame. `fit` says how
    the image becomes a square: see fit_square(). Raises BadImageError with the reason.
    """
    image, shape = _decode(path, data, image_size, fit)
    return fit_square(image, image_size, fit), shape


def load_in_shape(path, side):
    """Read and decode one file in its own shape, the longer side of `side` pixels: (height, width, 3) uint8 RGB.

    Otherwise like decode_with_shape().
    """
    image, _ = _decode(path, read_file(path), side, "pad")
    _, _, height, width = padded_area(image.shape[:2], side)
    return _resize(image, width, height)


def _decode(path, data, image_size, fit):
    """The pixels, (height, width, 3) uint8 RGB, upright, not fewer than `fit` needs, and the (height, width) in the file."""
    kind = next((kind for kind, signature in SIGNATURES.items() if re.match(signature, data, re.DOTALL)), None)
    if kind is None:
        raise BadImageError(path, "not an image of a known kind")
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if KIND_OF_SUFFIX.get(suffix, kind) != kind:
        raise BadImageError(path, f"{kind} data in a {suffix} file")
    if kind in PILLOW_PACKAGES:
        image = _decode_by_pillow(path, data, kind)
        shape = image.shape[:2]
    else:
        if (kind == "PNG" and not _chunks_fit(data)) or (kind == "JPEG" and not _can_be_whole(data)):
            raise _damaged(path, kind)
        stored = _jpeg_shape(data) if kind == "JPEG" else None
        # A JPEG can be reduced while it is decoded: fewer pixels are computed from the same coefficients, several times as
        # fast. The side that decides is the one that becomes image_size, or the shorter of two.
        decisive = stored and (max(stored) if fit == "pad" else min(stored))
        reduction = max(n for n in REDUCTIONS if n == 1 or (decisive and decisive // n >= image_size))
        image = _decode_by_opencv(path, data, kind, cv2.IMREAD_COLOR_RGB | REDUCTIONS[reduction])
        height, width = shape = image.shape[:2]
        if reduction > 1:
            shape = stored if (height > width) == (stored[0] > stored[1]) else stored[::-1]  # turned by its orientation
    return image, shape


def _decode_by_opencv(path, data, kind, flags):
    """The pixels, (height, width, 3) uint8 RGB."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise _no_memory(path) from None
        if "CV_IO_MAX_IMAGE" in error.err:
            raise _too_large(path, None if "PIXELS" in error.err else "a million pixels wide or high") from None
        image = None
    if image is None:
        raise _damaged(path, kind)
    return image


def _decode_by_pillow(path, data, kind):
    """The pixels, (height, width, 3) uint8 RGB."""
    package = PILLOW_PACKAGES[kind]
    try:
        module = _pillow_for(kind)
    except ImportError:
        reason = f"{kind} needs {package}: pip install -c requirements-optional.txt {package}"
        raise BadImageError(path, reason, lasting=False) from None
    try:
        # It reads the header alone, and checks the size against our MAX_PIXELS. Its decoders of other kinds are not tried.
        image = module.Image.open(io.BytesIO(data), formats=["HEIF" if kind == "HEIC" else kind])
        if kind == "AVIF":  # libheif has turned a HEIC image already
            image = module.ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would clip its values
            return cv2.cvtColor((np.asarray(image) >> 8).astype(np.uint8), cv2.COLOR_GRAY2RGB)
        return np.array(image.convert("RGB"))
    except MemoryError:
        raise _no_memory(path) from None
    except module.Image.DecompressionBombError:
        raise _too_large(path) from None
    except Exception:  # decoders raise exceptions of many kinds
        raise _damaged(path, kind) from None


@functools.cache
def _pillow_for(kind):
    """Pillow, once it can read this kind. Raises ImportError where that, or what it needs, is not installed."""
    import PIL.features
    import PIL.Image
    import PIL.ImageOps

    warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # from half of MAX_PIXELS on
    if kind == "HEIC":
        import pillow_heif

        pillow_heif.options.DECODE_THREADS = 1  # as for OpenCV
        pillow_heif.register_heif_opener()
    elif not PIL.features.check("avif"):
        raise ImportError
    return PIL


def _damaged(path, kind):
    return BadImageError(path, f"damaged, truncated or unsupported {kind}")


def _too_large(path, limit=None):
    return BadImageError(path, f"too large: more than {limit or f'{MAX_PIXELS:,} pixels'}")


def _no_memory(path):
    return BadImageError(path, "too large for the memory of this machine", lasting=False)


def fit_square(image, image_size, fit):
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


def padded_area(shape, image_size):
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


def _jpeg_shape(data):
    """The (height, width) of a JPEG, or None: they are in its frame header.

    It follows some other segments, each a marker of two bytes and its length.
    """
    position = data.find(0xFF, 2)
    while 0 <= position <= len(data) - 9:
        marker, length, height, width = struct.unpack_from(">xBHxHH", data, position)
        if marker == 0xFF:  # padding
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return height, width
        else:
            position = data.find(0xFF, position + 2 + length)  # like the decoder, over bytes that belong to no segment
    return None


def _can_be_whole(data):
    """Whether a JPEG can hold all its pixels: 64 take at least a bit. Its decoder makes room for as many as it says."""
    return math.prod(_jpeg_shape(data) or (0,)) <= 512 * len(data)


def _chunks_fit(data):
    """Whether the chunks of a PNG fit into the file. Its decoder makes room for as much as they say, up to 2 GiB."""
    position = 8
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if name == b"IEND":
            return length == 0
    return position <= len(data)


def inference_batch_size(image_size):
    """How many images a network takes at a time when it is not training: its feature maps grow with the image."""
    return max(1, min(64, 64 * 128**2 // image_size**2))


def decode_batches(paths, image_size, fit="squash"):
    """Decode files in parallel and in order, for evaluation and prediction, inference_batch_size() at a time.

    Yields (paths, reasons, images): some of `paths`; for each the reason why it cannot be used, or None; and the usable
    images, (n, image_size, image_size, 3) uint8 RGB. In place of a path there may be an array: see fit_square().
    """

    def attempt(path):
        if isinstance(path, np.ndarray):
            return None, fit_square(path, image_size, fit)
        try:
            return None, load_image(path, image_size, fit)
        except BadImageError as error:
            return error.reason, None

    results = prefetch(attempt, paths, 3 * image_size**2)
    for batch in in_chunks(paths, inference_batch_size(image_size)):
        reasons, decoded = zip(*itertools.islice(results, len(batch)), strict=True)
        images = np.empty((reasons.count(None), image_size, image_size, 3), np.uint8)
        for row, image in enumerate(image for image in decoded if image is not None):
            images[row] = image
        yield batch, reasons, images
