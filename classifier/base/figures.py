"""Figures: what matplotlib draws, in colours that colour-blind people can tell apart (Okabe and Ito, "Color Universal
Design", 2008). matplotlib is slow to import, so that happens in new_figure()."""

import base64
import io
import math

import cv2
import numpy as np

from classifier.base.console import readable

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#767676"
DPI = 100  # pixels for an inch
SIDE, CAPTION = 128, 24  # pixels: of an image in a contact sheet, and of the line below it
MOST_CHARACTERS = 18  # of a caption: more would reach the next one


def new_figure(width, height):
    """An empty figure of matplotlib, inches wide and high, without pyplot and its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), DPI)
    FigureCanvasAgg(figure)
    return figure


def save_png(figure, path):
    """Write a figure as PNG. Raises OSError."""
    _take_texts_as_they_are(figure)
    figure.savefig(path, format="png", pil_kwargs={"compress_level": 1})  # quick to write


def svg_of(figure):
    """A figure as SVG, bytes: its text is text, which the browser draws, with whatever script its fonts have."""
    import matplotlib

    _take_texts_as_they_are(figure)
    svg = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "", "font.family": "sans-serif"}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return svg.getvalue()


def data_uri(data, kind):
    """Bytes of a kind of file, such as image/png, as the address of an image on a page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _take_texts_as_they_are(figure):
    """A class name with two dollars is no formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def draw_curves(rows, selected, phases=None, width=8, height=9):
    """Loss, accuracy and learning rate over the epochs, from rows of the history; `selected` is an epoch, or None.

    `phases` are {name: epochs done before it}, if there are several. Earlier runs did not record the learning rate.
    """
    with_rate = any(row["learning_rate"] is not None for row in rows)
    height = height if with_rate else height * 2 / 3
    figure = new_figure(width, height)
    panels = figure.subplots(3 if with_rate else 2, sharex=True, squeeze=False)[:, 0]
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 20 else None
    for panel, name in zip(panels, ("loss", "accuracy"), strict=False):
        panel.plot(epochs, [row[name] for row in rows], "--", color=VERMILLION, marker=marker, ms=4, label="training")
        panel.plot(epochs, [row[f"val_{name}"] for row in rows], color=BLUE, marker=marker, ms=4, label="validation")
        panel.set_ylabel(name)
    panels[0].set_ylim(0, 1.05 * max(panels[0].get_ylim()[1], 1e-9))
    panels[1].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%" if value < 1 + 1e-9 else "")
    if with_rate:
        rates = [math.nan if row["learning_rate"] is None else row["learning_rate"] for row in rows]
        panels[2].plot(epochs, rates, color=BLUE, marker=marker, ms=4)
        panels[2].set(ylabel="learning rate", ylim=(0, None))
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    for panel in panels:
        panel.grid(alpha=0.3)
        if selected:
            panel.axvline(selected, color=GREY, ls=":", label=f"selected: epoch {selected}")
        for start in list((phases or {}).values())[1:]:
            panel.axvline(start + 0.5, color=GREY, lw=1)
    for name, start in (phases or {}).items():
        panels[0].text(start + 0.6, 1.02, name, transform=panels[0].get_xaxis_transform(), color=GREY)
    panels[0].legend()
    figure.subplots_adjust(left=0.9 / width, right=0.97, bottom=0.5 / height, top=1 - 0.4 / height, hspace=0.12)
    return figure


def draw_sheet(images, captions):
    """A contact sheet of images, (side, side, 3) uint8 RGB, in rows of up to eight, each with its caption."""
    columns = min(8, len(images))
    rows = math.ceil(len(images) / columns)
    sheet = np.full((rows * (SIDE + CAPTION), columns * (SIDE + 8), 3), 255, np.uint8)
    figure = new_figure(sheet.shape[1] / DPI, sheet.shape[0] / DPI)
    for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
        top, left = k // columns * (SIDE + CAPTION), k % columns * (SIDE + 8) + 4
        shrinks = len(image) > SIDE
        sheet[top : top + SIDE, left : left + SIDE] = cv2.resize(
            image, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
        )
        place = ((left + SIDE / 2) / sheet.shape[1], 1 - (top + SIDE + 14) / sheet.shape[0])
        figure.text(*place, _shortened(caption, MOST_CHARACTERS), ha="center", size=9)
    figure.figimage(sheet)
    return figure


def _shortened(text, most):
    """A text on one line, of at most so many characters."""
    text = readable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def draw_heat_map(confusion):
    """A confusion matrix, (classes, classes), of many classes: which part of each class is predicted as each class."""
    figure = new_figure(5.6, 4.8)
    axes = figure.add_axes((0.12, 0.12, 0.7, 0.82))
    parts = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    edges = (0.5, len(confusion) + 0.5)
    shown = axes.imshow(parts, cmap="cividis", vmin=0, vmax=100, extent=(*edges, *edges[::-1]), interpolation="nearest")
    axes.set(xlabel="number of the predicted class", ylabel="number of the true class")
    figure.colorbar(shown, cax=figure.add_axes((0.85, 0.12, 0.03, 0.82)), label="% of the true class")
    return figure


def draw_reliability(bins_of):
    """Accuracy over confidence, with 95 % confidence intervals; larger dots are of more images.

    `bins_of` are {name: rows of metrics.reliability()}.
    """
    figure = new_figure(4.4, 4.4)
    axes = figure.add_axes((0.15, 0.13, 0.81, 0.81), aspect="equal")
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, label="confidence = accuracy")
    for (name, bins), color, marker in zip(bins_of.items(), (BLUE, VERMILLION), "os", strict=False):
        confidence, accuracy, low, high, count = np.array(bins).T
        axes.vlines(confidence, low, high, color=color, lw=0.7)
        axes.scatter(confidence, accuracy, 20 + 200 * count / count.sum(), color=color, marker=marker, alpha=0.7, label=name)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def draw_steps(x, y, xlabel, ylabel, chance):
    """A curve of figures from 0 to 1; `chance` are the (x, y) of what chance would give."""
    figure = new_figure(4.4, 4.4)
    axes = figure.add_axes((0.15, 0.13, 0.81, 0.81), aspect="equal")
    axes.plot(*chance, color=GREY, ls=":", label="chance")
    axes.plot(x, y, color=BLUE)
    axes.set(xlabel=_shortened(xlabel, 45), ylabel=_shortened(ylabel, 45), xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
