"""Finding: which images a folder has, and which class each of them belongs to."""

import collections
import collections.abc
import csv
import dataclasses
import os
import re
import unicodedata
from pathlib import Path

from classifier.base.console import NO_DATA, UserError, progress, say, shell_path
from classifier.data.images import KIND_OF_SUFFIX
from classifier.data.tars import is_tar, members_of

PARTS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
# Folders that are not classes: they hold some of the images of the class above, such as cats/session1 or cats/images.
SERIES = re.compile(
    r"(session|series|sequence|seq|video|clip|scene|day|batch|burst|camera|cam|visit|take|shot|photos?|"
    r"images?|imgs?|pictures?|frames?|raw)[ _-]*[0-9]*",
    re.IGNORECASE,
)
# Cameras and phones number their files like this: IMG_0001.jpg. These are not names of classes.
CAMERAS = re.compile(
    r"(img|image|dsc|dscn|dscf|pxl|mvimg|vid|pano|photo|picture|pic|screenshot|frame|scan|wp)([^a-z].*)?", re.IGNORECASE
)


class Paths(collections.abc.Sequence):
    """A sequence of Paths that are kept as strings: a million Path objects would take 400 MB."""

    def __init__(self, names):
        self._names = names

    def __len__(self):
        return len(self._names)

    def __getitem__(self, i):
        return Paths(self._names[i]) if isinstance(i, slice) else Path(self._names[i])

    def __add__(self, others):
        return Paths(self._names + [os.fspath(path) for path in others])

    def take(self, positions):
        """The Paths at these positions alone."""
        return Paths([self._names[i] for i in positions])


@dataclasses.dataclass
class Found:
    """Labelled images, not yet opened: `labels[i]` is the index in `classes` of `paths[i]`.

    `folder` is where they were looked for: a folder, or a CSV file.
    """

    folder: Path
    classes: list[str]
    paths: Paths
    labels: list[int]

    def relative(self, i):
        """A path below the folder, or below that of the CSV file, with / between its parts."""
        return self.paths[i].relative_to(_root(self.folder)).as_posix()

    def with_others(self, others):
        """These images, and after them others of the same classes."""
        return Found(self.folder, self.classes, self.paths + others.paths, self.labels + others.labels)


def _root(folder):
    return folder if folder.is_dir() else folder.parent


def natural_key(path):
    """Sort key, a string, that reads numbers as numbers: `cat.2.jpg` before `cat.10.jpg`."""

    def number(match):
        digits = match[0].lstrip("0")
        return f"\0{chr(len(digits) + 1)}{digits}"  # longer ones are greater; zero bytes are in no path

    return f"{re.sub('[0-9]+', number, path)}\0\0{path}"


def walk_images(folder):
    """Relative paths of all files below `folder` with an image's suffix, in natural order, and a count of the others.

    Hidden files and folders are not counted, links are followed, tar files are like folders. A folder or tar that cannot be
    opened is reported.
    """
    images, others = [], collections.Counter()
    with progress("finding images") as advance:
        for place, names in _walk(folder):
            for name in names:
                suffix = os.path.splitext(name)[1].lower()
                if suffix in KIND_OF_SUFFIX:
                    images.append(os.path.join(place, name))
                else:
                    others[suffix or name] += 1
            advance(len(names))
    return sorted(images, key=natural_key), others


def _walk(folder):
    """Yield (relative path, names of the files in it) of each folder and tar below a folder: see walk_images()."""
    cannot_open = lambda error: say(f"ignored: {error.filename}: {error.strerror}")  # noqa: E731
    seen, hidden = set(), (".", "__MACOSX")
    for root, folders, names in os.walk(folder, onerror=cannot_open, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        place = "" if os.path.samefile(root, folder) else os.path.relpath(root, folder)
        folders[:] = [name for name in folders if not name.startswith(hidden)]
        names = [name for name in names if not name.startswith(".")]
        yield place, [name for name in names if not is_tar(name)]
        for tar in filter(is_tar, names):
            try:
                members = members_of(os.path.join(root, tar))
            except OSError as error:
                cannot_open(error)
            else:
                yield os.path.join(place, tar), [m for m in members if not any(p.startswith(hidden) for p in Path(m).parts)]


def parts_of(path):
    """The parts of a relative path that can be classes: what is in a tar counts as if it were beside the tar."""
    *folders, name = path.split(os.sep)
    return (*(part for part in folders if not is_tar(part)), name)


def find_images(folder, classes=None, limit_per_class=None, classes_from=None):
    """Find labelled images: in class folders (`cats/1.jpg`), by their names (`cat.1.jpg`), or in a CSV file.

    `classes` are the classes to look for, in the order of their labels; None takes all, sorted by name.
    `limit_per_class` takes the first N of each class, in natural order. `classes_from` says which folders are the classes
    if some are below others: "top", "leaf" (those that hold the images), or None: see _is_from_leaf(). A CSV file has the
    columns path, from its own folder on, and label. What is ignored is reported.
    Raises UserError where there are no labelled images, it is not clear what their classes are, or a class is not one of
    `classes`, or workers that train together do not find the same.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"there is no folder {folder}", NO_DATA)
    if folder.suffix.lower() == ".csv" and folder.is_file():
        by_class = _read_csv(folder)
    elif not folder.is_dir():
        raise UserError(f"{folder} is not a folder", NO_DATA)
    else:
        images, others = walk_images(folder)
        if others:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
            say(f"ignored: {others.total()} files in {folder} that are not images ({kinds})")
        by_class = _group_by_class(folder, images, classes, classes_from)
    _refuse_names_that_differ_by_case(folder, by_class)
    names = sorted(by_class) if classes is None else list(classes)
    unknown = sorted(set(by_class) - set(names))
    if unknown:
        raise UserError(f"{folder}: class {unknown[0]!r} is not one of the model's: {', '.join(names)}", NO_DATA)
    paths, labels, root = [], [], _root(folder)
    for label, name in enumerate(names):
        chosen = by_class.get(name, [])[:limit_per_class]
        paths += [os.path.join(root, path) for path in chosen]
        labels += [label] * len(chosen)
    found = Found(folder, names, Paths(paths), labels)

    return found


def _read_csv(file):
    """{class name: its paths, from the file's folder on}, from a CSV file with the columns path and label."""
    label_of = {}
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:  # Excel begins its files with a byte order mark
            table = csv.DictReader(opened)
            columns = table.fieldnames or []
            if not {"path", "label"} <= set(columns):
                named = ", ".join(map(repr, columns)) or "none"
                raise UserError(f"{file} needs the columns path and label, with a comma between: it has {named}", NO_DATA)
            for row in table:
                path, label = _row_of_csv(row, f"{file}, line {table.line_num}")
                if label_of.setdefault(path, label) != label:
                    raise UserError(f"{file}: {path} has two labels, {label_of[path]!r} and {label!r}", NO_DATA)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8: {error}", NO_DATA) from None
    if not label_of:
        raise UserError(f"no images in {file}", NO_DATA)
    by_class = collections.defaultdict(list)
    for path in sorted(label_of, key=natural_key):
        by_class[label_of[path]].append(path)
    return by_class


def _row_of_csv(row, where):
    """(path, label) of a row. `where` is its place, for an error."""
    path, label = ((row[name] or "").strip() for name in ("path", "label"))
    if not path or not label:
        raise UserError(f"{where} has no {'label' if path else 'path'}", NO_DATA)
    path = os.path.normpath(path)
    if os.path.isabs(path) or ".." in path.split(os.sep):
        raise UserError(f"{where}: {path} is outside the folder of the CSV file", NO_DATA)
    return path, label


def _group_by_class(folder, images, classes, classes_from):
    """{class name: its relative paths}: by folder, else by name."""
    in_folders = [path for path in images if len(parts_of(path)) > 1]
    flat = [path for path in images if len(parts_of(path)) == 1]
    by_class = collections.defaultdict(list)
    if in_folders:
        from_leaf = _is_from_leaf(folder, in_folders, classes) if classes_from is None else classes_from == "leaf"
        for path in in_folders:
            by_class[parts_of(path)[-2 if from_leaf else 0]].append(path)
        for name, paths in by_class.items():
            places = sorted({Path(*parts_of(path)[:-1]) for path in paths})
            if from_leaf and len(places) > 1:
                say(f"note: {len(places)} folders are one class, {name!r}, such as {places[0]} and {places[1]}")
        holding = {part for path in in_folders for part in (path.split(os.sep)[0], parts_of(path)[0])}
        for name in sorted(os.listdir(folder)):
            if os.path.isdir(folder / name) and name not in holding and not name.startswith((".", "__MACOSX")):
                say(f"ignored: folder {folder / name}, which holds no image")
        stray, why = flat, "are not in a class folder"
    else:
        labelled = _classes_in_names(flat, classes)
        for path, name in labelled.items():
            by_class[name].append(path)
        stray, why = [path for path in flat if path not in labelled], "have no class in their names"
    if not by_class:
        advice = "put them in a folder for each class, or name them like cat.1.jpg"
        problem = f"the images in {folder} have no class: {advice}" if stray else f"no images in {folder}"
        raise UserError(problem, NO_DATA)
    if stray:
        say(f"ignored: {len(stray)} images in {folder} that {why} ({stray[0]}{' …' if len(stray) > 1 else ''})")
    return by_class


def _classes_in_names(paths, classes):
    """{path: class} of files named like `cat.1.jpg`; if there are none, of `cat_1.jpg`, if all are named in this way.

    Names that cameras give, one class alone, or one that is not of `classes`, are no classes.
    """
    names = {path: parts_of(path)[-1] for path in paths}
    dotted = {path: name.split(".")[0] for path, name in names.items() if name.count(".") >= 2}
    if dotted:
        return dotted
    matches = {path: re.fullmatch(r"(.*[^\W\d_])_[0-9]+", os.path.splitext(name)[0]) for path, name in names.items()}
    if not all(matches.values()):  # `cat_1_2.jpg` could be of a cat_1
        return {}
    named = {path: match[1] for path, match in matches.items()}
    names = set(named.values())
    clear = len(names) > 1 and not any(map(CAMERAS.fullmatch, names)) if classes is None else names <= set(classes)
    return named if clear else {}


def _is_from_leaf(folder, paths, classes):
    """True if the classes are the folders that hold the images, False if they are the topmost. Raises UserError to ask.

    There is no question if these are the same, if only one of them has several names, if `classes` are the names of one of
    them, if every top folder has images of its own, or if the other folders have names like session1 (see SERIES).
    """
    tops, leaves = ({parts_of(path)[k] for path in paths} for k in (0, -2))
    deeper = {name for path in paths for name in parts_of(path)[1:-1]}
    _refuse_parts(folder, paths)
    if classes is not None:
        return not tops <= set(classes) and len(leaves & set(classes)) > len(tops & set(classes))
    with_own = {parts_of(path)[0] for path in paths if len(parts_of(path)) == 2}
    if not deeper or len(tops) < 2 or len(leaves) < 2 or with_own == tops or all(map(SERIES.fullmatch, deeper)):
        return False
    shown = [f"{len(names)}: {', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''}" for names in (tops, leaves)]
    raise UserError(
        f"the classes in {folder} could be the top folders ({shown[0]}) or those that hold the images"
        f" ({shown[1]}): say which with --classes-from top or --classes-from leaf",
        NO_DATA,
    )


def _refuse_parts(folder, paths):
    """Raise UserError, with the flags to give, if the top folders are parts of a data set with the same class folders."""
    below = collections.defaultdict(set)
    for path in paths:
        top, *others = parts_of(path)
        below[top].add(others[0] if len(others) > 1 else None)
    part_of = {name: part for part, names in PARTS.items() for name in names}
    parts = {part_of.get(top.casefold()): top for top in below}
    if None in parts or "train" not in parts or len(parts) < 2 or len(set.intersection(*below.values()) - {None}) < 2:
        return
    flags = {"train": "--data-dir", "validation": "--validation-dir"}
    shown = " ".join(f"{flag} {shell_path(folder / parts[part])}" for part, flag in flags.items() if part in parts)
    raise UserError(
        f"{folder} holds the parts of a data set ({', '.join(sorted(below))}): give one of them; to train, {shown}", NO_DATA
    )


def _refuse_names_that_differ_by_case(folder, names):
    seen = {}
    for name in sorted(names):
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UserError(f"{folder}: the classes {other!r} and {name!r} differ only by case: rename one", NO_DATA)


def only_one_class(found):
    """Say which class is the only one, and what to do if the class folders are one level deeper."""
    message = f"there is only one class, {found.classes[0]!r}, in {found.folder}"
    parts = parts_of(str(Path(found.relative(0))))
    if found.folder.is_dir() and (len(parts) > 2 or (len(parts) == 2 and parts[-1].count(".") >= 2)):
        message += f" (are the classes in {found.folder / parts[0]}?)"
    return message
