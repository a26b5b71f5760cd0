"""What a SavedModel makes of the bytes of files, with TensorFlow's operations, is what predict.py makes of the files."""

import struct

import cv2
import numpy as np
import pytest
import tensorflow as tf
from conftest import DRAWING, REAL_DATA, encoded, exif, needs_real_data
from formats import jpeg_cases, png_cases
from image_files import bomb_png

from classifier.data.images import BadImageError, decode_image
from classifier.export.serving import decode

SIZE = 32


def decoder(fit):
    """decode() as a graph, as in a SavedModel."""
    return tf.function(lambda data: decode(data, SIZE, fit), input_signature=[tf.TensorSpec((), tf.string)])


def assert_same_pixels(graph, data, fit, what):
    """OpenCV may round a few otherwise on other processors."""
    difference = np.abs(graph(data).numpy().astype(int) - decode_image("", data, SIZE, fit))
    assert difference.max() <= 1, what
    assert (difference > 0).mean() < 0.01, what


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_the_graph_makes_the_same_pixels(fit):
    graph = decoder(fit)
    for shape in [(20, 17), (45, 50), (64, 64), (96, 96), (192, 192), (64, 100), (70, 130), (300, 500), (33, 90), (1, 3)]:
        image = cv2.resize(DRAWING, shape[::-1], interpolation=cv2.INTER_CUBIC)
        for suffix in (".jpg", ".png"):
            assert_same_pixels(graph, encoded(suffix, image), fit, (shape, suffix))
    jpeg = encoded(".jpg")
    other = b"\xff\xe1\0\x08http\0\0"
    for orientation in range(10):
        segment = exif(orientation)
        second = jpeg[:2] + other + b"\xff" + segment + jpeg[2:]  # behind another one, and a byte of padding
        for data in (jpeg[:2] + segment + jpeg[2:], second):
            assert_same_pixels(graph, data, fit, orientation)
    for damaged in (exif(6)[:14], exif(6)[:27], exif(6).replace(b"*", b"+"), exif(6).replace(b"Exif", b"Exit")):
        damaged = damaged[:2] + struct.pack(">H", len(damaged) - 2) + damaged[4:]
        assert_same_pixels(graph, jpeg[:2] + damaged + jpeg[2:], fit, damaged)


def test_files_of_every_form_become_the_same_pixels():
    """Grey, palette, CMYK with and without Adobe's segment, transparent, of 1 to 16 bits, turned, animated."""
    graph, sound = decoder("squash"), [case for case in (*png_cases(), *jpeg_cases()) if case.pixels is not None]
    for case in sound:
        assert_same_pixels(graph, case.data, "squash", case.name)
    assert len(sound) > 80


def test_the_graph_refuses_what_it_cannot_decode():
    graph, jpeg, png = decoder("squash"), encoded(".jpg"), encoded(".png")
    frame = jpeg.index(b"\xff\xc0") + 5
    for bad in (b"", b"text", jpeg[:9], jpeg[: len(jpeg) // 2], png[:20], png[:200], encoded(".bmp")):
        with pytest.raises(tf.errors.InvalidArgumentError):
            graph(bad)
    for bad in (bomb_png(), jpeg[:frame] + struct.pack(">HH", 60_000, 60_000) + jpeg[frame + 4 :]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="more than .* pixels"):
            graph(bad)


@needs_real_data
def test_real_files_become_the_same_pixels():
    graph, scored = decoder("squash"), 0
    for path in [*REAL_DATA.glob("exif_orientation/**/*.jpg"), *REAL_DATA.glob("pngsuite/**/*.png")]:
        try:
            decode_image(path, path.read_bytes(), SIZE)
        except BadImageError:
            continue
        assert_same_pixels(graph, path.read_bytes(), "squash", path)
        scored += 1
    assert scored > 150
