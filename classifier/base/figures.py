"""Figures: what matplotlib draws, in colours that colour-blind people can tell apart (Okabe and Ito, "Color Universal
Design", 2008). matplotlib is slow to import, so that happens in new_figure()."""

import base64
import io
import math
import warnings

import cv2
import numpy as np

from classifier.base.console import readable

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#767676"
DPI = 100  # pixels for an inch
COLUMNS, SIDE, GAP, CAPTION = 8, 128, 8, 24  # of tiles; their pixels, and those between them; of the line below a tile
MOST_CHARACTERS = 18  # of a caption: more would reach the next one


def new_figure(width: float, height: float, **options):
    """An empty figure of matplotlib, inches wide and high, without pyplot and its global state."""
    import matplotlib
    from matplotlib.figure import Figure

    warnings.filterwarnings("ignore", "Glyph")  # a class has characters that matplotlib's font lacks: it draws boxes
    matplotlib.rc("text", parse_math=False)  # a class name with two dollars is no formula
    matplotlib.rc("font", family="sans-serif")
    matplotlib.rc("svg", fonttype="none", hashsalt="")  # text is text: the browser draws it, whatever script its fonts have
    return Figure((width, height), DPI, **options)


def save_png(figure, path, metadata: dict[str, str] | None = None) -> None:
    """Write a figure as PNG. Raises OSError."""
    figure.savefig(path, format="png", metadata=metadata, pil_kwargs={"compress_level": 1})  # quick to write


def svg_of(figure) -> bytes:
    """A figure as SVG."""
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return svg.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of a kind of file, such as image/png, as the address of an image on a page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def jpeg_uri(image: np.ndarray, quality: int) -> str:
    """An image, (height, width, 3) uint8 RGB, as the address of an image on a page."""
    jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return data_uri(jpeg.tobytes(), "image/jpeg")


def draw_curves(rows: list[dict], selected: int, phases: dict[str, int] | None = None, width: float = 8, height: float = 9):
    """Loss, accuracy and learning rate over the epochs, from rows of the history; `selected` is an epoch.

    `phases` are {name: epochs done before it}, if there are several.
    """
    figure = new_figure(width, height)
    panels = figure.subplots(3, sharex=True)
    column = lambda name: [row[name] for row in rows]  # noqa: E731
    style: dict = {"marker": "o" if len(rows) < 20 else None, "ms": 4}
    for panel, name in zip(panels, ("loss", "accuracy"), strict=False):
        panel.plot(column("epoch"), column(name), "--", color=VERMILLION, label="training", **style)
        panel.plot(column("epoch"), column(f"val_{name}"), color=BLUE, label="validation", **style)
        panel.set_ylabel(name)
    panels[0].set_ylim(0, 1.05 * max(panels[0].get_ylim()[1], 1e-9))
    panels[1].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%" if value < 1 + 1e-9 else "")
    panels[2].plot(column("epoch"), column("learning_rate"), color=BLUE, **style)
    panels[2].set(ylabel="learning rate", ylim=(0, None), xlabel="epoch")
    panels[2].xaxis.get_major_locator().set_params(integer=True)
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.axvline(selected, color=GREY, ls=":", label=f"selected: epoch {selected}")
    for name, start in (phases or {}).items():
        panels[0].text(start + 0.6, 1.02, name, transform=panels[0].get_xaxis_transform(), color=GREY)
        for panel in panels if start else ():
            panel.axvline(start + 0.5, color=GREY, lw=1)
    panels[0].legend()
    figure.subplots_adjust(left=0.9 / width, right=0.97, bottom=0.5 / height, top=1 - 0.4 / height, hspace=0.12)
    return figure


def tiled(images, below: int = GAP) -> np.ndarray:
    """Square images, (side, side[, 3]) uint8, in rows of up to eight, with white `below` each: (height, width, 3) RGB."""
    rows, columns = math.ceil(len(images) / COLUMNS), min(COLUMNS, len(images))
    sheet = np.full((rows * (SIDE + below), columns * (SIDE + GAP), 3), 255, np.uint8)
    for k, image in enumerate(images):
        top, left = k // COLUMNS * (SIDE + below), k % COLUMNS * (SIDE + GAP) + GAP // 2
        tile = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA if len(image) > SIDE else cv2.INTER_NEAREST)
        sheet[top : top + SIDE, left : left + SIDE] = tile if tile.ndim == 3 else tile[:, :, None]
    return sheet


def draw_sheet(images, captions: list[str]):
    """A contact sheet of images, (side, side, 3) uint8 RGB, each with its caption."""
    sheet = tiled(images, CAPTION)
    height, width = sheet.shape[:2]
    figure = new_figure(width / DPI, height / DPI)
    for k, caption in enumerate(captions):
        middle, bottom = (k % COLUMNS + 0.5) * (SIDE + GAP), k // COLUMNS * (SIDE + CAPTION) + SIDE + 14
        figure.text(middle / width, 1 - bottom / height, _shortened(caption, MOST_CHARACTERS), ha="center", size=9)
    figure.figimage(sheet)
    return figure


def _shortened(text, most):
    """A text on one line, of at most so many characters."""
    text = readable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def draw_heat_map(confusion: np.ndarray):
    """A confusion matrix, (classes, classes), of many classes: which part of each class is predicted as each class."""
    figure = new_figure(5.6, 4.8)
    axes = figure.add_axes((0.12, 0.12, 0.7, 0.82))
    parts = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    edges = (0.5, len(confusion) + 0.5)
    shown = axes.imshow(parts, cmap="cividis", vmin=0, vmax=100, extent=(*edges, *edges[::-1]), interpolation="nearest")
    axes.set(xlabel="number of the predicted class", ylabel="number of the true class")
    figure.colorbar(shown, cax=figure.add_axes((0.85, 0.12, 0.03, 0.82)), label="% of the true class")
    return figure


def _unit_square(xlabel, ylabel):
    """(figure, axes) for figures from 0 to 1."""
    figure = new_figure(4.4, 4.4)
    axes = figure.add_axes((0.15, 0.13, 0.81, 0.81), aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set(xlabel=_shortened(xlabel, 45), ylabel=_shortened(ylabel, 45))
    axes.grid(alpha=0.3)
    return figure, axes


def draw_reliability(bins_of: dict[str, list]):
    """Accuracy over confidence, with 95 % confidence intervals; larger dots are of more images.

    `bins_of` are {name: rows of metrics.reliability()}.
    """
    figure, axes = _unit_square("confidence", "accuracy")
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, label="confidence = accuracy")
    for (name, bins), color, marker in zip(bins_of.items(), (BLUE, VERMILLION), "os", strict=False):
        confidence, accuracy, low, high, count = np.array(bins).T
        axes.vlines(confidence, low, high, color=color, lw=0.7)
        axes.scatter(confidence, accuracy, 20 + 200 * count / count.sum(), color=color, marker=marker, alpha=0.7, label=name)
    axes.legend(loc="lower right")
    return figure


def draw_tradeoff(x: np.ndarray, y: np.ndarray, xlabel: str, ylabel: str, chance: tuple):
    """A curve of figures from 0 to 1; `chance` are the (x, y) of what chance would give."""
    figure, axes = _unit_square(xlabel, ylabel)
    axes.plot(*chance, color=GREY, ls=":", label="chance")
    axes.plot(x, y, color=BLUE)
    axes.legend()
    return figure
