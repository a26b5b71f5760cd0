"""Feature maps: what convolutions make of an image, drawn for somebody who has never seen one.

A convolution slides a kernel, a small table of numbers, over the image. Each number is multiplied by the pixel under it, and
the sum of the products is the new pixel.
"""

import cv2
import keras
import numpy as np

from classifier.base.figures import COLUMNS, new_figure, tiled
from classifier.networks import NETWORKS, PRETRAINED_NETWORKS
from classifier.networks.by_name import compile_outputs
from classifier.networks.pretrained import backbone_outputs, maps_of_last_sizes, without_padding
from classifier.runs.checkpoints import load_trained_network
from classifier.runs.folder import Run

KERNELS = {  # name: numbers, what they are divided by, and what they do; known long before networks learned theirs
    "box blur": ([[1, 1, 1], [1, 1, 1], [1, 1, 1]], 9, "mean of 9 pixels"),
    "sharpen": ([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], 1, "stronger edges"),
    "Sobel x": ([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], 4, "vertical edges"),
    "Sobel y": ([[-1, -2, -1], [0, 0, 0], [1, 2, 1]], 4, "horizontal edges"),
    "Laplacian": ([[0, 1, 0], [1, -4, 1], [0, 1, 0]], 1, "spots, all edges"),
}
SHOWN = 16  # filters and maps of a layer, in two rows


def apply_kernel(image: np.ndarray, name: str) -> np.ndarray:
    """An image, (height, width) uint8, after one of the KERNELS: (height, width) float32, below 0 for some."""
    numbers, divisor, _ = KERNELS[name]
    return cv2.filter2D(image.astype(np.float32), -1, np.array(numbers, np.float32) / divisor)


class Convolutions:
    """The first filters of a run's network, and the feature maps it computes of an image."""

    def __init__(self, run: Run):
        """Raises UserError where the network cannot be restored."""
        network = part = load_trained_network(run)
        if network.name in PRETRAINED_NETWORKS:
            part = network.get_layer("backbone")
            maps = without_padding(part, maps_of_last_sizes(part, 4))
        else:
            last = [layer.name for layer in network.layers if len(layer.output.shape) == 4][-1]
            maps = [network.get_layer(name).output for name in dict.fromkeys([*NETWORKS[network.name][1], last])]
        first, convolution = next(
            (layer, inner)
            for layer in part.layers
            for inner in getattr(layer, "layers", [layer])  # that of a ConvNeXt is in a Sequential
            if isinstance(inner, keras.layers.Conv2D)
        )
        name_of = {id(layer.output): layer.name for layer in part.layers}
        self.first_layer, self.layers = first.name, [name_of[id(output)] for output in maps]
        self.filters = convolution.get_weights()[0]  # (height, width, 3, filters)
        tensors = [first.output, *maps]
        outputs = tensors if part is network else backbone_outputs(network, tensors)
        self._compute = compile_outputs(keras.Model(network.input, outputs))

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        """The maps of an image, (size, size, 3) uint8 RGB: of the first convolution, without bias or ReLU, and of `layers`.

        Each is (height, width, channels) float32.
        """
        return [maps[0] for maps in self._compute(image[None])]


def choose(maps: np.ndarray) -> np.ndarray:
    """At most SHOWN channels of maps, (height, width, channels): from the half that differs most from place to place."""
    order = np.argsort(-maps.std(axis=(0, 1)), kind="stable")
    half = max(SHOWN, len(order) // 2)
    return np.sort(order[:half][:: max(1, half // SHOWN)][:SHOWN])


def as_images(arrays: np.ndarray, signed: bool = False) -> np.ndarray:
    """Arrays, (n, height, width[, 3]), as uint8 images: from black, the lowest, to white, the highest of each.

    Of `signed` ones, 0 is grey, and black as far below it as white is above.
    """
    axes = tuple(range(1, arrays.ndim))
    high = np.maximum((np.abs(arrays) if signed else arrays).max(axis=axes, keepdims=True), 1e-9)
    low = -high if signed else arrays.min(axis=axes, keepdims=True)
    return (255 * (arrays - low) / np.maximum(high - low, 1e-9)).round().astype(np.uint8)


def draw_lesson(photo: np.ndarray, image: np.ndarray, convolutions: Convolutions):
    """A figure: classic kernels on a photo, (height, width, 3) uint8 RGB; filters and maps of a network's Convolutions.

    `image` is the photo as the network takes it, (size, size, 3) uint8 RGB.
    """
    first, *others = convolutions(image)
    shown = choose(first)
    filters, results = (as_images(np.moveaxis(each, -1, 0)[shown], signed=True) for each in (convolutions.filters, first))
    rows = [part[start : start + COLUMNS] for start in range(0, len(shown), COLUMNS) for part in (filters, results)]
    height, width, _, _ = convolutions.filters.shape
    title = (
        f"Filters that the network learned: {len(shown)} of {first.shape[2]} in its first layer, "
        f"{convolutions.first_layer}. Each has a {height}×{width} kernel for red, green\n"
        "and blue, shown as colours: grey is 0. Below each, what it makes of this image: grey is 0."
    )
    sections = [(title, np.concatenate([tiled(row) for row in rows]))]
    title = "Feature maps (white: most). A later convolution adds up its results for all maps of the layer before. "
    title += "ReLU makes what is\nbelow 0 black. "
    for name, maps in zip(convolutions.layers, others, strict=True):
        shown = choose(maps)
        height, width, channels = maps.shape
        title += f"After {name}: {len(shown)} of {channels} maps, {height}×{width} each"
        sections.append((title, tiled(as_images(np.moveaxis(maps, 2, 0)[shown]))))
        title = ""
    heights = [3.8, *(11 * sheet.shape[0] / sheet.shape[1] + 0.4 for _, sheet in sections)]
    figure = new_figure(11, sum(heights), layout="constrained")
    kernels, *parts = figure.subfigures(len(heights), 1, height_ratios=heights)
    draw_kernels(kernels, cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY))
    for part, (title, sheet) in zip(parts, sections, strict=True):
        axes = part.subplots()
        axes.imshow(sheet, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title, loc="left", fontsize=10)
    return figure


def draw_kernels(figure, grey: np.ndarray) -> None:
    """Draw the KERNELS, as numbers, and what each makes of a grey image, (height, width) uint8, beside the image itself."""
    title = (
        "A convolution slides a kernel over the image. Each number is multiplied by the pixel under it; the sum is the new "
        "pixel.\nClassic kernels, and what they make of this image (for the last three, grey is 0):"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    grid = figure.subplots(2, len(KERNELS) + 1, height_ratios=(2, 1.2))
    for axes in grid.flat:
        axes.set_axis_off()
    grid[0, 0].imshow(grey, cmap="gray", vmin=0, vmax=255)
    grid[0, 0].set_title("the image, grey", fontsize=10)
    for (image_axes, kernel_axes), (name, (numbers, divisor, effect)) in zip(grid.T[1:], KERNELS.items(), strict=True):
        result = apply_kernel(grey, name)
        shown = result if np.sum(numbers) else as_images(result[None], signed=True)[0]
        image_axes.imshow(shown, cmap="gray", vmin=0, vmax=255)
        image_axes.set_title(f"{name}:\n{effect}", fontsize=10)
        kernel_axes.imshow(np.sign(numbers), cmap="gray", vmin=-3, vmax=3)
        for (row, column), value in np.ndenumerate(np.array(numbers)):
            kernel_axes.text(column, row, f"{value}".replace("-", "−"), ha="center", va="center", fontsize=11)
        if divisor > 1:
            kernel_axes.text(1, 3, f"divided by {divisor}", ha="center", va="center", fontsize=9)
