"""Reports: one page of HTML with tables, figures and contact sheets, which needs no other file and no network."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from classifier.base.console import readable
from classifier.base.figures import data_uri, jpeg_uri
from classifier.base.files import write_text
from classifier.base.prefetch import prefetch
from classifier.data.images import BadImageError, load_image

TEMPLATES = Path(__file__).with_name("templates")
THUMBNAIL = 112  # pixels
MOST_IMAGES = 800  # on a page, about 4 MB
MOST_ROWS = 500  # of a table
NUMBER = re.compile(r"[-+]?[0-9][0-9,]*(\.[0-9]+)?%?|–")


class Section(NamedTuple):
    """A part of a page, with whatever it has of these, in this order; see write_report()."""

    heading: str
    text: str = ""
    rows: Sequence | None = None  # of a table, the first one its header
    images: Sequence = ()  # (path of an image, or a small one as it is: (height, width, 3) uint8 RGB; caption)
    figures: Sequence = ()  # (SVG, what it shows in words)
    matrix: tuple | None = None  # (classes, a confusion matrix of images of each class, predicted as each class)
    most: int = MOST_IMAGES  # images that are shown
    side: int = THUMBNAIL  # pixels: how wide they are at least


def templates() -> Environment:
    """The templates of pages, which escape all text."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"readable": readable, "percent": "{:.1%}".format}
    environment.filters["svg_uri"] = lambda svg: data_uri(svg, "image/svg+xml")
    return environment


def write_report(path: Path, title: str, sections: Iterable[tuple]) -> None:
    """Write a page of HTML with Sections, or tuples of their first parts.

    If they have more than MOST_IMAGES, each shows the first of its images, and says how many it has. The page may load
    nothing from elsewhere. Raises UserError if it cannot be written.
    """
    parts = [Section(*section) for section in sections]
    counts = [min(len(part.images), part.most) for part in parts]
    most = max(counts, default=0)
    while most > 1 and sum(min(count, most) for count in counts) > MOST_IMAGES:
        most -= 1
    parts = [part._replace(most=min(part.most, most)) for part in parts]
    shown = [image for part in parts for image, _ in part.images[: part.most]]
    script = (TEMPLATES / "report.js").read_text()
    template = templates().get_template("report.html")
    page = template.render(
        title=title,
        sections=parts,
        thumbnails=prefetch(_thumbnail, shown, 3 * THUMBNAIL**2),
        number_columns=_number_columns,
        next=next,
        most_rows=MOST_ROWS,
        script=Markup(script),
        script_digest=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_text(path, page)


def _number_columns(rows):
    """Which columns of a table are numbers or percentages, or missing ones, below the header: a list of bool."""
    return [all(NUMBER.fullmatch(str(cell)) for cell in cells) for _, *cells in zip(*rows, strict=True)]


def _thumbnail(image):
    """The whole of an image in its own shape, on a square if it is a file, in a data URI; None if it cannot be read."""
    try:
        return jpeg_uri(image if isinstance(image, np.ndarray) else load_image(image, THUMBNAIL, "pad"), 75)
    except BadImageError:
        return None
