"""Image files of every format in many forms, and the pixels that viewers show of each, or why it is refused.

The pixels are not decoded: they are those that the files were made of.
"""

import functools
import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image

HEIGHT, WIDTH = 36, 52


class Case(NamedTuple):
    """An image file. Either `pixels`, (height, width, 3) uint8 RGB upright, or `reason`, why it is refused, is None."""

    name: str
    data: bytes
    pixels: np.ndarray | None
    reason: str | None = None
    tolerance: float = 0.0  # of the mean difference of the levels; the default allows 1 in single pixels


def drawing() -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: smooth, coloured, different on every side."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.stack([x * 255 // (WIDTH - 1), y * 255 // (HEIGHT - 1), 255 - x * 4], -1).astype(np.uint8)
    rgb[6:18, 8:20] = 220, 30, 30
    return rgb


RGB = drawing()
GREY = RGB[..., 0].copy()
ALPHA = (np.add.outer(np.arange(HEIGHT) * 3, np.arange(WIDTH) * 3)).clip(0, 255).astype(np.uint8)
UPRIGHT = {  # by the orientation: from what is stored to what is shown
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


def grey(levels: np.ndarray) -> np.ndarray:
    """Grey levels as RGB."""
    return np.dstack([levels] * 3)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """RGB pixels with alpha as they look on white paper."""
    share = alpha[..., None].astype(int)
    return ((pixels.astype(int) * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)


def exif(orientation: int) -> bytes:
    """Exif data, without a header, that say which side is up."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def saved(array: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    """The bytes of a file that Pillow writes."""
    file = io.BytesIO()
    image = PIL.Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def packed(samples: np.ndarray, bits: int) -> list[bytes]:
    """The bytes of each row of samples, (height, samples in a row), of 1 to 16 bits."""
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in samples]
    digits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=2)[:, :, 8 - bits :]
    return [np.packbits(row.reshape(-1)).tobytes() for row in digits]


def png(width: int, height: int, colour_type: int, *chunks: tuple[bytes, bytes], depth: int = 8) -> bytes:
    """A PNG file of `depth` bits a sample with these chunks, (name, data)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        file += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return file


def png_cases() -> Iterator[Case]:
    """Every colour type and depth, with and without transparency, and turned."""
    palette = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    for bits in (1, 2, 4, 8, 16):
        most = 2**bits - 1
        level = (GREY.astype(int) * most // 255).astype(np.uint16)
        shown = grey((level.astype(int) * (255 // min(most, 255)) if bits < 16 else level >> 8).astype(np.uint8))
        shades = np.dstack([RGB, ALPHA]).astype(np.uint16) * (257 if bits == 16 else 1)
        is_key = level == level[9, 9]
        opaque = np.full_like(ALPHA, 255)
        key = struct.pack(">H", level[9, 9])
        forms = [
            ("grey", 0, level, (), shown),
            ("grey+key", 0, level, ((b"tRNS", key),), on_white(shown, np.where(is_key, 0, opaque))),
        ]
        if bits <= 8:
            table = (b"PLTE", palette[: most + 1].tobytes())
            alphas = ALPHA.ravel()[: most + 1]
            forms += [("palette", 3, level, (table,), palette[level])]
            some = on_white(palette[level], np.append(alphas, [255] * 256)[level].astype(np.uint8))
            forms += [("palette+alpha", 3, level, (table, (b"tRNS", alphas.tobytes())), some)]
        if bits >= 8:
            red = tuple(shades[9, 9, :3])
            hidden = np.where((RGB[9, 9] == RGB).all(-1), 0, opaque)
            forms += [
                ("rgb", 2, shades[..., :3], (), RGB),
                ("rgb+key", 2, shades[..., :3], ((b"tRNS", struct.pack(">HHH", *red)),), on_white(RGB, hidden)),
            ]
            forms += [
                ("rgba", 6, shades, (), on_white(RGB, ALPHA)),
                ("grey+alpha", 4, shades[..., [0, 3]], (), on_white(grey(GREY), ALPHA)),
            ]
        for (name, colours, samples, chunks, pixels), orientation in itertools.product(forms, (0, 6)):
            rows = b"".join(b"\0" + row for row in packed(samples.reshape(HEIGHT, -1), bits))
            turned = ((b"eXIf", exif(orientation)),) if orientation else ()
            data = png(WIDTH, HEIGHT, colours, *chunks, *turned, (b"IDAT", zlib.compress(rows)), depth=bits)
            yield Case(f"{name}, {bits} bits, orientation {orientation}.png", data, UPRIGHT[orientation or 1](pixels))
    frames = [PIL.Image.fromarray(RGB), PIL.Image.fromarray(255 - RGB)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    yield Case("animated.png", file.getvalue(), RGB)
    for kind in range(2, 9):
        yield Case(
            f"orientation {kind}.png",
            saved(np.dstack([RGB, ALPHA]), "PNG", exif=b"Exif\0\0" + exif(kind)),
            UPRIGHT[kind](on_white(RGB, ALPHA)),
        )


def bmp(bits: int, rows: list[bytes], compression=0, masks=(), header=40, palette=b"", top_down=False) -> bytes:
    """A BMP file of rows from the top down."""
    rows = [row + bytes(-len(row) % 4) for row in rows] if compression in (0, 3, 6) else rows
    pixels = b"".join(rows if top_down else rows[::-1])
    table = struct.pack(f"<{len(masks)}I", *masks) if masks else b""
    height = -HEIGHT if top_down else HEIGHT
    if header == 12:
        info = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", header, WIDTH, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
        if header > 40:
            info, table = (info + table).ljust(header, b"\0"), b""
    start = 14 + len(info) + len(table) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + table + palette + pixels


def bmp_cases() -> Iterator[Case]:
    """Every depth, bit fields in many orders, run lengths."""
    palette = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)
    for bits, down in itertools.product((1, 4, 8), (False, True)):
        level = (GREY.astype(int) * (2**bits - 1) // 255).astype(np.uint8)
        quads = b"".join(bytes(colour[::-1]) + b"\0" for colour in palette[: 2**bits])
        yield Case(
            f"{bits} bits, top down {down}.bmp", bmp(bits, packed(level, bits), palette=quads, top_down=down), palette[level]
        )
    level = (GREY >> 4) << 4
    triples = palette[:, ::-1].tobytes()
    yield Case("os2.bmp", bmp(8, packed(level, 8), header=12, palette=triples), palette[level])
    quads = b"".join(bytes(colour[::-1]) + b"\0" for colour in palette)
    rows = [
        b"".join(bytes([len(list(run)), value]) for value, run in itertools.groupby(row.tolist())) + b"\0\0" for row in level
    ]
    yield Case(
        "run lengths.bmp", bmp(8, [*rows[:0:-1], rows[0] + b"\0\1"][::-1], compression=1, palette=quads), palette[level]
    )
    for down in (False, True):
        yield Case(f"24 bits, top down {down}.bmp", bmp(24, [row.tobytes() for row in RGB[..., ::-1]], top_down=down), RGB)
    bgrx = np.dstack([RGB[..., ::-1], ALPHA])
    yield Case("32 bits.bmp", bmp(32, [row.tobytes() for row in bgrx]), RGB)  # the fourth byte means nothing
    orders = {"rgba": (0, 1, 2, 3), "bgra": (2, 1, 0, 3), "abgr": (3, 2, 1, 0), "argb": (1, 2, 3, 0), "grba": (1, 0, 2, 3)}
    for (name, order), header, alpha, down in itertools.product(
        orders.items(), (40, 52, 56, 108, 124), (False, True), (False, True)
    ):
        if alpha and header < 56:
            continue
        masks = [0xFF << 8 * order[band] for band in range(3)] + [0xFF << 8 * order[3] if alpha else 0]
        stored = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        for band, place in enumerate(order):
            stored[..., place] = np.dstack([RGB, ALPHA])[..., band]
        data = bmp(32, [row.tobytes() for row in stored], 3, masks[: 4 if header >= 56 else 3], header, top_down=down)
        yield Case(
            f"{name}, header {header}, alpha {alpha}, top down {down}.bmp", data, on_white(RGB, ALPHA) if alpha else RGB
        )
    stored = np.dstack([RGB, np.zeros_like(GREY)])
    data = bmp(32, [row.tobytes() for row in stored], 3, (0xFF, 0xFF00, 0xFF0000, 0xFF000000), 124)
    yield Case("alpha of zeros.bmp", data, RGB)
    for name, fields in {"555": (5, 5, 5), "565": (5, 6, 5), "1010": (10, 10, 10)}.items():
        bits = 16 if sum(fields) <= 16 else 32
        levels = [RGB[..., band].astype(int) * (2**field - 1) // 255 for band, field in enumerate(fields)]
        starts = [sum(fields[band + 1 :]) for band in range(3)]
        stored = sum(level << start for level, start in zip(levels, starts, strict=True)).astype(f"<u{bits // 8}")
        shown = np.dstack(
            [np.round(level * 255 / (2**field - 1)) for level, field in zip(levels, fields, strict=True)]
        ).astype(np.uint8)
        masks = [2**field - 1 << start for field, start in zip(fields, starts, strict=True)]
        yield Case(f"fields {name}.bmp", bmp(bits, [row.tobytes() for row in stored], 3, masks), shown)
        if name == "555":
            yield Case(
                "16 bits.bmp", bmp(16, [row.tobytes() for row in stored]), shown, tolerance=4
            )  # 31 steps: some stretch them


def jpeg_cases() -> Iterator[Case]:
    """Colour models, subsampling, progressive, orientations."""
    whole = {"quality": 98, "subsampling": 0}
    yield Case("grey.jpg", saved(GREY, "JPEG", **whole), grey(GREY), tolerance=1)
    for sampling, progressive in itertools.product((0, 1, 2), (False, True)):
        data = saved(RGB, "JPEG", quality=98, subsampling=sampling, progressive=progressive)
        yield Case(f"subsampling {sampling}, progressive {progressive}.jpg", data, RGB, tolerance=(1.5, 4, 6)[sampling])
    yield Case("rgb.jpg", saved(RGB, "JPEG", keep_rgb=True, quality=98), RGB, tolerance=1.5)
    for orientation in range(1, 9):
        data = saved(RGB, "JPEG", exif=b"Exif\0\0" + exif(orientation), **whole)
        yield Case(f"orientation {orientation}.jpg", data, UPRIGHT[orientation](RGB), tolerance=1.5)
    ink = np.dstack([255 - RGB, np.full_like(GREY, 40)])
    file = io.BytesIO()
    image = PIL.Image.frombytes("CMYK", (WIDTH, HEIGHT), ink.tobytes())
    image.save(file, "JPEG", **whole)
    cmyk, shown = file.getvalue(), np.array(image.convert("RGB"))
    start = cmyk.index(b"\xff\xee")
    yield Case("cmyk.jpg", cmyk, shown, tolerance=2)
    yield Case("cmyk without adobe.jpg", cmyk[:start] + cmyk[start + 16 :], shown, tolerance=2)
    for name in ("photo.jif", "photo.pjpeg", "photo", "photo.jpg_large"):
        yield Case(name, saved(RGB, "JPEG", **whole), RGB, tolerance=1.5)
    deep = bytearray(saved(RGB, "JPEG", **whole))
    deep[deep.index(b"\xff\xc0") + 4] = 12
    yield Case("12 bits.jpg", bytes(deep), None, "12-bit JPEG is not supported")


def gif_cases() -> Iterator[Case]:
    """Palettes, a transparent colour, animations, a frame that is smaller than the canvas."""
    palette = np.random.default_rng(2).integers(0, 256, (256, 3)).astype(np.uint8)
    image = PIL.Image.frombytes("P", (WIDTH, HEIGHT), GREY.tobytes())
    image.putpalette(palette.tobytes())
    shown = palette[GREY]
    for interlaced, key in itertools.product((0, 1), (None, int(GREY[9, 9]))):
        file = io.BytesIO()
        image.save(file, "GIF", interlace=interlaced, optimize=False, **({} if key is None else {"transparency": key}))
        pixels = shown if key is None else on_white(shown, np.where(key == GREY, 0, 255).astype(np.uint8))
        yield Case(f"interlaced {interlaced}, key {key}.gif", file.getvalue(), pixels)
    file = io.BytesIO()
    image.save(file, "GIF", save_all=True, append_images=[PIL.Image.fromarray(255 - GREY)], optimize=False)
    yield Case("animated.gif", file.getvalue(), shown)
    data = bytearray(file.getvalue())
    struct.pack_into("<HH", data, 6, WIDTH + 9, HEIGHT + 7)
    struct.pack_into("<HH", data, data.index(b"," + bytes(4)) + 1, 4, 3)
    canvas = np.full((HEIGHT + 7, WIDTH + 9, 3), 255, np.uint8)
    canvas[3 : 3 + HEIGHT, 4 : 4 + WIDTH] = shown
    yield Case("larger canvas.gif", bytes(data), canvas)


def webp_cases() -> Iterator[Case]:
    """Lossless and lossy, alpha, animations, orientations."""
    both = np.dstack([RGB, ALPHA])
    yield Case("lossless.webp", saved(RGB, "WEBP", lossless=True), RGB)
    yield Case("lossless alpha.webp", saved(both, "WEBP", lossless=True, exact=True), on_white(RGB, ALPHA))
    yield Case("lossy.webp", saved(RGB, "WEBP", quality=98), RGB, tolerance=5)
    yield Case("lossy alpha.webp", saved(both, "WEBP", quality=98, exact=True), on_white(RGB, ALPHA), tolerance=5)
    more = {"save_all": True, "append_images": [PIL.Image.fromarray(255 - both)]}
    yield Case("animated.webp", saved(both, "WEBP", lossless=True, exact=True, **more), on_white(RGB, ALPHA))
    for orientation, stored in itertools.product(range(1, 9), (RGB, both)):
        pixels = RGB if stored is RGB else on_white(RGB, ALPHA)
        data = saved(stored, "WEBP", lossless=True, exact=True, exif=exif(orientation))
        yield Case(f"orientation {orientation}, {stored.shape[2]} bands.webp", data, UPRIGHT[orientation](pixels))


def avif_and_heic_cases() -> Iterator[Case]:
    """With and without alpha, and turned. There are none of a format that Pillow cannot write here."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
        kinds = {"AVIF": "avif", "HEIF": "heic"}
    except ImportError:
        kinds = {"AVIF": "avif"}
    for (kind, suffix), stored in itertools.product(kinds.items(), (RGB, np.dstack([RGB, ALPHA]))):
        pixels = RGB if stored is RGB else on_white(RGB, ALPHA)
        for orientation in range(1, 9):
            image = PIL.Image.fromarray(stored)
            image.getexif()[0x112] = orientation
            file = io.BytesIO()
            image.save(file, kind, quality=98, **({"exif": image.getexif()} if kind == "AVIF" else {}))
            name = f"orientation {orientation}, {stored.shape[2]} bands.{suffix}"
            yield Case(name, file.getvalue(), UPRIGHT[orientation](pixels), tolerance=6)


def netpbm_cases() -> Iterator[Case]:
    """Text and binary, 1, 8 and 16 bits."""
    size = f"{WIDTH} {HEIGHT}"
    dark, deep = GREY < 100, GREY.astype(">u2") * 257
    yield Case("binary.ppm", f"P6\n# made by hand\n{size}\n255\n".encode() + RGB.tobytes(), RGB)
    yield Case("binary.pgm", f"P5 {size} 255\n".encode() + GREY.tobytes(), grey(GREY))
    yield Case("16 bits.pgm", f"P5 {size} 65535\n".encode() + deep.tobytes(), grey(GREY))
    yield Case("16 bits.ppm", f"P6 {size} 65535\n".encode() + (RGB.astype(">u2") * 257).tobytes(), RGB)
    yield Case(
        "bits.pbm", f"P4 {size}\n".encode() + b"".join(packed(dark, 1)), grey(np.where(dark, 0, 255).astype(np.uint8))
    )
    for name, magic, values, pixels in (("text.ppm", "P3", RGB, RGB), ("text.pgm", "P2", GREY, grey(GREY))):
        yield Case(name, f"{magic} {size} 255\n{' '.join(map(str, values.ravel()))}\n".encode(), pixels)


def tiff_forms() -> dict[str, tuple]:
    """{name: (stored, shown or the reason of the refusal, options of tifffile)}."""
    palette = np.random.default_rng(3).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    both, blended, grey_both = np.dstack([RGB, ALPHA]), on_white(RGB, ALPHA), np.dstack([GREY, ALPHA])
    premultiplied = np.dstack([np.round(RGB * (ALPHA[..., None] / 255)).astype(np.uint8), ALPHA])
    black, white, rgb = ({"photometric": kind} for kind in ("minisblack", "miniswhite", "rgb"))
    alpha, no_alpha = {"extrasamples": ["unassalpha"]}, {"extrasamples": ["unspecified"]}
    forms = {
        "grey": (GREY, grey(GREY), black),
        "grey+alpha": (grey_both, on_white(grey(GREY), ALPHA), black | alpha | {"planarconfig": "contig"}),
        "white is zero": (255 - GREY, grey(GREY), white),
        "bits": (GREY > 99, grey(np.where(GREY > 99, 255, 0).astype(np.uint8)), black),
        "palette": (GREY, (palette >> 8).astype(np.uint8).T[GREY], {"photometric": "palette", "colormap": palette}),
        "rgb": (RGB, RGB, rgb),
        "rgba": (both, blended, rgb | alpha),
        "premultiplied": (premultiplied, blended, rgb | {"extrasamples": ["assocalpha"]}),
        "more bands": (both, RGB, rgb | no_alpha),
        "cmyk": (np.dstack([255 - RGB, 0 * GREY]), RGB, {"photometric": "separated"}),
        "ycbcr": (np.array(PIL.Image.fromarray(RGB).convert("YCbCr")), RGB, {"photometric": "ycbcr"}),
        "cielab": (RGB, "8-bit CIELAB TIFF of 3 bands is not supported", {"photometric": "cielab"}),
        "float": (GREY / np.float32(255), "32-bit floating-point grey TIFF is not supported", black),
        "signed": (GREY.astype(np.int16), "16-bit signed grey TIFF is not supported", black),
        "32 bits": (GREY.astype(np.uint32), "32-bit grey TIFF is not supported", black),
    }
    for name in ("grey", "white is zero", "rgb", "rgba"):
        stored, shown, options = forms[name]
        forms[f"{name} 16"] = stored.astype(np.uint16) * 257, shown, options
    return forms


def tiff(array: np.ndarray, **options) -> bytes | None:
    """The bytes of a TIFF file; None if tifffile, or imagecodecs for this compression, is not installed."""
    file = io.BytesIO()
    try:
        import tifffile

        tifffile.imwrite(file, array, **options)
    except (ImportError, ValueError):
        return None
    return file.getvalue()


def tiff_cases() -> Iterator[Case]:
    """Compression, tiles, planes, depth, alpha, colour models."""
    layouts = [
        {},
        {"tile": (16, 16)},
        {"tile": (240, 240)},
        {"rowsperstrip": 5},
        {"planarconfig": "separate"},
        {"bigtiff": True},
    ]
    methods = itertools.product((None, "lzw", "deflate", "packbits", "zstd", "lzma"), layouts, "<>")
    for (name, (stored, shown, options)), (method, layout, order) in itertools.product(tiff_forms().items(), methods):
        if "planarconfig" in layout and not name.startswith("rgb"):
            continue
        if method in ("packbits", "zstd", "lzma") and (layout or order == ">"):
            continue
        array = np.moveaxis(stored, -1, 0) if "planarconfig" in layout else stored
        data = tiff(array, compression=method, byteorder=order, **options, **layout)
        reason = shown if isinstance(shown, str) else None
        if order == ">" and name == "white is zero 16":
            reason = "16-bit white-is-zero grey TIFF is not supported"
        if order == ">" and "bigtiff" in layout:
            reason = "big-endian BigTIFF is not supported"
        near = {"premultiplied": 0.2, "ycbcr": 1}.get(name, 0)
        yield Case(f"{name}, {method}, {order}, {layout}.tif", data, None if reason else shown, reason, near)
    for method, named in {"jpeg2000": "JPEG 2000", "jpegxl": "JPEG XL", "png": "PNG", "webp": "WebP"}.items():
        data = tiff(RGB, compression=method, photometric="rgb")
        yield Case(f"{method}.tif", data, None, f"TIFF compressed with {named} is not supported")
    raw = tiff(RGB, photometric="rgb", subfiletype=1)
    yield Case("thumbnail.tif", raw, None, "a camera's raw file (TIFF) is not supported")
    yield Case("jpeg.tif", tiff(RGB, compression="jpeg", photometric="rgb"), RGB, tolerance=9)
    yield Case("pages.tif", tiff(np.stack([RGB, 255 - RGB]), photometric="rgb"), RGB)
    for orientation in range(1, 9):
        data = tiff(RGB, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
        yield Case(f"orientation {orientation}.tif", data, UPRIGHT[orientation](RGB))


@functools.cache
def cases() -> list[Case]:
    """All of them: several hundred."""
    kinds = png_cases, bmp_cases, jpeg_cases, gif_cases, webp_cases, avif_and_heic_cases, netpbm_cases, tiff_cases
    return [case for kind in kinds for case in kind() if case.data is not None]
