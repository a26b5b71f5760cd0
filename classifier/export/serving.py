"""Serving: the signatures of a SavedModel, from images or from the bytes of files to classes, all inside its graph.

    serving_default  images (n, size, size, 3) uint8 RGB → logits (n, classes); `serve` is the same
    predict_images   images, the same → what predict.py says of each: see answers_of()
    predict_files    image_bytes (n,), the bytes of JPEG or PNG files → the same; one that is damaged fails the request

decode() makes the pixels that images.load_image() makes, with TensorFlow's operations instead of OpenCV's: a JPEG is reduced
while it is decoded, turned as its Exif data say, and becomes a square. All numbers are rounded as OpenCV rounds them: values
that differ by 1 of 255 in a hundredth of the pixels changed a probability by 0.005.
"""

from pathlib import Path

import keras
import tensorflow as tf

from classifier.data import MAX_PIXELS
from classifier.data.decoding import REDUCTIONS
from classifier.predicting.classifier import name_for_unknown
from classifier.runs.record import RunRecord

ORIENTATION = 0x112  # its tag in Exif data
CMYK = 4  # channels of a JPEG
ADOBE = b"\xff\xd8\xff\xee\0\x0eAdobe\0d\0\0\0\0\0"  # how such a JPEG begins that says: 255 is no ink
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SERVED = (b"\xff\xd8\xff", PNG_SIGNATURE)  # how the files begin that decode() takes: JPEG and PNG


def write_saved_model(network: keras.Model, record: RunRecord, path: Path) -> None:
    """Write a network, whose outputs are logits or (logits, OOD scores), as a SavedModel with the signatures above."""
    size, fit = record.image_size, record.fit
    images = [tf.TensorSpec((None, size, size, 3), tf.uint8, name="images")]
    files = [tf.TensorSpec((None,), tf.string, name="image_bytes")]

    def outputs(images):
        result = network(images, training=False)
        return result if isinstance(result, tuple | list) else (result, tf.zeros(tf.shape(images)[:1]))

    def predict_images(images):
        logits, ood_scores = outputs(images)
        return answers_of(logits, ood_scores, record)

    def predict_files(image_bytes):
        square = tf.TensorSpec((size, size, 3), tf.uint8)
        return predict_images(tf.map_fn(lambda data: decode(data, size, fit), image_bytes, fn_output_signature=square))

    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint("serve", lambda images: outputs(images)[0], images)  # the first one is the default
    archive.add_endpoint("predict_images", predict_images, images)
    archive.add_endpoint("predict_files", predict_files, files)
    archive.write_out(str(path), verbose=False)


def answers_of(logits: tf.Tensor, ood_scores: tf.Tensor, record: RunRecord) -> dict[str, tf.Tensor]:
    """What predict.py says of images, as tensors with a row for each one.

    class: the most likely one, or unknown; probability: of the most likely one; classes and probabilities: of all, the most
    likely first; ood_score: above 1 for an image unlike all training images.
    """
    names = [name.encode(errors="surrogateescape") for name in record.classes]
    unknown = name_for_unknown(record.classes).encode()
    ood_scores = ood_scores / record.ood.threshold if record.ood else tf.zeros_like(ood_scores)
    probabilities, order = tf.math.top_k(tf.nn.softmax(logits), len(names))
    classes = tf.gather(tf.constant(names), order)
    return {
        "class": tf.where(ood_scores > 1, unknown, classes[:, 0]),
        "probability": probabilities[:, 0],
        "classes": classes,
        "probabilities": probabilities,
        "ood_score": ood_scores,
    }


def decode(data: tf.Tensor, image_size: int, fit: str) -> tf.Tensor:
    """Decode the bytes of a JPEG or PNG, a scalar, to (image_size, image_size, 3) uint8 RGB, upright."""
    is_png = tf.strings.substr(data, 0, len(PNG_SIGNATURE)) == PNG_SIGNATURE
    content = tf.io.decode_raw(data, tf.uint8)  # (bytes,)
    pixels = tf.cond(is_png, lambda: _decode_png(data, content), lambda: _decode_jpeg(data, image_size, fit))
    exif = tf.cond(is_png, lambda: _png_chunk(content, b"eXIf", b"IEND"), lambda: _jpeg_exif(content))
    return _square(_upright(pixels, _orientation(exif)), image_size, fit)


def _decode_png(data, content):
    """The pixels, (height, width, 3) uint8, on white."""
    transparent = (_number(content, 25, 1) & 4 > 0) | (tf.size(_png_chunk(content, b"tRNS", b"IDAT")) > 0)
    with tf.control_dependencies([_check_size(_number(content, 20, 4), _number(content, 16, 4))]):
        # Asked for alpha that the file does not have, TensorFlow would make other pixels of those of less than 8 bits.
        return tf.cond(transparent, lambda: _on_white(tf.io.decode_png(data, 4)), lambda: tf.io.decode_png(data, 3))


def _on_white(pixels):
    """Pixels with alpha, (height, width, 4) uint8, on a white ground, (height, width, 3) uint8."""
    pixels = tf.cast(pixels, tf.uint16)
    alpha = pixels[..., 3:]
    return tf.cast((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)


def _decode_jpeg(data, image_size, fit):
    """The pixels, (height, width, 3) uint8, reduced as images._decode() does."""
    height, width, channels = tf.unstack(tf.io.extract_jpeg_shape(data))
    # Without Adobe's segment, TensorFlow alone takes CMYK for its negative. A later segment takes the place of this one.
    marked = tf.strings.join([ADOBE, tf.strings.substr(data, 2, tf.strings.length(data))])
    data = tf.where(channels == CMYK, marked, data)
    decisive = tf.maximum(height, width) if fit == "pad" else tf.minimum(height, width)
    fitting = tf.reduce_sum([tf.cast(decisive // ratio >= image_size, tf.int32) for ratio in REDUCTIONS])
    reduced = lambda ratio: lambda: tf.io.decode_jpeg(data, 3, ratio, dct_method="INTEGER_ACCURATE")  # noqa: E731
    with tf.control_dependencies([_check_size(height, width)]):
        return tf.switch_case(tf.maximum(fitting - 1, 0), [reduced(ratio) for ratio in REDUCTIONS])


def _check_size(height, width):
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    return tf.debugging.assert_less_equal(pixels, tf.constant(MAX_PIXELS, tf.int64), f"more than {MAX_PIXELS:,} pixels")


def _number(content, start, size, little=False):
    """The unsigned number in `size` bytes, int64; bytes after the end count as zero. `little`: the lowest byte is first."""
    digits = tf.cast(content[start : start + size], tf.int64)
    digits = tf.pad(digits, [[0, size - tf.shape(digits)[0]]])
    digits = tf.where(little, digits[::-1], digits)
    return tf.reduce_sum(digits * [256**place for place in reversed(range(size))])


def _jpeg_exif(content):
    """The Exif data of a JPEG: what follows the name in the first segment of that name."""
    length = lambda position: _number(content, position + 2, 2)  # noqa: E731

    def is_other(position):
        marker, name = _number(content, position, 2), _number(content, position + 4, 6)
        is_exif = (marker == 0xFFE1) & (name == int.from_bytes(b"Exif\0\0", "big"))
        return (marker >= 0xFF00) & (marker != 0xFFDA) & ~is_exif  # the scan is the last one

    def following(position):
        is_padding = _number(content, position, 2) == 0xFFFF
        return [position + tf.where(is_padding, tf.constant(1, tf.int64), 2 + length(position))]

    (position,) = tf.while_loop(is_other, following, [tf.constant(2, tf.int64)])
    return content[position + 10 : position + 2 + length(position)]


def _png_chunk(content, wanted, last):
    """The bytes of the first chunk of a name in a PNG, looked for up to the chunk `last`; none if there is none."""
    length = lambda position: _number(content, position, 4)  # noqa: E731
    is_named = lambda position, name: _number(content, position + 4, 4) == int.from_bytes(name, "big")  # noqa: E731
    (position,) = tf.while_loop(
        lambda position: ~is_named(position, wanted) & ~is_named(position, last) & (position < tf.size(content, tf.int64)),
        lambda position: [position + 12 + length(position)],
        [tf.constant(len(PNG_SIGNATURE), tf.int64)],
    )
    return content[position + 8 : position + 8 + tf.where(is_named(position, wanted), length(position), 0)]


def _orientation(exif):
    """The orientation in Exif data, 1 to 8, or 0 where there is none: an entry of the first directory of a TIFF file."""
    little = _number(exif, 0, 4) == int.from_bytes(b"II*\0", "big")
    is_tiff = little | (_number(exif, 0, 4) == int.from_bytes(b"MM\0*", "big"))
    directory = _number(exif, 4, 4, little)
    entries = exif[directory + 2 :][: 12 * _number(exif, directory, 2, little)]
    entries = tf.cast(tf.reshape(entries[: tf.size(entries) // 12 * 12], (-1, 12)), tf.int32)  # (entries, bytes)

    def column(start):
        first, second = entries[:, start], entries[:, start + 1]
        return tf.where(little, first + 256 * second, 256 * first + second)

    found = column(8)[(column(0) == ORIENTATION) & is_tiff]
    return tf.concat([found, [0]], axis=0)[0]


def _upright(image, orientation):
    """Turn an image, (height, width, 3), as its orientation says."""
    is_one_of = lambda *values: tf.reduce_any(orientation == list(values))  # noqa: E731
    image = tf.cond(is_one_of(5, 6, 7, 8), lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    image = tf.cond(is_one_of(2, 3, 6, 7), lambda: image[:, ::-1], lambda: image)
    return tf.cond(is_one_of(3, 4, 7, 8), lambda: image[::-1], lambda: image)


def _square(image, image_size, fit):
    """As images.fit_square() does."""
    height, width = tf.unstack(tf.shape(image)[:2])
    if fit == "crop":
        side = tf.minimum(height, width)
        image = image[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
    if fit != "pad":
        return tf.ensure_shape(_resize(image, image_size, image_size), (image_size, image_size, 3))
    scale = image_size / tf.maximum(height, width)  # float64
    scaled = lambda side: tf.maximum(tf.cast(tf.round(tf.cast(side, tf.float64) * scale), tf.int32), 1)  # noqa: E731
    height, width = scaled(height), scaled(width)
    image = _resize(image, height, width)
    mean = tf.cast(tf.round(tf.reduce_mean(tf.cast(image, tf.float64), axis=(0, 1))), tf.uint8)
    top, left = (image_size - height) // 2, (image_size - width) // 2
    border = [[top, image_size - height - top], [left, image_size - width - left], [0, 0]]
    inside = tf.pad(tf.ones_like(image, tf.bool), border)
    return tf.ensure_shape(tf.where(inside, tf.pad(image, border), mean), (image_size, image_size, 3))


def _resize(image, height, width):
    """As images._resize() does."""
    down, across = tf.shape(image)[0] / height, tf.shape(image)[1] / width
    averages = (tf.maximum(down, across) >= 2) & (tf.minimum(down, across) >= 1)
    return tf.cond(averages, lambda: _average(image, height, width), lambda: _interpolate(image, height, width))


def _average(image, height, width):
    """The means of the areas that become one pixel each; OpenCV adds up those of whole pixels before it divides."""
    factors = tf.cast(tf.shape(image)[:2], tf.float64) / tf.cast(tf.stack([height, width]), tf.float64)
    are_whole = tf.reduce_all(factors == tf.round(factors))
    sums = _add_up(_add_up(tf.cast(image, tf.float32), width, 1, are_whole), height, 0, are_whole)
    means = sums * tf.where(are_whole, 1 / tf.cast(tf.reduce_prod(factors), tf.float32), 1)
    return tf.cast(tf.where(tf.reduce_all(factors == 2), tf.floor(means + 0.5), tf.round(means)), tf.uint8)


def _add_up(image, new, axis, are_whole):
    """For each of `new` pixels along an axis, the mean of those that it covers, or their sum if these `are_whole`."""
    old = tf.shape(image)[axis]
    scale = 1 / (new / old)  # float64
    start = tf.range(new, dtype=tf.float64) * scale
    covered = tf.where(~are_whole, tf.minimum(scale, tf.cast(old, tf.float64) - start), 1)

    def add(total, step):
        index = tf.floor(start) + step
        overlap = tf.minimum(start + scale, index + 1) - tf.maximum(start, index)
        weights = tf.cast(tf.where(overlap > 1e-3, overlap, 0) / covered, tf.float32)
        pixels = tf.gather(image, tf.minimum(tf.cast(index, tf.int32), old - 1), axis=axis)
        return total + pixels * tf.reshape(weights, (-1, 1, 1) if axis == 0 else (-1, 1))

    nothing = tf.zeros_like(tf.gather(image, tf.zeros(new, tf.int32), axis=axis))
    return tf.foldl(add, tf.range(tf.math.ceil(scale) + 1), nothing, parallel_iterations=1)


def _interpolate(image, height, width):
    """Bilinear interpolation in the integers of OpenCV, whose results are not always the nearest ones."""
    image = tf.cast(image, tf.int32)
    left, right = _neighbours(tf.shape(image)[1], width)
    rows = sum(tf.gather(image, column, axis=1) * weight[:, None] for column, weight in (left, right))
    above, below = _neighbours(tf.shape(image)[0], height)
    parts = [tf.gather(rows, row) // 16 * weight[:, None, None] // 65536 for row, weight in (above, below)]
    return tf.cast((sum(parts) + 2) // 4, tf.uint8)


def _neighbours(old, new):
    """The two of `old` pixels in a row that become each of `new`: ((indices, weights), (indices, weights)), (new,) int32.

    The two weights of a pixel add up to 2048.
    """
    position = tf.cast((tf.range(new, dtype=tf.float64) + 0.5) * (1 / (new / old)) - 0.5, tf.float32)
    first = tf.floor(position)
    shares = 1 - (position - first), position - first
    indices = [tf.clip_by_value(tf.cast(first, tf.int32) + step, 0, old - 1) for step in (0, 1)]
    weights = [tf.cast(tf.round(share * 2048), tf.int32) for share in shares]
    return tuple(zip(indices, weights, strict=True))
