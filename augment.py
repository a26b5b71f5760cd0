"""Augmentation: each time a training picture is shown, it is shown a little differently.

Where its pixels go is one affine map (crop, zoom, stretch, mirror, turn), and what becomes of their colours is another
(brightness, contrast, saturation, tint), so that all of it costs two passes over the picture.
"""

import math

import libraries  # noqa: F401  before OpenCV

# isort: split
import cv2
import numpy as np

ZOOM, STRETCH, TURN = (0.7, 1.0), 0.1, 10  # sides of the part that is shown; logarithm of their ratio; degrees
CONTRAST, SATURATION, BRIGHTNESS, TINT = 0.3, 0.4, 30, 8  # by how much each changes at most; of 1, 1, 255 and 255
LUMA = np.array([0.299, 0.587, 0.114])  # how much red, green and blue add to what looks bright (ITU-R BT.601)


def augment(picture, size, rng):
    """A random view of a picture, (side, side, 3) uint8 RGB → (size, size, 3) uint8 RGB, drawn from a numpy Generator."""
    places = random_places(rng, len(picture), size)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    view = cv2.warpAffine(picture, places, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return cv2.transform(view, random_colours(rng))


def random_places(rng, side, size):
    """For each pixel of a view, `size` square, where in a picture, `side` square, it comes from: (2, 3), of (x, y, 1)."""
    zoom, mirror = rng.uniform(*ZOOM), 1 if rng.random() < 0.5 else -1
    stretch, turn, x, y = rng.uniform(-1, 1, 4)
    width, height = (min(zoom * math.exp(sign * stretch * STRETCH), 1) for sign in (1, -1))  # of the part, of 1
    cos, sin = math.cos(math.radians(turn * TURN)), math.sin(math.radians(turn * TURN))
    linear = np.array([[mirror * width * cos, -height * sin], [mirror * width * sin, height * cos]]) * (side / size)
    centre = np.array([1 + x * (1 - width), 1 + y * (1 - height)]) * (side / 2)
    # Pixels have their centres at halves, so the middle of the view is at (size - 1) / 2.
    offset = centre - 0.5 - linear.sum(axis=1) * (size - 1) / 2
    return np.column_stack([linear, offset])


def random_colours(rng):
    """What a colour becomes: (3, 4), of (red, green, blue, 1), each 0 to 255."""
    contrast, saturation, brightness, *tint = rng.uniform(-1, 1, 6)
    contrast, saturation = 1 + CONTRAST * contrast, 1 + SATURATION * saturation
    linear = contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA)
    offset = 127.5 * (1 - contrast) + BRIGHTNESS * brightness + TINT * np.array(tint)
    return np.column_stack([linear, offset])
