"""Decoding: from the bytes of an image file to its pixels, as viewers show them.

A new format is a line in FORMATS, which every part of the project asks. OpenCV decodes JPEG and PNG, fastest of all. Pillow
decodes what OpenCV does not, or turns, colours or blackens without an error: the other formats, and whatever is transparent.
"""

import contextlib
import ctypes
import functools
import io
import math
import re
import struct
import threading
import typing
import warnings

import cv2
import numpy as np

from classifier.data import MAX_PIXELS

if typing.TYPE_CHECKING:
    from PIL.Image import Image

TOO_LARGE = f"too large: more than {MAX_PIXELS:,} pixels"
FORMATS = {  # of each kind the suffixes and the first bytes of its files
    "JPEG": (".jpg .jpeg .jpe .jfif .jif .pjpeg .pjp .mpo", rb"\xff\xd8\xff"),
    "PNG": (".png .apng", rb"\x89PNG\r\n\x1a\n"),
    "BMP": (".bmp .dib", rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    "GIF": (".gif", rb"GIF8[79]a"),
    "WebP": (".webp", rb"RIFF....WEBP"),
    "TIFF": (".tif .tiff", rb"II[*+]\0|MM\0[*+]"),
    "AVIF": (".avif", rb"....ftyp(avi[fs]|mif1(....){1,8}?avi[fs])"),
    "HEIC": (".heic .heif", rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"),
    "Netpbm": (".ppm .pgm .pbm .pnm", rb"P[1-6]\s+[#0-9]"),
}
OTHERS = {  # why other files that people bring are refused, and the first bytes of these
    "a pointer of Git LFS, not an image: run git lfs pull": rb"version https://git-lfs",
    "a web page, not an image": rb"\s*<(!doctype|html)",
    "SVG is not supported": rb"\s*<(\?xml|svg)",
    "JPEG 2000 is not supported": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL is not supported": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "Windows icons are not supported": rb"\0\0[\1\2]\0[^\0]\0",
    "Photoshop files are not supported": rb"8BPS",
    "PDF is not supported": rb"%PDF",
    "DICOM is not supported": rb".{128}DICM",
}
KIND_OF_SUFFIX = {suffix: kind for kind, (suffixes, _) in FORMATS.items() for suffix in suffixes.split()}
# The end, or no marker of a table (C4, CC, DB, DD), a scan (DA, DC), a restart (D0 to D7), an application or a comment.
END_OF_JPEG = re.compile(rb"\xff[^\x00\xff\xc4\xcc\xd0-\xd7\xda-\xdd\xe0-\xef\xfe]")
COLOURS_OF_TIFF = {0: "white-is-zero grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
COMPRESSIONS_OF_TIFF = {33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34933: "PNG"}
COMPRESSIONS_OF_TIFF |= {50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL", 34676: "SGI Log", 34677: "SGI Log"}
PILLOW_NAMES = {"WebP": "WEBP", "HEIC": "HEIF", "Netpbm": "PPM"}
REDUCTIONS = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
Shape = tuple[int, int]  # (height, width)

cv2.setNumThreads(1)  # images are decoded in parallel; more threads inside each one would only compete with these


class RefusalError(Exception):
    """A sound image that is not decoded; its text is the reason. Whatever else a decoder raises means damage."""


def kind_of(start: bytes) -> str | None:
    """The kind of image, a key of FORMATS, that a file with these first bytes (32 are enough) is; None for another file."""
    return next((kind for kind, (_, pattern) in FORMATS.items() if re.match(pattern, start, re.DOTALL)), None)


def why_not(start: bytes) -> str:
    """Why a file with these first bytes (132 are enough), of none of the FORMATS, is refused."""
    matches = (reason for reason, pattern in OTHERS.items() if re.match(pattern, start, re.DOTALL | re.IGNORECASE))
    return next(matches, "not an image of a known kind")


def decode_bytes(data: bytes, kind: str, image_size: int, fit: str) -> tuple[np.ndarray, Shape]:
    """Decode a file of a kind: (height, width, 3) uint8 RGB, and its (height, width) in the file, both upright.

    See images.decode(), which says what is wrong: this raises RefusalError, MemoryError, ImportError where a package is
    missing, or, if the file is damaged, any other exception.
    """
    if kind == "JPEG":
        return _decode_jpeg(data, image_size, fit)
    decoders = {"PNG": _decode_png, "BMP": _decode_bmp, "GIF": _decode_gif, "TIFF": _decode_tiff}
    pixels = decoders[kind](data) if kind in decoders else rgb_of(_open_by_pillow(data, kind))
    return pixels, pixels.shape[:2]


def _decode_jpeg(data, image_size, fit):
    """The pixels and their shape in the file: see decode_bytes()."""
    position, marker, depth, *stored, channels = _frame_of_jpeg(data)
    if depth != 8 or marker == 0xF7:
        raise RefusalError("JPEG-LS is not supported" if marker == 0xF7 else f"{depth}-bit JPEG is not supported")
    # Decoders make room for as much as a file claims. 64 pixels of a JPEG take at least a bit.
    # From its first scan on, a whole file has no other markers than known ones, up to that of the end.
    end = END_OF_JPEG.search(data, data.find(b"\xff\xda", position))
    if math.prod(stored) > 512 * len(data) or end is None or end[0] != b"\xff\xd9":
        raise ValueError
    # A JPEG can be reduced while it is decoded: fewer pixels are computed from the same coefficients, several times as
    # fast. The side that decides is the one that becomes image_size, or the shorter of two.
    decisive = max(stored) if fit == "pad" else min(stored)
    reduction = max(n for n in REDUCTIONS if n == 1 or decisive // n >= image_size)
    if channels == 4:
        image = _decode_cmyk(data, stored, reduction)
    else:
        image = _decode_by_opencv(data, cv2.IMREAD_COLOR_RGB | REDUCTIONS[reduction])
    height, width = image.shape[:2]
    return image, tuple(stored if (height > width) == (stored[0] > stored[1]) else stored[::-1])  # the other way: turned


def _decode_cmyk(data, stored, reduction):
    """The pixels of a JPEG of four inks as TensorFlow and browsers show them, to the last bit: OpenCV rounds otherwise."""
    image = _open_by_pillow(data, "JPEG")
    image.draft("CMYK", (stored[1] // reduction, stored[0] // reduction))
    light = 255 - np.asarray(_upright(image)).astype(np.uint16)  # what the inks leave
    return (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)


def _decode_png(data):
    """The pixels: see decode_bytes()."""
    chunks = _chunks_of_png(data)
    depth, colours = data[24:26]
    if b"acTL" in chunks:  # of a damaged animation OpenCV leaves pixels unset
        return rgb_of(_open_by_pillow(data, "PNG"))
    if not colours & 4 and b"tRNS" not in chunks:
        return _decode_by_opencv(data, cv2.IMREAD_COLOR_RGB)
    image = _decode_by_opencv(data, cv2.IMREAD_UNCHANGED)
    if image.ndim == 2:  # OpenCV leaves to us which grey is transparent
        level = int.from_bytes(chunks[b"tRNS"][:2], "big") * (255 // (2**depth - 1) if depth < 8 else 1)
        image = np.dstack([image] * 3 + [np.where(image == level, 0, np.iinfo(image.dtype).max).astype(image.dtype)])
    if depth == 16:
        image = (image >> 8).astype(np.uint8)
    upright = _pillow().Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA))
    upright.info["exif"] = bytes(chunks.get(b"eXIf", b""))
    return rgb_of(upright)


def _decode_bmp(data):
    """The pixels: see decode_bytes()."""
    header, width, height, _, bits, compression = struct.unpack_from("<IiiHHI", data, 14)
    if header < 40 or not (compression in (3, 6) or (compression == 0 and bits == 16)):
        return _decode_by_opencv(data, cv2.IMREAD_COLOR_RGB)
    if width * abs(height) > MAX_PIXELS:
        raise RefusalError(TOO_LARGE)
    if bits not in (16, 32):
        raise RefusalError(f"{bits}-bit BMP with bit fields is not supported")
    masks = struct.unpack_from("<4I", data, 54) if compression else (0x7C00, 0x3E0, 0x1F, 0)
    if header < 56 and compression == 3:
        masks = (*masks[:3], 0)  # without one for alpha
    row = (width * bits // 8 + 3) // 4 * 4  # bytes
    stored = np.frombuffer(data, np.uint8, row * abs(height), int.from_bytes(data[10:14], "little")).reshape(-1, row)
    stored = stored[:, : width * bits // 8].copy().view(f"<u{bits // 8}")[:: -1 if height > 0 else 1]  # from the bottom up
    bands = [_levels(stored, mask) for mask in masks]
    if bands[3].max() == 0:  # no alpha, as browsers read it
        bands[3][:] = 255
    return rgb_of(_pillow().Image.fromarray(np.dstack(bands)))


def _levels(stored, mask):
    """The 8-bit levels of one band of a bitmap; 0 without a mask."""
    low = max((mask & -mask).bit_length() - 1, 0)
    levels, most = (stored & mask) >> low, max(mask >> low, 1)
    return (levels if most == 255 else (levels.astype(np.uint64) * 255 + most // 2) // most).astype(np.uint8)


def _decode_gif(data):
    """The pixels: see decode_bytes()."""
    image = _open_by_pillow(data, "GIF")
    left, top, right, bottom = image.tile[0].extents  # of the first frame, outside which nothing is drawn
    pixels = rgb_of(image)
    shown = np.full_like(pixels, 255)
    shown[top:bottom, left:right] = pixels[top:bottom, left:right]
    return shown


def _decode_tiff(data):
    """The pixels: see decode_bytes()."""
    pillow = _pillow()
    if data.startswith(b"MM\0+"):
        raise RefusalError("big-endian BigTIFF is not supported")
    tags = pillow.TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    bits, form = max(tags.get(258, (1,))), max(tags.get(339, (1,)))
    compression, colours, bands = tags.get(259, 1), tags.get(262), tags.get(277, 1)
    if tags.get(254, 0) & 1 or 50706 in tags or data[8:10] == b"CR":  # the first image is a thumbnail, or DNG, or CR2
        raise RefusalError("a camera's raw file (TIFF) is not supported")
    starts, lengths = tags.get(273) or tags[324], tags.get(279) or tags.get(325, ())  # of strips or tiles
    if any(start + length > len(data) for start, length in zip(starts, lengths, strict=False)):
        raise ValueError
    if compression in COMPRESSIONS_OF_TIFF or compression not in pillow.TiffImagePlugin.COMPRESSION_INFO:
        name = COMPRESSIONS_OF_TIFF.get(compression, f"method {compression}")
        raise RefusalError(f"TIFF compressed with {name} is not supported")
    try:
        image = _open_by_pillow(data, "TIFF") if bits in (1, 2, 4, 8, 16) and form == 1 and colours != 8 else None
    except pillow.UnidentifiedImageError:
        image = None
    if image is None:
        form = {2: "signed ", 3: "floating-point "}.get(form, "")
        several = f" of {bands} bands" if bands > 1 else ""
        raise RefusalError(f"{bits}-bit {form}{COLOURS_OF_TIFF.get(colours, '')} TIFF{several} is not supported")
    _libtiff.has_failed = False
    pixels = rgb_of(image)
    if _libtiff.has_failed:
        raise ValueError
    # Pillow turns eight bits around if zero is white, but not sixteen.
    return 255 - pixels if bits == 16 and colours == 0 else pixels


def _decode_by_opencv(data, flags):
    """The array that OpenCV decodes. Raises ValueError for a damaged file."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        if "CV_IO_MAX_IMAGE" in error.err:
            reason = TOO_LARGE if "PIXELS" in error.err else "too large: more than a million pixels wide or high"
            raise RefusalError(reason) from None
        raise ValueError from None
    if image is None:
        raise ValueError
    return image


def _open_by_pillow(data, kind):
    """The image that Pillow reads: its header alone, its size is checked against MAX_PIXELS."""
    pillow = _pillow(kind)
    if kind == "WebP" and math.prod(_shape_of_webp(data)) > MAX_PIXELS:  # Pillow would make room for them at once
        raise RefusalError(TOO_LARGE)
    try:
        return pillow.Image.open(io.BytesIO(data), formats=[PILLOW_NAMES.get(kind, kind)])  # no decoder of another kind
    except pillow.Image.DecompressionBombError:
        raise RefusalError(TOO_LARGE) from None


def rgb_of(image: "Image") -> np.ndarray:
    """The pixels of Pillow's image: (height, width, 3) uint8 RGB, upright as its Exif data say, on white if transparent.

    That is what viewers show. Raises ValueError for values that are no levels of brightness.
    """
    pillow, image = _pillow(), _upright(image)
    if image.mode.startswith("I"):  # levels up to 65,535, which Pillow would clip
        image = pillow.Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("F", "LAB"):
        raise ValueError(f"an image of mode {image.mode} has no levels of red, green and blue")
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    image = image.convert("RGBA")
    ground = pillow.Image.new("RGB", image.size, "white")
    ground.paste(image, mask=image)
    return np.array(ground)


def _upright(image):
    """Pillow's image, turned as its Exif data say."""
    image.load()
    for name in ("xmp", "XML:com.adobe.xmp", "Raw profile type exif"):  # no viewer turns an image by these
        image.info.pop(name, None)
    with contextlib.suppress(Exception):  # of Exif data that are damaged
        image = _pillow().ImageOps.exif_transpose(image)
    return image


_libtiff = threading.local()


@ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
def _on_libtiff_error(_module, _message, _values):
    """Note an error that libtiff would print; Pillow passes over some of them, such as a bad code word of a fax."""
    _libtiff.has_failed = True


@functools.cache
def _pillow(kind=None):
    """Pillow, once it can read this kind. Raises ImportError where what it needs is not installed."""
    import PIL.Image
    import PIL.ImageOps
    import PIL.TiffImagePlugin

    PIL.TiffImagePlugin.READ_LIBTIFF = True  # without it, uncompressed planes of 16 bits and YCbCr come out wrong
    with contextlib.suppress(AttributeError, OSError):  # a Pillow that hides its libtiff
        library = ctypes.CDLL(PIL.Image.core.__file__)
        library.TIFFSetErrorHandler(_on_libtiff_error)
        library.TIFFSetWarningHandler(None)
    warnings.filterwarnings("ignore", module="PIL")  # of more than half of MAX_PIXELS, of odd Exif data, …
    if kind == "HEIC":
        import pillow_heif

        pillow_heif.options.DECODE_THREADS = 1  # as for OpenCV
        pillow_heif.register_heif_opener()
    return PIL


def _frame_of_jpeg(data):
    """(position, marker, bits, height, width, bands) of the frame of a JPEG. Raises ValueError if there is none.

    Its header follows some other segments, each a marker of two bytes and its length.
    """
    position = data.find(0xFF, 2)
    while 0 <= position <= len(data) - 10:
        marker, length, depth, height, width, channels = struct.unpack_from(">xBHBHHB", data, position)
        if marker == 0xFF:  # padding
            position += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return position, marker, depth, height, width, channels
        else:
            position = data.find(0xFF, position + 2 + length)  # like the decoder, over bytes that belong to no segment
    raise ValueError


def _shape_of_webp(data):
    """The (height, width) of a WebP file: each form of its header has them elsewhere."""
    if data[12:16] == b"VP8X":
        return tuple(1 + int.from_bytes(data[start : start + 3], "little") for start in (27, 24))
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    return tuple(side & 0x3FFF for side in struct.unpack_from("<HH", data, 26)[::-1])


def _chunks_of_png(data):
    """{name: content} of the chunks of a PNG, the first one of each name.

    Raises ValueError if the last is missing, or one does not fit into the file: the decoder makes room for up to 2 GiB.
    """
    position, chunks = 8, {}
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        chunks.setdefault(name, memoryview(data)[position + 8 : position + 8 + length])
        position += 12 + length
        if name == b"IEND":
            break
    if position > len(data) or chunks.get(b"IEND") != b"":
        raise ValueError
    return chunks
