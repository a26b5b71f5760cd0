"""Images: from the bytes of a file to the array that a network sees, for training and prediction alike.

An image is always `(image_size, image_size, 3)`, uint8, RGB, upright. A new format is a line in FORMATS, which every part
of the project asks, and in PILLOW_PACKAGES if OpenCV does not read it.
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
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from classifier.base.console import NO_DATA, UserError
from classifier.base.prefetch import in_chunks, prefetch
from classifier.data import MAX_PIXELS
from classifier.data.tars import members_of, tar_of

MAX_FILE_BYTES = 1 << 30
TOO_LARGE = f"too large: more than {MAX_PIXELS:,} pixels"
BLANK = 3  # grey levels: the standard deviation of an image that shows nothing
FORMATS = {  # of each kind the suffixes and the first bytes of its files
    "JPEG": (".jpg .jpeg .jpe .jfif", rb"\xff\xd8\xff"),
    "PNG": (".png", rb"\x89PNG\r\n\x1a\n"),
    "BMP": (".bmp", rb"BM"),
    "GIF": (".gif", rb"GIF8[79]a"),
    "WebP": (".webp", rb"RIFF....WEBP"),
    "TIFF": (".tif .tiff", rb"II\*\0|MM\0\*"),
    "AVIF": (".avif", rb"....ftyp(avi[fs]|mif1(....){1,8}?avi[fs])"),
    "HEIC": (".heic .heif", rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"),
}
KIND_OF_SUFFIX = {suffix: kind for kind, (suffixes, _) in FORMATS.items() for suffix in suffixes.split()}
PILLOW_PACKAGES = {"HEIC": "pillow-heif", "AVIF": "pillow"}  # OpenCV reads no HEIC, and turns and colours AVIF wrongly
REDUCTIONS = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
Shape = tuple[int, int]  # (height, width)
ImagePath = str | os.PathLike[str]

cv2.setNumThreads(1)  # images are decoded in parallel; more threads inside each one would only compete with these


class BadImageError(UserError):
    """A file that cannot be used as an image; `error.reason` says why."""

    def __init__(self, path: ImagePath, reason: str, lasting: bool = True):
        """`lasting` is False where the same file may be good the next time."""
        super().__init__(f"{path}: {reason}", NO_DATA)
        self.reason, self.lasting = reason, lasting


def kind_of(start: bytes) -> str | None:
    """The kind of an image by the first 32 bytes of its file, see FORMATS; None for what is no image."""
    return next((kind for kind, (_, first) in FORMATS.items() if re.match(first, start, re.DOTALL)), None)


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
                raise BadImageError(path, "not a file")
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
    palette, 16-bit, CMYK and transparent images become 8-bit RGB (alpha is dropped) and the orientation that the file gives
    is applied. Of an animation, it is the first frame. Raises BadImageError with the reason.
    """
    kind = kind_of(data)
    if kind is None:
        raise BadImageError(path, "not an image of a known kind")
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if KIND_OF_SUFFIX.get(suffix, kind) != kind:
        raise BadImageError(path, f"{kind} data in a {suffix} file")
    try:
        if kind in PILLOW_PACKAGES:
            decoded = _decode_by_pillow(path, data, kind)
        else:
            decoded = _decode_by_opencv(path, data, kind, image_size, fit)
    except MemoryError:
        raise BadImageError(path, "too large for the memory of this machine", lasting=False) from None
    if decoded is None:
        raise BadImageError(path, f"damaged, truncated or unsupported {kind}")
    return decoded


def _decode_by_opencv(path, data, kind, image_size, fit):
    """The pixels and their shape in the file, see decode(), or None for a damaged file."""
    stored = _jpeg_shape(data) if kind == "JPEG" else None
    # Decoders make room for as much as a file claims. 64 pixels of a JPEG take at least a bit.
    if (stored and math.prod(stored) > 512 * len(data)) or (kind == "PNG" and not _chunks_fit(data)):
        return None
    # A JPEG can be reduced while it is decoded: fewer pixels are computed from the same coefficients, several times as
    # fast. The side that decides is the one that becomes image_size, or the shorter of two.
    decisive = stored and (max(stored) if fit == "pad" else min(stored))
    reduction = max(n for n in REDUCTIONS if n == 1 or (decisive and decisive // n >= image_size))
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | REDUCTIONS[reduction])
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        if "CV_IO_MAX_IMAGE" in error.err:
            reason = TOO_LARGE if "PIXELS" in error.err else "too large: more than a million pixels wide or high"
            raise BadImageError(path, reason) from None
        return None
    if image is None:
        return None
    height, width = shape = image.shape[:2]
    if reduction > 1:
        shape = stored if (height > width) == (stored[0] > stored[1]) else stored[::-1]  # turned by its orientation
    return image, shape


def _decode_by_pillow(path, data, kind):
    """The pixels and their shape, see decode(), or None for a damaged file."""
    try:
        pillow = _pillow_for(kind)
    except ImportError:
        package = PILLOW_PACKAGES[kind]
        reason = f"{kind} needs {package}: pip install -c requirements-optional.txt {package}"
        raise BadImageError(path, reason, lasting=False) from None
    try:
        # It reads the header alone, and checks the size against our MAX_PIXELS. Its decoders of other kinds are not tried.
        image = pillow.Image.open(io.BytesIO(data), formats=["HEIF" if kind == "HEIC" else kind])
        if kind == "AVIF":  # libheif has turned a HEIC image already
            image = pillow.ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would clip its values
            pixels = cv2.cvtColor((np.asarray(image) >> 8).astype(np.uint8), cv2.COLOR_GRAY2RGB)
        else:
            pixels = np.array(image.convert("RGB"))
        return pixels, pixels.shape[:2]
    except MemoryError:
        raise
    except pillow.Image.DecompressionBombError:
        raise BadImageError(path, TOO_LARGE) from None
    except Exception:  # decoders raise exceptions of many kinds
        return None


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


def _chunks_fit(data):
    """Whether the chunks of a PNG fit into the file. Its decoder makes room for up to 2 GiB of each."""
    position = 8
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if name == b"IEND":
            return length == 0
    return position <= len(data)


def inference_batch_size(image_size: int) -> int:
    """How many images a network takes at a time when it is not training: its feature maps grow with the image."""
    return max(1, min(64, 64 * 128**2 // image_size**2))


def decode_batches(paths: Sequence, image_size: int, fit: str = "squash") -> Iterator[tuple[Sequence, tuple, np.ndarray]]:
    """Decode files in parallel and in order, for evaluation and prediction, inference_batch_size() at a time.

    Yields (paths, reasons, images): some of `paths`; for each the reason why it cannot be used, or None; and the usable
    images, (n, image_size, image_size, 3) uint8 RGB. In place of a path there may be the bytes of a
    file, or an array: see fit_square().
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
