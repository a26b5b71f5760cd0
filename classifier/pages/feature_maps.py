"""Feature maps: what convolutions make of an image, drawn for somebody who has never seen one.

A convolution slides a kernel, a small table of numbers, over the image. Each number is multiplied by the pixel under it, and
the sum of the products is the new pixel.
"""

import cv2
import keras
import numpy as np

from classifier.networks import PRETRAINED_NETWORKS
from classifier.networks.by_name import FEATURE_MAPS, compile_outputs
from classifier.networks.pretrained import maps_of_last_sizes, normalize
from classifier.runs.checkpoints import load_trained_network

KERNELS = {  # name: numbers, what they are divided by, and what they do; known long before networks learned theirs
    "box blur": ([[1, 1, 1], [1, 1, 1], [1, 1, 1]], 9, "mean of 9 pixels"),
    "sharpen": ([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], 1, "stronger edges"),
    "Sobel x": ([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], 4, "vertical edges"),
    "Sobel y": ([[-1, -2, -1], [0, 0, 0], [1, 2, 1]], 4, "horizontal edges"),
    "Laplacian": ([[0, 1, 0], [1, -4, 1], [0, 1, 0]], 1, "spots, all edges"),
}
SHOWN = 16  # filters and maps of a layer, in two rows


def apply_kernel(image, name):
    """An image, (height, width) uint8, after one of the KERNELS: (height, width) float32, below 0 for some."""
    numbers, divisor, _ = KERNELS[name]
    return cv2.filter2D(image.astype(np.float32), -1, np.array(numbers, np.float32) / divisor)


class Convolutions:
    """The first filters of a run's network, and the feature maps it computes of an image."""

    def __init__(self, run):
        """Raises UserError where the network cannot be restored."""
        network = load_trained_network(run)
        if network.name in PRETRAINED_NETWORKS:
            part = network.get_layer("backbone")
            outputs = maps_of_last_sizes(part, 4)
        else:
            part = network
            names = [*FEATURE_MAPS, "stage3_block2_relu"]
            outputs = [layer.output for layer in network.layers if layer.name in names]
        first, convolution = next(
            (layer, inner)
            for layer in part.layers
            for inner in getattr(layer, "layers", [layer])  # that of a ConvNeXt is in a Sequential
            if isinstance(inner, keras.layers.Conv2D)
        )
        name_of = {id(layer.output): layer.name for layer in part.layers}
        self.first_layer, self.layers = first.name, [name_of[id(output)] for output in outputs]
        self.filters = convolution.get_weights()[0]  # (height, width, 3, filters)
        tensors = [first.output, *outputs]
        if part is not network:
            tensors = keras.Model(part.input, tensors)(normalize(network.name, network.input))
        self._compute = compile_outputs(keras.Model(network.input, tensors))

    def __call__(self, image):
        """The maps of an image, (size, size, 3) uint8 RGB: of the first convolution, without bias or ReLU, and of `layers`.

        A list of (height, width, channels) float32.
        """
        return [maps[0] for maps in self._compute(image[None])]


def choose(maps):
    """At most SHOWN channels of maps, (height, width, channels): from the half that differs most from place to place."""
    order = np.argsort(-maps.std(axis=(0, 1)), kind="stable")
    half = max(SHOWN, len(order) // 2)
    return np.sort(order[:half][:: max(1, half // SHOWN)][:SHOWN])


def signed_tiles(arrays):
    """Arrays of both signs as images: grey is 0, white the highest, black as far below; (n, h, w[, 3]) → uint8."""
    limits = np.abs(arrays).max(axis=tuple(range(1, arrays.ndim)), keepdims=True)
    return (127.5 + 127.5 * arrays / np.maximum(limits, 1e-9)).round().astype(np.uint8)


def positive_tiles(arrays):
    """Maps as images: black is the lowest, white the highest of each; (n, height, width) → uint8."""
    low, high = arrays.min(axis=(1, 2), keepdims=True), arrays.max(axis=(1, 2), keepdims=True)
    return (255 * (arrays - low) / np.maximum(high - low, 1e-9)).round().astype(np.uint8)


def mosaic(tiles, side=128, gap=6):
    """Tiles, (n, height, width[, 3]) uint8, in rows of eight: one image, (height, width, 3) uint8 RGB, with white gaps."""
    rows = -(-len(tiles) // 8)
    sheet = np.full((rows * (side + gap) - gap, 8 * (side + gap) - gap, 3), 255, np.uint8)
    for position, tile in enumerate(tiles):
        shrinks = len(tile) > side
        tile = cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
        top, left = (side + gap) * np.array(divmod(position, 8))
        sheet[top : top + side, left : left + side] = tile if tile.ndim == 3 else tile[:, :, None]
    return sheet


def draw_lesson(photo, image, convolutions):
    """A figure: classic kernels on a photo, (height, width, 3) uint8 RGB; filters and maps of a network's Convolutions.

    `image` is the photo as the network takes it, (size, size, 3) uint8 RGB.
    """
    from matplotlib.figure import Figure

    first, *others = convolutions(image)
    shown = choose(first)
    filters = signed_tiles(np.moveaxis(convolutions.filters, 3, 0)[shown])
    results = signed_tiles(np.moveaxis(first, 2, 0)[shown])
    kind = f"{convolutions.filters.shape[0]}×{convolutions.filters.shape[1]}"
    title = (
        f"Filters that the network learned: {len(shown)} of {first.shape[2]} in its first layer, "
        f"{convolutions.first_layer}. Each has a {kind} kernel for red, green\n"
        "and blue, shown as colours: grey is 0. Below each, what it makes of this image: grey is 0."
    )
    sections = [(title, mosaic(interleave(filters, results)))]
    explained = (
        "Feature maps (white: most). A later convolution adds up its results for all maps of the layer before. ReLU makes "
        "what is\nbelow 0 black. "
    )
    for name, maps in zip(convolutions.layers, others, strict=True):
        shown = choose(maps)
        height, width, channels = maps.shape
        title, explained = f"{explained}After {name}: {len(shown)} of {channels} maps, {height}×{width} each", ""
        sections.append((title, mosaic(positive_tiles(np.moveaxis(maps, 2, 0)[shown]))))
    heights = [3.8, *(11 * sheet.shape[0] / sheet.shape[1] + 0.4 for _, sheet in sections)]
    figure = Figure(figsize=(11, sum(heights)), dpi=100, layout="constrained")
    kernels, *parts = figure.subfigures(len(heights), 1, height_ratios=heights)
    draw_kernels(kernels, cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY))
    for part, (title, sheet) in zip(parts, sections, strict=True):
        axes = part.subplots()
        axes.imshow(sheet, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title, loc="left", fontsize=10)
    return figure


def interleave(filters, results):
    """Filters in rows of eight, and their results in a row below each: a list for mosaic()."""
    tiles = []
    for start in range(0, len(filters), 8):
        row = slice(start, start + 8)
        blank = [np.full((1, 1), 255, np.uint8)] * (8 - len(filters[row]))
        tiles += [*filters[row], *blank, *results[row], *blank]
    return tiles


def draw_kernels(figure, grey):
    """Draw the KERNELS, as numbers, and what each makes of a grey image, (height, width) uint8, beside the image itself."""
    figure.suptitle(
        "A convolution slides a kernel over the image. Each number is multiplied by the pixel under it; the sum is the new "
        "pixel.\nClassic kernels, and what they make of this image (for the last three, grey is 0):",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    grid = figure.subplots(2, len(KERNELS) + 1, height_ratios=(2, 1.2))
    for axes in grid.flat:
        axes.set_axis_off()
    grid[0, 0].imshow(grey, cmap="gray", vmin=0, vmax=255)
    grid[0, 0].set_title("the image, grey", fontsize=10)
    for (image_axes, kernel_axes), (name, (numbers, divisor, effect)) in zip(grid.T[1:], KERNELS.items(), strict=True):
        result, numbers = apply_kernel(grey, name), np.array(numbers)
        if numbers.sum():
            image_axes.imshow(result, cmap="gray", vmin=0, vmax=255)
        else:
            image_axes.imshow(signed_tiles(result[None])[0], cmap="gray", vmin=0, vmax=255)
        image_axes.set_title(f"{name}:\n{effect}", fontsize=10)
        kernel_axes.imshow(np.sign(numbers), cmap="gray", vmin=-3, vmax=3)
        for (row, column), value in np.ndenumerate(numbers):
            kernel_axes.text(column, row, f"{value}".replace("-", "−"), ha="center", va="center", fontsize=11)
        if divisor > 1:
            kernel_axes.text(1, 3, f"divided by {divisor}", ha="center", va="center", fontsize=9)
