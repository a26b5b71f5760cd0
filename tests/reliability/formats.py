"""Image files of every form: decoded to what they are made of, as by a second decoder, or refused with a cause."""

import collections
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from classifier.base.console import say
from classifier.data.images import BadImageError, decode
from tests.formats import Case, cases, grey, on_white
from tests.reliability import Result, count

AS_BROWSERS = ("alpha of zeros.bmp", "larger canvas.gif")  # show them, and unlike the second decoders


def check(folder: Path, short: bool, seed: int) -> Iterator[Result]:
    """Decode all files of tests/formats.py. Of second decoders, that is taken which is not ours: see second_decoder()."""
    every, reasons, agreeing, silent = cases(), collections.Counter(), 0, 0

    def problems():
        nonlocal agreeing, silent
        for case in every:
            try:
                pixels = decode(case.name, case.data, 64)[0]
            except BadImageError as error:
                reasons[error.reason] += 1
                yield None if error.reason == case.reason else f"{case.name}: {error.reason}"
                continue
            yield None if alike(pixels, case.pixels, case.tolerance) else f"{case.name}: other pixels than it is made of"
            other = second_decoder(case)
            if other is None:
                silent += 1
                continue
            agreeing += alike(pixels, other, max(case.tolerance, 1))
            yield (
                None if alike(pixels, other, max(case.tolerance, 1)) else f"{case.name}: a second decoder gives other pixels"
            )

    yield count("image files of every form", problems(), folder / "none")
    say(f"{len(every)} files: {agreeing} as a second decoder gives them, {silent} that no second one reads; refused:")
    for reason, number in reasons.most_common():
        say(f"{number:5} {reason}")


def alike(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    """Whether two images have the same shape, and levels that differ by so much in the mean."""
    return one.shape == other.shape and np.abs(one.astype(int) - other).mean() <= tolerance


def second_decoder(case: Case) -> np.ndarray | None:
    """(height, width, 3) uint8 RGB of another decoder, laid on white by tests/formats.py; None if there is none."""
    suffix = Path(case.name).suffix
    if case.name in AS_BROWSERS or ("orientation" in case.name and "orientation 0" not in case.name):
        return None  # they do not turn images
    if suffix == ".png":
        import tensorflow as tf

        array = tf.io.decode_png(case.data, 4 if re.search("key|alpha|rgba|animated", case.name) else 3).numpy()
    elif suffix in (".jpg", ".bmp"):
        try:
            image = PIL.Image.open(io.BytesIO(case.data))
        except OSError:
            return None
        array = np.asarray(
            image.convert("RGBA") if image.mode in ("P", "CMYK", "1") or image.info.get("transparency") else image
        )
    elif suffix == ".tif":
        import tifffile

        page = tifffile.TiffFile(io.BytesIO(case.data)).pages[0]
        array = page.asarray()
        if page.photometric.name not in ("RGB", "MINISBLACK", "MINISWHITE") or 1 in page.extrasamples:
            return None
        array = np.moveaxis(array, 0, -1) if page.planarconfig == 2 else array
        array = array[..., :3] if 0 in page.extrasamples else array
        array = array * np.uint8(255) if array.dtype == bool else array
        array = np.iinfo(array.dtype).max - array if page.photometric.name == "MINISWHITE" else array
    elif suffix in (".webp", ".gif", ".avif", ".heic"):
        import imagecodecs

        array = getattr(imagecodecs, f"{suffix[1:].replace('heic', 'heif')}_decode")(case.data)
        array = array[0] if array.ndim == 4 else array
    else:
        return None
    array = (array >> 8).astype(np.uint8) if array.dtype == np.uint16 else array
    if array.ndim == 2 or array.shape[2] == 2:
        array = np.dstack([grey(array if array.ndim == 2 else array[..., 0]), *([array[..., 1]] if array.ndim == 3 else [])])
    return on_white(array[..., :3], array[..., 3]) if array.shape[2] == 4 else array
