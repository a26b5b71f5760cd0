"""Finding: which images a folder has, and which class each of them belongs to."""

import collections
import csv
import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from classifier.base.console import NO_DATA, UserError, progress, say, shell_path
from classifier.data.decoding import KIND_OF_SUFFIX
from classifier.data.images import ImagePath
from classifier.data.tars import is_tar, members_of

HIDDEN = (".", "__MACOSX")
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


class Paths(Sequence):
    """A sequence of Paths that are kept as strings: a million Path objects would take 400 MB."""

    def __init__(self, names: list[str]):
        self._names = names

    def __len__(self):
        return len(self._names)

    def __getitem__(self, i):
        return Paths(self._names[i]) if isinstance(i, slice) else Path(self._names[i])

    def __add__(self, others: Iterable[ImagePath]) -> "Paths":
        return Paths(self._names + [os.fspath(path) for path in others])

    def take(self, positions: Iterable[int]) -> "Paths":
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

    @functools.cached_property
    def root(self) -> Path:
        """The folder that the paths are below."""
        return self.folder if self.folder.is_dir() else self.folder.parent

    def relative(self, i: int) -> str:
        """A path below the root, with / between its parts."""
        return self.paths[i].relative_to(self.root).as_posix()

    def __add__(self, others: "Found") -> "Found":
        """These images, and after them others of the same classes."""
        return Found(self.folder, self.classes, self.paths + others.paths, self.labels + others.labels)


def natural_key(path: str) -> str:
    """Sort key, a string, that reads numbers as numbers: `cat.2.jpg` before `cat.10.jpg`."""

    def number(match):
        digits = match[0].lstrip("0")
        return f"\0{chr(len(digits) + 1)}{digits}"  # longer ones are greater; zero bytes are in no path

    return f"{re.sub('[0-9]+', number, path)}\0\0{path}"


def walk_images(folder: ImagePath) -> tuple[list[str], collections.Counter]:
    """Relative paths of all files below `folder` with an image's suffix, in natural order, and a count of the others.

    Hidden files and folders are not counted, links are followed, tar files are like folders. A folder or tar that cannot be
    opened is reported.
    """
    images, others = [], collections.Counter[str]()
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
    seen = set()
    for root, folders, names in os.walk(folder, onerror=cannot_open, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        place = "" if os.path.samefile(root, folder) else os.path.relpath(root, folder)
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        names = [name for name in names if not name.startswith(".")]
        yield place, [name for name in names if not is_tar(name)]
        for tar in filter(is_tar, names):
            try:
                members = members_of(os.path.join(root, tar))
            except OSError as error:
                cannot_open(error)
            else:
                yield os.path.join(place, tar), [m for m in members if not any(p.startswith(HIDDEN) for p in Path(m).parts)]


def parts_of(path: str) -> tuple[str, ...]:
    """The parts of a relative path that can be classes: what is in a tar counts as if it were beside the tar."""
    *folders, name = path.split(os.sep)
    return (*(part for part in folders if not is_tar(part)), name)


def find_images(
    folder: ImagePath, classes: list[str] | None = None, limit_per_class: int | None = None, classes_from: str | None = None
) -> Found:
    """Find labelled images: in class folders (`cats/1.jpg`), by their names (`cat.1.jpg`), or in a CSV file.

    `classes` are the classes to look for, in the order of their labels; None takes all, sorted by name.
    `limit_per_class` takes the first N of each class, in natural order. `classes_from` says which folders are the classes
    if some are below others: "top", "leaf" (those that hold the images), or None: see _is_from_leaf(). A CSV file has the
    columns path, from its own folder on, and label. What is ignored is reported.
    Raises UserError where there are no labelled images, it is not clear what their classes are, or a class is not one of
    `classes`.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"there is no folder {folder}", NO_DATA)
    if folder.suffix.lower() == ".csv" and folder.is_file():
        class_of = _read_csv(folder)
    elif not folder.is_dir():
        raise UserError(f"{folder} is not a folder", NO_DATA)
    else:
        class_of = _classes_of(folder, classes, classes_from)
    by_class = collections.defaultdict(list)
    for path, name in class_of.items():
        by_class[name].append(path)
    _refuse_names_that_differ_by_case(folder, by_class)
    classes = sorted(by_class) if classes is None else list(classes)
    if unknown := sorted(set(by_class) - set(classes)):
        raise UserError(f"{folder}: class {unknown[0]!r} is not one of the model's: {', '.join(classes)}", NO_DATA)
    chosen = [(path, label) for label, name in enumerate(classes) for path in by_class[name][:limit_per_class]]
    found = Found(folder, classes, Paths([]), [label for _, label in chosen])
    found.paths = Paths([os.path.join(found.root, path) for path, _ in chosen])
    return found


def _read_csv(file):
    """{path from the file's folder on: class}, from a CSV file with the columns path and label."""
    label_of: dict[str, str] = {}
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:  # Excel begins its files with a byte order mark
            table = csv.DictReader(opened)
            columns = table.fieldnames or []
            if not {"path", "label"} <= set(columns):
                named = ", ".join(map(repr, columns)) or "none"
                raise UserError(f"{file} needs the columns path and label, with a comma between: it has {named}", NO_DATA)
            for row in table:
                path, label = ((row[name] or "").strip() for name in ("path", "label"))
                place = f"{file}, line {table.line_num}"
                if not path or not label:
                    raise UserError(f"{place} has no {'label' if path else 'path'}", NO_DATA)
                path = os.path.normpath(path)
                if os.path.isabs(path) or ".." in path.split(os.sep):
                    raise UserError(f"{place}: {path} is outside the folder of the CSV file", NO_DATA)
                if label_of.setdefault(path, label) != label:
                    raise UserError(f"{file}: {path} has two labels, {label_of[path]!r} and {label!r}", NO_DATA)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8: {error}", NO_DATA) from None
    if not label_of:
        raise UserError(f"no images in {file}", NO_DATA)
    return {path: label_of[path] for path in sorted(label_of, key=natural_key)}


def _classes_of(folder, classes, classes_from):
    """{relative path: class} of the images in a folder: by their folders, else by their names."""
    images, others = walk_images(folder)
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        say(f"ignored: {others.total()} files in {folder} that are not images ({kinds})")
    in_folders = [path for path in images if len(parts_of(path)) > 1]
    if in_folders:
        why = "are not in a class folder"
        class_of = _classes_of_folders(folder, in_folders, classes, classes_from)
    else:
        why = "have no class in their names"
        class_of = _classes_in_names(images, classes)
    stray = [path for path in images if path not in class_of]
    if not class_of:
        advice = "put them in a folder for each class, or name them like cat.1.jpg"
        problem = f"the images in {folder} have no class: {advice}" if stray else f"no images in {folder}"
        raise UserError(problem, NO_DATA)
    if stray:
        say(f"ignored: {len(stray)} images in {folder} that {why} ({stray[0]}{' …' if len(stray) > 1 else ''})")
    return class_of


def _classes_of_folders(folder, paths, classes, classes_from):
    """{path: class} of images in folders: of each the topmost, or the one that holds it."""
    from_leaf = _is_from_leaf(folder, paths, classes) if classes_from is None else classes_from == "leaf"
    class_of = {path: parts_of(path)[-2 if from_leaf else 0] for path in paths}
    if from_leaf:
        places = collections.defaultdict(set)
        for path, name in class_of.items():
            places[name].add(Path(*parts_of(path)[:-1]))
        for name, several in places.items():
            if len(several) > 1:
                one, other, *_ = sorted(several)
                say(f"note: {len(several)} folders are one class, {name!r}, such as {one} and {other}")
    holding = {part for path in paths for part in (path.split(os.sep)[0], parts_of(path)[0])}
    for name in sorted(os.listdir(folder)):
        if os.path.isdir(folder / name) and name not in holding and not name.startswith(HIDDEN):
            say(f"ignored: folder {folder / name}, which holds no image")
    return class_of


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
    seen: dict[str, str] = {}
    for name in sorted(names):
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UserError(f"{folder}: the classes {other!r} and {name!r} differ only by case: rename one", NO_DATA)


def only_one_class(found: Found) -> str:
    """Say which class is the only one, and what to do if the class folders are one level deeper."""
    message = f"there is only one class, {found.classes[0]!r}, in {found.folder}"
    parts = parts_of(os.path.normpath(found.relative(0)))
    if found.folder.is_dir() and (len(parts) > 2 or (len(parts) == 2 and parts[-1].count(".") >= 2)):
        message += f" (are the classes in {found.folder / parts[0]}?)"
    return message
