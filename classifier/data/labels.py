"""Labels: what a table (CSV), or a file beside an image (WebDataset), says of its class; and names that are no classes."""

import collections
import contextlib
import csv
import functools
import io
import json
import ntpath
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from classifier.base.console import NO_DATA, UserError
from classifier.data.images import BadImageError, read_file
from classifier.data.tars import is_tar

TABLES = (".csv", ".tsv")
# Columns in tables of Kaggle, fastai and Hugging Face, without case, spaces and signs: paths, the surest first, and classes.
PATHS = ["filepath", "imagepath", "imgpath", "filename", "filenames", "file", "fname", "imagefile", "imagename"]
PATHS += ["imgname", "image", "images", "img", "imageid", "imgid", "idcode", "name", "id"]
LABEL = re.compile("(label|class|category|breed)(e?s|id|name)?|categories|cls|species|target|diagnosis|dx")
PART = re.compile(
    "(?P<train>train(ing|val)?)|(?P<validation>val(id(ation)?)?|dev)|(?P<test>test(ing)?)|(?P<other>pred(ict(ions?)?)?)"
)


def normal(text: str) -> str:
    """Text in Unicode's form NFC: macOS writes é as e and an accent, and both are one name."""
    return unicodedata.normalize("NFC", text)


def parts_of(path: str) -> tuple[str, ...]:
    """The parts of a relative path that can be classes, normal(): what is in a tar counts as if it were beside the tar."""
    *folders, name = normal(path).split(os.sep)
    return (*(part for part in folders if not is_tar(part)), name)


def parts_among(names: Iterable[str]) -> dict[str, list[str]]:
    """Those of the names that are parts of a data set, not classes: {"train": ["seg_train"], "test": ["seg_test"]}.

    They differ in nothing but the part: `training_shoes` and `test_tube` are classes. Empty unless there are two parts, one
    of them for training: `train` alone is a vehicle.
    """
    by_others: dict[tuple, dict] = collections.defaultdict(lambda: collections.defaultdict(list))
    for name in sorted(names):
        words = re.findall(r"[^\W\d_]+", re.sub("(data)?set|data|images?|imgs?|folder|split", " ", name.casefold()))
        if parts := list(filter(None, map(PART.fullmatch, words))):
            by_others[tuple(word for word in words if not PART.fullmatch(word))][parts[0].lastgroup].append(name)
    return next((parts for parts in by_others.values() if "train" in parts and len(parts) > 1), {})


def read_table(file: Path, images_below: Callable[[Path], list[str]]) -> dict[str, str]:
    """{path from the file's folder on: class}, from a CSV file with any usual delimiter, encoding and names of columns.

    Instead of a column of labels, each class may have one with 1 or 0. A path may lack folders or suffix if it can mean one
    image alone. `images_below(folder)` lists those there; it is called if a path leads to no file. Raises UserError where
    anything is not clear.
    """
    (_, header), *rows = _rows_of(file)
    find = _finder(file.parent, images_below)
    path_at, label_at = _columns_of(file, header, rows, find)
    _refuse_several(file, {cells[label_at] for _, cells in rows})
    label_of: dict[str, str] = {}
    for line, cells in rows:
        text, label, place = cells[path_at], cells[label_at], f"{file}, line {line}"
        if not text or not label:
            raise UserError(f"{place} has no {'label' if text else 'path'}: complete it or remove it", NO_DATA)
        path, *others = find(text) or [os.path.normpath(text)]
        if others:
            advice = "write that, or move the CSV file into the folder of its images"
            raise UserError(f"{place}: {text} can be {path} or {others[0]}: {advice}", NO_DATA)
        if os.path.isabs(path) or ntpath.isabs(path) or ".." in path.split(os.sep):
            advice = "write paths from there on, or move the CSV file to a folder above its images"
            raise UserError(f"{place}: {path} is outside the folder of the CSV file: {advice}", NO_DATA)
        if label_of.setdefault(path, label) != label:
            raise UserError(f"{file}: {path} has two labels, {label_of[path]!r} and {label!r}", NO_DATA)
    if not any(map(find, label_of)):
        first = f": {next(iter(label_of))} is not in {file.parent}, where its paths begin" if label_of else ""
        raise UserError(f"no images in {file}{first}", NO_DATA)
    return label_of


def _columns_of(file, header, rows, find):
    """Where paths and labels are. Labels that each have a column with 1 or 0 get one more cell, for the names with 1."""
    keys = list(map(_key, header))
    named = [keys.index(name) for name in (["path"] if "path" in keys else PATHS) if name in keys]
    leading = [i for i in named if any(find(cells[i]) for _, cells in rows[:20])]  # to images; ids may be mere numbers
    path_at = next(iter(leading or named), None)
    others = {i: key for i, key in enumerate(keys) if i != path_at and not re.fullmatch("(index|unnamed[0-9]*)?", key)}
    label_at = next((i for i in others if len(others) == 1 or others[i] == _label_among(others.values())), None)
    if label_at is None and others and all(re.fullmatch(r"[01](\.0*)?", cells[i]) for _, cells in rows for i in others):
        label_at = len(header)
        for _, cells in rows:
            cells.append(",".join(header[i] for i in others if cells[i][0] == "1"))
    if path_at is None or label_at is None:
        shown = ", ".join(map(repr, header)) or "none"
        raise UserError(f"{file} needs a first line with the columns path and label: it has {shown}", NO_DATA)
    for i, key in others.items():
        values = {cells[i] for _, cells in rows}
        if parts_among(values) or (len(values) > 1 and re.fullmatch("is(train|val|valid|validation|test)", key)):
            advice = "write a CSV file for each, without this column"
            raise UserError(f"{file}: {header[i]!r} tells which part of a data set an image is in: {advice}", NO_DATA)
    return path_at, label_at


def _key(name):
    """The name of a column without case, spaces and signs."""
    return re.sub(r"[\W_]", "", name.casefold())


def _label_among(keys):
    """label, or the only other one of these that says LABEL, or None."""
    known = [key for key in keys if LABEL.fullmatch(key)]
    return "label" if "label" in known else known[0] if len(known) == 1 else None


def _rows_of(file):
    """[(number of the line, cells)] of a table, the header first; rows that are shorter are filled up."""
    data = file.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # Excel's "Unicode text", and its CSV
    try:
        text = data.decode(encoding).lstrip("\r\n")
        delimiter = max(",;\t|", key=text.partition("\n")[0].count)
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows = [(table.line_num, [cell.strip() for cell in row]) for row in table if row] or [(1, [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8: {error}: save it as CSV UTF-8", NO_DATA) from None
    width = len(rows[0][1])
    for line, cells in rows:
        if any(cells[width:]):
            raise UserError(f"{file}, line {line} has {len(cells)} columns, the first line has {width}", NO_DATA)
        cells += [""] * (width - len(cells))
    return rows


def _finder(folder, images_below):
    """find(text): the images that a text can mean, as paths from a folder on."""
    bases = {f"{path(folder)}{os.sep}" for path in (os.path.abspath, os.path.realpath)}

    @functools.cache
    def by_end():
        """{end of a path, with or without suffix: images}"""
        images = collections.defaultdict(list)
        for path in images_below(folder):
            parts = normal(path).split(os.sep)
            for end in (os.sep.join(parts[k:]) for k in range(len(parts))):
                for name in {end, os.path.splitext(end)[0]}:
                    images[name].append(path)
        return images

    def find(text):
        path = os.path.normpath(text)
        path = next((path.removeprefix(base) for base in bases if path.startswith(base)), path)
        if "\\" in path and not os.path.isfile(folder / path):  # written on Windows
            path = os.path.normpath(path.replace("\\", os.sep))
        return [path] if os.path.isfile(folder / path) else by_end().get(normal(path), [])

    return find


def _refuse_several(file, labels):
    """Raise UserError for a cell with several labels: one of them is in another cell, too, or each word is a label."""
    pieces = {label: re.split(r"\s*[,;|]\s*", label) for label in labels}
    count = collections.Counter(piece for several in pieces.values() for piece in set(several))
    for label, several in pieces.items():
        words = label.split()
        are_shared = len(several) > 1 and any(count[piece] > 1 for piece in several)
        if are_shared or (len(words) > 1 and labels.issuperset(words)):
            raise UserError(f"{file}: {label!r} seems to be several labels: each image needs one", NO_DATA)


def labels_beside(folder: Path, images: Sequence[str], others: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """({image: class}, the files that say this) by files beside images, as in WebDataset's tars: 1.jpg and 1.cls.

    The class is the text of .cls. Of images that are in no folder, it can also be a value in .json, or the text of .txt if
    that is a number or up to three words: no caption. Paths are relative to the folder.
    """
    beside = {_sample_of(path): path for path in others}
    labels: dict[str, str] = {}
    files = set()
    for image in images if beside else ():
        for suffix in LABEL_IN if len(parts_of(image)) == 1 else (".cls",):
            file = beside.get((_sample_of(image)[0], suffix))
            if file and image not in labels and (label := LABEL_IN[suffix](_text_of(folder / file))):
                labels[image] = label
                files.add(file)
    return labels, files


def _text_of(path):
    with contextlib.suppress(BadImageError):
        return read_file(path).decode("utf-8-sig", "replace").strip()
    return ""


def _sample_of(path):
    """(what the files of one sample have in common, suffix) of a path: WebDataset's names end at their first dot."""
    folder, name = os.path.split(path)
    return os.path.join(folder, name.split(".")[0]), os.path.splitext(name)[1].lower()


def _label_in_json(text):
    """The value in a dictionary that is its label, or None."""
    with contextlib.suppress(ValueError, AttributeError):
        values = {_key(name): value for name, value in json.loads(text).items()}
        label = values.get(_label_among(values))
        return str(label) if type(label) in (str, int) else None


LABEL_IN: dict[str, Callable[[str], str | None]] = {
    ".cls": str,
    ".json": _label_in_json,
    ".txt": lambda text: text if re.fullmatch(r"[0-9]+|[^\W\d]\S*( \S+){0,2}", text) else None,
}
