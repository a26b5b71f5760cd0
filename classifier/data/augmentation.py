"""Augmentation: in each epoch the network sees a training image a little differently.

The positions of its pixels change by one affine map (crop, zoom, stretch, flip, rotation), and its colours by another
(brightness, contrast, saturation, tint), so that all of it takes two passes over the image.
"""

import math

import cv2
import numpy as np

ZOOM, STRETCH, ROTATION = (0.7, 1.0), 0.1, 10  # sides of the crop; logarithm of their ratio; degrees
CONTRAST, SATURATION, BRIGHTNESS, TINT = 0.3, 0.4, 30, 8  # the most that each changes; of 1, 1, 255 and 255
LUMA = np.array([0.299, 0.587, 0.114])  # the weights of red, green and blue in brightness (ITU-R BT.601)


def augment(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random view of an image, (side, side, 3) uint8 RGB → (size, size, 3) uint8 RGB, drawn from a numpy Generator."""
    places = random_places(rng, len(image), size)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    view = cv2.warpAffine(image, places, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return cv2.transform(view, random_colours(rng))


def random_places(rng: np.random.Generator, side: int, size: int) -> np.ndarray:
    """The affine map from pixels of a view, `size` square, to those of an image, `side` square: (2, 3), of (x, y, 1)."""
    zoom, flip = rng.uniform(*ZOOM), 1 if rng.random() < 0.5 else -1
    stretch, rotation, x, y = rng.uniform(-1, 1, 4)
    width, height = (min(zoom * math.exp(sign * stretch * STRETCH), 1) for sign in (1, -1))  # of the crop, relative
    cos, sin = math.cos(math.radians(rotation * ROTATION)), math.sin(math.radians(rotation * ROTATION))
    linear = np.array([[flip * width * cos, -height * sin], [flip * width * sin, height * cos]]) * (side / size)
    centre = np.array([1 + x * (1 - width), 1 + y * (1 - height)]) * (side / 2)
    # The centre of a pixel is at half coordinates, so the middle of the view is at (size - 1) / 2.
    offset = centre - 0.5 - linear.sum(axis=1) * (size - 1) / 2
    return np.column_stack([linear, offset])


def random_colours(rng: np.random.Generator) -> np.ndarray:
    """The affine map of colours: (3, 4), of (red, green, blue, 1), each 0 to 255."""
    contrast, saturation, brightness, *tint = rng.uniform(-1, 1, 6)
    contrast, saturation = 1 + CONTRAST * contrast, 1 + SATURATION * saturation
    linear = contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA)
    offset = 127.5 * (1 - contrast) + BRIGHTNESS * brightness + TINT * np.array(tint)
    return np.column_stack([linear, offset])
