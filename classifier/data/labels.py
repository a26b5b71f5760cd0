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

from classifier.base.console import NO_DATA, UserError, say
from classifier.data.images import BadImageError, read_file
from classifier.data.tars import is_tar, tar_of

TABLES = (".csv", ".tsv")
# How tables of Kaggle, fastai and Hugging Face call the class, without case, spaces and signs.
LABELS = re.compile("label(s|name|id)?|class(es|name|id)?|cls|category|breed|species|target|diagnosis|dx")
UNNAMED = re.compile("(index|unnamed[0-9]*)?")  # the numbers of the rows, which pandas writes
PART = re.compile(
    "(?P<train>train(ing|val)?)|(?P<validation>val(id(ation)?)?|dev)|(?P<test>test(ing)?)|(?P<other>pred(iction)?)"
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
        spaced = re.sub("(?<=[a-z])(?=[A-Z])", " ", name).casefold()  # TrainImages
        words = re.findall(r"[^\W\d_]+", re.sub("(data)?set|data|images?|imgs?|folder|split", " ", spaced))
        if parts := list(filter(None, map(PART.fullmatch, words))):
            by_others[tuple(word for word in words if not PART.fullmatch(word))][parts[0].lastgroup].append(name)
    return next((parts for parts in by_others.values() if "train" in parts and len(parts) > 1), {})


def read_table(file: Path, images_below: Callable[[Path], list[str]]) -> dict[str, str]:
    """{path from the file's folder on: class}, from a CSV file with any usual encoding, delimiter and names of columns.

    The column of paths is called path, or has names of images in the folder or below, perhaps without folder and suffix.
    That of classes is called label, or can be no other one, or each class has a column with 1 or 0. `images_below(folder)`
    lists the images that are there; it is called if a path leads to no file. Raises UserError where anything is not clear.
    """
    (_, header), *rows = _rows_of(file)
    if header and not rows:
        raise UserError(f"no images in {file}", NO_DATA)
    find = _finder(file.parent, images_below)
    keys = list(map(_key, header))
    wanted = f"{file} needs the columns path, of images in {file.parent} or below, and label"
    if not any(key == "path" or LABELS.fullmatch(key) for key in keys) and any(map(find, header)):
        keys = ["path" if find(cell) else "label" for cell in header]
        if sorted(keys) != ["label", "path"]:
            raise UserError(f"{wanted}: its first line has no names of columns, but an image", NO_DATA)
        say(f"note: {file} has no names of columns: they are taken for {' and '.join(keys)}")
        rows.insert(0, (1, header))
    columns = {i: key for i, key in enumerate(keys) if not UNNAMED.fullmatch(key)}
    path_at = keys.index("path") if "path" in keys else _column_of_paths(rows, columns, find)
    columns.pop(path_at, None)
    labels = _labels_of(file, header, rows, columns)
    if path_at is None or labels is None:
        raise UserError(f"{wanted}: it has {', '.join(map(repr, header)) or 'none'}", NO_DATA)
    label_of: dict[str, str] = {}
    for (line, cells), label in zip(rows, labels, strict=True):
        place, text = f"{file}, line {line}", cells[path_at]
        if not text or not label:
            raise UserError(f"{place} has no {'label' if text else 'path'}: complete the line or remove it", NO_DATA)
        path = _path_of(text, place, find)
        if label_of.setdefault(path, label) != label:
            raise UserError(f"{file}: {path} has two labels, {label_of[path]!r} and {label!r}", NO_DATA)
    if not any(map(find, label_of)):
        advice = f"such as {next(iter(label_of))}: paths begin in the folder of the CSV file, {file.parent}"
        raise UserError(f"none of the {len(label_of)} images in {file} exists, {advice}", NO_DATA)
    return label_of


def _path_of(text, place, find):
    """The path that a cell of a table means."""
    path, *others = find(text) or [os.path.normpath(text)]
    if others:
        advice = "write that, or move the CSV file into the folder of its images"
        raise UserError(f"{place}: {text} can be {path} or {others[0]}: {advice}", NO_DATA)
    if os.path.isabs(path) or ntpath.isabs(path) or ".." in path.split(os.sep):
        advice = "write paths from there on, or move the CSV file to a folder above its images"
        raise UserError(f"{place}: {path} is outside the folder of the CSV file: {advice}", NO_DATA)
    return path


def _key(name):
    """The name of a column without case, spaces and signs."""
    return re.sub(r"[\W_]", "", name.casefold())


def _rows_of(file):
    """[(number of the line, cells)] of a table, the header first; rows that are shorter are filled up."""
    data = file.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # Excel's "Unicode text", and its CSV
    try:
        text = data.decode(encoding)
        first = text.lstrip("\r\n").partition("\n")[0]
        delimiter = max(",;\t|", key=first.count)
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows = [(table.line_num, [cell.strip() for cell in row]) for row in table if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8: {error}: save it as CSV UTF-8", NO_DATA) from None
    width = len(rows[0][1]) if rows else 0
    for line, cells in rows:
        if any(cells[width:]):
            raise UserError(f"{file}, line {line} has {len(cells)} columns, the first line has {width}", NO_DATA)
        cells += [""] * (width - len(cells))
    return rows or [(1, [])]


def _finder(folder, images_below):
    """find(text): the images that a text can mean, as paths from a folder on."""
    bases = {f"{path(folder)}{os.sep}" for path in (os.path.abspath, os.path.realpath)}

    @functools.cache
    def by_name():
        found = collections.defaultdict(list)
        for path in images_below(folder):
            name = normal(os.path.basename(path))
            for key in {name, os.path.splitext(name)[0]}:
                found[key].append(path)
        return found

    def find(text):
        """The file of this path, or else those whose paths end like this, with a suffix or without."""
        path = os.path.normpath(text)
        path = next((path.removeprefix(base) for base in bases if path.startswith(base)), path)
        if "\\" in path and not os.path.isfile(folder / path):  # written on Windows
            path = os.path.normpath(path.replace("\\", os.sep))
        if os.path.isfile(folder / path):
            return [path]
        end = os.sep + normal(path)
        wholes = {other: os.sep + normal(other) for other in by_name().get(os.path.basename(end), [])}
        return [other for other, whole in wholes.items() if whole.endswith(end) or os.path.splitext(whole)[0].endswith(end)]

    return functools.cache(find)


def _column_of_paths(rows, columns, find):
    """The column with images in most of a few rows, and most different ones; None if there is no such column, or several."""
    sample = [cells for _, cells in rows[:: len(rows) // 50 + 1]]
    found = {i: [tuple(images) for cells in sample if cells[i] and (images := find(cells[i]))] for i in columns}
    different = {i: set(images) for i, images in found.items() if 2 * len(images) > len(sample)}
    best = [i for i, images in different.items() if len(images) == max(map(len, different.values()))]
    return best[0] if best and all(different[i] == different[best[0]] for i in best) else None  # several may tell the same


def _label_among(keys):
    """label, or the only other one of LABELS among these; None if it is not clear."""
    known = [key for key in keys if LABELS.fullmatch(key)]
    return "label" if "label" in known else known[0] if len(known) == 1 else None


def _labels_of(file, header, rows, columns):
    """The label of each row, from the columns {number: key}; None if it is not clear which of them has it."""
    for i, key in columns.items():
        values = {cells[i] for _, cells in rows}
        if parts_among(values) or (len(values) > 1 and re.fullmatch("is(train|val|valid|validation|test)", key)):
            advice = "write a CSV file for each, without this column"
            raise UserError(f"{file}: {header[i]!r} tells which part of a data set an image is in: {advice}", NO_DATA)
    key = _label_among(columns.values())
    at = [i for i in columns if key in (columns[i], None)]
    if len(at) == 1:
        labels = [cells[at[0]] for _, cells in rows]
        _refuse_several(file, set(labels))
        return labels
    if key or not at or not all(re.fullmatch(r"[01](\.0*)?", cells[i]) for _, cells in rows for i in at):
        return None
    ones = [[header[i] for i in at if cells[i].startswith("1")] for _, cells in rows]
    for (line, _), names in zip(rows, ones, strict=True):
        if len(names) > 1:
            raise UserError(f"{file}, line {line} has several labels ({', '.join(names)}): each image needs one", NO_DATA)
    return ["".join(names) for names in ones]


def _refuse_several(file, labels):
    """Raise UserError for a cell with several labels: its pieces are in other cells, too, or all of them are labels."""
    pieces = {label: re.split(r"\s*[,;|]\s*", label) for label in labels}
    count = collections.Counter(piece for several in pieces.values() for piece in set(several))
    for label, several in pieces.items():
        words = label.split()
        are_shared = len(several) > 1 and any(count[piece] > 1 for piece in several)
        if are_shared or (len(words) > 1 and labels.issuperset(words)):
            raise UserError(f"{file}: {label!r} seems to be several labels: each image needs one", NO_DATA)


def labels_beside(folder: Path, images: Sequence[str], others: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """({image: class}, the files that say this) by files beside images, as in WebDataset's tars: 1.jpg and 1.cls.

    The class is the text of .cls. Of images in a tar, but in no folder there, it can also be a value in .json, or the text
    of .txt unless it may be a caption. Paths are relative to the folder. Both are empty unless half of the images have one.
    """
    beside: dict[str, dict[str, str]] = {suffix: {} for suffix in LABEL_IN}
    for path in others:
        sample, suffix = _sample_of(path)
        if suffix in beside:
            beside[suffix][sample] = path
    for suffix, label_in in LABEL_IN.items():
        samples = beside[suffix] and {image: _sample_of(image)[0] for image in images}
        files = {image: beside[suffix][sample] for image, sample in samples.items() if sample in beside[suffix]}
        if suffix != ".cls":
            files = {image: file for image, file in files.items() if len(parts_of(image)) == 1 and tar_of(folder / image)}
        labels = {image: label for image, file in files.items() if (label := label_in(_text_of(folder / file)))}
        if 2 * len(labels) >= len(images) > 0 and (suffix != ".txt" or 2 * len(set(labels.values())) <= len(labels)):
            return labels, {files[image] for image in labels}
    return {}, set()


def _sample_of(path):
    """(what the files of one sample have in common, suffix) of a path: WebDataset's names end at their first dot."""
    folder, name = os.path.split(path)
    return os.path.join(folder, name.split(".")[0]), os.path.splitext(name)[1].lower()


def _text_of(path):
    with contextlib.suppress(BadImageError):
        return read_file(path).decode("utf-8-sig", "replace").strip()
    return ""


def _label_in_json(text):
    """The value of a dictionary that is its label, or None."""
    with contextlib.suppress(ValueError):
        values = json.loads(text)
        values = {_key(name): value for name, value in values.items()} if isinstance(values, dict) else {}
        label = values.get(_label_among(values))
        return str(label) if type(label) in (str, int) else None


def _label_in_text(text):
    """A number or a few words, not several lines or the numbers of a box."""
    return text if len(text) <= 100 and re.fullmatch(r"[0-9]+|[^\W\d].*", text) else None


LABEL_IN: dict[str, Callable[[str], str | None]] = {".cls": str, ".json": _label_in_json, ".txt": _label_in_text}
