"""Decoding: from Pillow's images to pixels, as viewers show them."""

import contextlib
import typing

import numpy as np

if typing.TYPE_CHECKING:
    from PIL.Image import Image


def rgb_of(image: "Image") -> np.ndarray:
    """The pixels of Pillow's image: (height, width, 3) uint8 RGB, upright as its Exif data say, on white if transparent.

    That is what viewers show. Raises ValueError for values that are no levels of brightness.
    """
    import PIL.Image
    import PIL.ImageOps

    image.load()
    for name in ("xmp", "XML:com.adobe.xmp", "Raw profile type exif"):  # no viewer turns an image by these
        image.info.pop(name, None)
    with contextlib.suppress(Exception):  # of Exif data that are damaged
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # levels up to 65,535, which Pillow would clip
        image = PIL.Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("F", "LAB"):
        raise ValueError(f"an image of mode {image.mode} has no levels of red, green and blue")
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    image = image.convert("RGBA")
    ground = PIL.Image.new("RGB", image.size, "white")
    ground.paste(image, mask=image)
    return np.array(ground)
