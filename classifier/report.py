"""Reports: one page of HTML with tables and contact sheets, which needs no other file and no network."""

import base64
import os
from pathlib import Path

import cv2

from classifier.files import write_text
from classifier.images import BadImageError, load_image
from classifier.parallel import prefetch

THUMBNAIL = 112  # pixels
MOST_IMAGES = 800  # on a page, about 4 MB
MOST_ROWS = 500  # of a table


def write_report(path, title, sections):
    """Write a page of HTML.

    `sections` are (heading, text, rows, images): `rows` of a table, the first one its header, or None; `images`, (path of
    the image, caption). If there are more than MOST_IMAGES, each section shows the first of its images, and says how many
    it has. All text is escaped. Raises UserError if the page cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    most = _most_of_each([len(images) for *_, images in sections])
    shown = [image for *_, images in sections for image in images[:most]]
    thumbnails = prefetch(lambda image: _thumbnail(image[0]), shown, 3 * THUMBNAIL**2)
    sheets = []
    for heading, text, rows, images in sections:
        cells = [(next(thumbnails), _readable(caption)) for _, caption in images[:most]]
        table = [[_readable(cell) for cell in row] for row in rows or []]
        sheets.append({"heading": _readable(heading), "text": text, "header": table[:1], "rows": table[1 : MOST_ROWS + 1],
                       "more_rows": max(0, len(table) - 1 - MOST_ROWS), "images": cells, "count": len(images)})  # fmt: skip
    page = environment.get_template("report.html").render(title=_readable(title), sections=sheets, side=THUMBNAIL)
    write_text(path, page)


def _most_of_each(counts):
    """How many images each section may show, so that they are at most MOST_IMAGES, or one of each."""
    most = max(counts, default=0)
    while most > 1 and sum(min(count, most) for count in counts) > MOST_IMAGES:
        most -= 1
    return most


def _thumbnail(path):
    """An image as the network sees it, square, in a data URI; None if it cannot be read."""
    try:
        image = load_image(path, THUMBNAIL)
    except BadImageError:
        return None
    jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _readable(text):
    """Text in which the bytes of file names that are no UTF-8 are replaced."""
    return os.fsencode(str(text)).decode("utf-8", "replace")
