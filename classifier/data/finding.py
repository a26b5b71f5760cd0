"""Finding: which images a folder has, and which class each of them belongs to."""

import collections
import contextlib
import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from classifier.base.console import NO_DATA, UserError, progress, say, shell_path
from classifier.data.decoding import KIND_OF_SUFFIX, kind_of
from classifier.data.images import ImagePath
from classifier.data.labels import TABLES, labels_beside, normal, parts_among, parts_of, read_table
from classifier.data.tars import is_tar, members_of, tar_of

HIDDEN = (".", "__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN")  # of macOS, disk stations and Windows
# Suffixes of files that are not opened to see if they are images. Cameras' raw files begin like a TIFF, but it is a preview.
OTHERS = re.compile(
    r"\.(cls|csv|gz|html|jsonl?|md|mov|mp4|npy|parquet|pdf|py|tsv|txt|xml|ya?ml|zip|arw|cr2|dng|nef|nrw|orf|pef|rw2|srw)"
)
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

    `folder` is where they were looked for: a folder, a tar or a table.
    """

    folder: Path
    classes: list[str]
    paths: Paths
    labels: list[int]

    @functools.cached_property
    def root(self) -> Path:
        """The folder that the paths are below."""
        return self.folder.parent if is_table(self.folder) else self.folder

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


def walk_images(folder: ImagePath) -> list[str]:
    """Relative paths of all images below a folder, or in a tar, in natural order; what is ignored is reported.

    Images are files with an image's suffix, and those with an unknown one, or none, that begin like an image. Hidden files
    and folders do not count, links are followed, tar files are like folders.
    """
    images, others = _walk(folder)
    _say_ignored(folder, others)
    return images


def _say_ignored(folder, others):
    if others:
        names = (os.path.basename(path) for path in others)
        kinds = collections.Counter(os.path.splitext(name)[1].lower() or name for name in names).most_common(5)
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds)
        say(f"ignored: {len(others)} files in {folder} that are not images ({shown})")


def _walk(folder):
    """(images, other files) below a folder, relative paths: see walk_images()."""
    images, others = [], []
    with progress("finding images") as advance:
        for place, names in _folders(folder):
            for name in names:
                path, suffix = os.path.join(place, name), os.path.splitext(name)[1].lower()
                is_image = suffix in KIND_OF_SUFFIX
                if not is_image and not OTHERS.fullmatch(suffix):
                    is_image = kind_of(_start_of(os.path.join(folder, path))) is not None
                (images if is_image else others).append(path)
            advance(len(names))
    return sorted(images, key=natural_key), others


def _start_of(path):
    """The first bytes of a file, or of one in a tar; none of what is no file (a pipe) or cannot be read."""
    with contextlib.suppress(OSError):
        file, name = tar_of(path) or (path, None)
        if os.path.isfile(file):
            with open(file, "rb") as opened:
                opened.seek(members_of(file)[name][0] if name else 0)
                return opened.read(32)
    return b""


def _folders(folder):
    """Yield (relative path, names of the files in it) of each folder and tar below a folder, or of a tar: see walk_images().

    What cannot be opened is reported.
    """
    cannot_open = lambda error: say(f"ignored: {error.filename}: {error.strerror}")  # noqa: E731

    def members_at(tar):
        try:
            return [name for name in members_of(tar) if not any(part.startswith(HIDDEN) for part in Path(name).parts)]
        except OSError as error:
            cannot_open(error)
            return []

    if os.path.isfile(folder):
        yield "", members_at(os.fspath(folder))
        return
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
            yield os.path.join(place, tar), members_at(os.path.join(root, tar))


def find_images(
    folder: ImagePath, classes: list[str] | None = None, limit_per_class: int | None = None, classes_from: str | None = None
) -> Found:
    """Find labelled images: in class folders (`cats/1.jpg`), by their names (`cat.1.jpg`), or in a CSV file.

    `classes` are the classes to look for, in the order of their labels; None takes all, sorted by name.
    `limit_per_class` takes the first N of each class, in natural order. `classes_from` says which folders are the classes
    if some are below others: "top", "leaf" (those that hold the images), or None: see _is_from_leaf(). For a table, see
    read_table(); beside images there may be files of labels: see labels_beside(). What is ignored is reported. Names of
    classes that differ only in Unicode's form are one: see normal().
    Raises UserError where there are no labelled images, it is not clear what their classes are, or a class is not one of
    `classes`.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"there is no {'file' if is_table(folder) or is_tar(folder) else 'folder'} {folder}", NO_DATA)
    if is_table(folder):
        labels = read_table(folder, lambda place: _walk(place)[0])
        class_of = {path: labels[path] for path in sorted(labels, key=natural_key)}
    elif not (folder.is_dir() or is_tar(folder)):
        advice = "unpack other archives, and save tables as CSV"
        raise UserError(f"{folder} is not a folder, a tar or a CSV file: {advice}", NO_DATA)
    else:
        class_of = _classes_of(folder, None if classes is None else set(map(normal, classes)), classes_from)
    by_class = collections.defaultdict(list)
    for path, name in class_of.items():
        by_class[normal(name)].append(path)
    _refuse_names_that_look_alike(folder, by_class)
    classes = sorted(by_class) if classes is None else list(classes)
    if unknown := sorted(set(by_class) - set(map(normal, classes))):
        raise UserError(f"{folder}: class {unknown[0]!r} is not one of the model's: {', '.join(classes)}", NO_DATA)
    chosen = [(path, label) for label, name in enumerate(classes) for path in by_class[normal(name)][:limit_per_class]]
    found = Found(folder, classes, Paths([]), [label for _, label in chosen])
    found.paths = Paths([os.path.join(found.root, path) for path, _ in chosen])
    return found


def is_table(path: Path) -> bool:
    """True for a CSV file."""
    return path.suffix.lower() in TABLES and not path.is_dir()


def _classes_of(folder, classes, classes_from):
    """{relative path: class} of the images in a folder: by files beside them, by their folders, or by their names."""
    images, others = _walk(folder)
    tables = [path for path in others if path.lower().endswith(TABLES) and not tar_of(folder / path)]
    table = min(tables, key=lambda path: (not re.search("train|label", path.lower()), path), default=None)
    or_table = f", or give {shell_path(folder / table)} if it has the labels" if table else ""
    _refuse_parts(folder, images, or_table)
    class_of, label_files = labels_beside(folder, images, others)
    in_folders = [path for path in images if len(parts_of(path)) > 1]
    if 2 * len(class_of) >= len(images) > 0 and not _are_told_by_folders(class_of):
        why = "have no label beside them"
        others = [path for path in others if path not in label_files]
    elif in_folders:
        why = "are not in a class folder"
        class_of = _classes_of_folders(folder, in_folders, classes, classes_from)
    else:
        why = "have no class in their names"
        class_of, odd = _classes_in_names(images, classes)
    _say_ignored(folder, others)
    stray = [path for path in images if path not in class_of]
    if not images:
        raise UserError(f"no images in {folder}", NO_DATA)
    if not class_of:
        reason = f", because {odd[0]} is not named like the others" if 0 < 2 * len(odd) < len(images) else ""
        advice = f"put them in a folder for each class, or name them all like cat.1.jpg{or_table}"
        if tar_of(folder / images[0]):
            advice = "name them like cats/1.jpg in the tar, or add the label of 1.jpg as 1.cls"
        raise UserError(f"the images in {folder} have no class{reason}: {advice}", NO_DATA)
    if stray:
        say(f"ignored: {len(stray)} images in {folder} that {why} ({stray[0]}{' …' if len(stray) > 1 else ''})")
    return class_of


def _are_told_by_folders(labels):
    """Whether images with these labels, {path: label}, lie in a folder for each label, which has the better name."""
    pairs = {(parts_of(path)[:-1], label) for path, label in labels.items()}
    return len(pairs) == len({place for place, _ in pairs}) == len({label for _, label in pairs}) > 1


def _classes_of_folders(folder, paths, classes, classes_from):
    """{path: class} of images in folders: of each the topmost, or the one that holds it."""
    from_leaf = _is_from_leaf(folder, paths, classes) if classes_from is None else classes_from == "leaf"
    class_of = {path: parts_of(path)[-2 if from_leaf else 0] for path in paths}
    places = collections.defaultdict(set)
    for place, name in {(os.path.dirname(path), name) for path, name in class_of.items()}:
        folders = [part for part in place.split(os.sep) if not is_tar(part)]
        places[name].add(os.path.join(*folders) if from_leaf else folders[0])
    for name, several in places.items():
        if len(several) > 1:
            one, other, *_ = sorted(several)
            forms = ": their names differ in Unicode's form" if normal(one) == normal(other) else ""
            say(f"note: {len(several)} folders are one class, {name!r}, such as {one} and {other}{forms}")
    holding = {part for path in paths for part in (path.split(os.sep)[0], parts_of(path)[0])}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if os.path.isdir(folder / name) and not {name, normal(name)} & holding and not name.startswith(HIDDEN):
            say(f"ignored: folder {folder / name}, which holds no image of its own")
    return class_of


def _classes_in_names(paths, classes):
    """({path: class}, files without) of files named like `cat.1.jpg`; if there are none, `cat_1.jpg`, if all are like this.

    Names that cameras give, one class alone, or one that is not of `classes`, are no classes.
    """
    dotted = {path: name.split(".")[0] for path in paths if (name := parts_of(path)[-1]).count(".") >= 2}
    names = set(dotted.values())
    if dotted and (classes is not None or not (len(names) == len(dotted) or all(map(CAMERAS.fullmatch, names)))):
        return dotted, []
    named = {path: _class_in_name(path) for path in paths}
    is_odd = CAMERAS.fullmatch if classes is None else lambda name: name not in classes
    odd = [path for path, name in named.items() if name is None or is_odd(name)]
    return ({} if odd or (classes is None and len(set(named.values())) < 2) else named), odd


def _class_in_name(path):
    """cat of `cat_1.jpg`, or None: `cat_1_2.jpg` could be of a cat_1."""
    match = re.fullmatch(r"(.*[^\W\d_])_[0-9]+", os.path.splitext(parts_of(path)[-1])[0])
    return match and match[1]


def _is_from_leaf(folder, paths, classes):
    """True if the classes are the folders that hold the images, False if they are the topmost. Raises UserError to ask.

    There is no question if these are the same, if only one of them has several names, if `classes` are the names of one of
    them, if every top folder has images of its own, or if the other folders have names like session1 (see SERIES).
    """
    tops, leaves = ({parts_of(path)[k] for path in paths} for k in (0, -2))
    deeper = {name for path in paths for name in parts_of(path)[1:-1]}
    if classes is not None:
        return not tops <= classes and len(leaves & classes) > len(tops & classes)
    with_own = {parts_of(path)[0] for path in paths if len(parts_of(path)) == 2}
    if not deeper or len(tops) < 2 or len(leaves) < 2 or with_own == tops or all(map(SERIES.fullmatch, deeper)):
        return False
    shown = [f"{len(names)}: {', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''}" for names in (tops, leaves)]
    raise UserError(
        f"the classes in {folder} could be the top folders ({shown[0]}) or those that hold the images"
        f" ({shown[1]}): say which with --classes-from top or --classes-from leaf",
        NO_DATA,
    )


def _refuse_parts(folder, paths, advice):
    """Raise UserError, with the flags to give and other advice, if folders or tars are the parts of a data set."""
    below = collections.defaultdict(set)  # of each folder, the names of those in it that have images
    for place in (places := {os.path.dirname(path) for path in paths}):
        while place:
            place, name = os.path.split(place)
            below[place].add(name)
    place, parts = next(((place, parts) for place in sorted(below) if (parts := parts_among(below[place]))), ("", {}))
    if not parts:
        return
    shown = ""
    for part, flag in {"train": "to train, --data-dir", "validation": " --validation-dir", "test": "; to test,"}.items():
        for name in parts.get(part, [])[:1]:
            inner = name if below[os.path.join(place, name)] == {name} else ""  # seg_train/seg_train
            shown += f"{flag} {shell_path(folder / place / name / inner)}"
    names = sorted(os.path.join(place, name) for several in parts.values() for name in several)
    train = parts["train"][0]
    if len(names) > len(parts) and is_tar(names[0]):
        advice = ": put the tars of each part into a folder, and give one of these"
    elif (
        place and len(below[os.path.dirname(place)]) > 1 and os.path.join(place, train) in places
    ):  # cats/train, cats/test, dogs/…
        advice = f": put their images into {train}/{place} and so on, and give {train}"
    else:
        advice = f": give one of them; {shown}{advice}"
    raise UserError(f"{folder} holds the parts of a data set ({', '.join(names[:9])}){advice}", NO_DATA)


def _refuse_names_that_look_alike(folder, names):
    seen: dict[str, str] = {}
    for name in sorted(names):
        visible = "".join(sign for sign in name if unicodedata.category(sign) != "Cf").strip()
        other = seen.setdefault(visible.casefold(), name)
        if other != name:
            raise UserError(
                f"{folder}: the classes {other!r} and {name!r} differ only by case or blanks: rename one", NO_DATA
            )


def only_one_class(found: Found) -> str:
    """Say which class is the only one, and what to do if the class folders are one level deeper."""
    message = f"there is only one class, {found.classes[0]!r}, in {found.folder}"
    parts = parts_of(os.path.normpath(found.relative(0)))
    if found.folder.is_dir() and (len(parts) > 2 or (len(parts) == 2 and parts[-1].count(".") >= 2)):
        message += f" (are the classes in {found.folder / parts[0]}?)"
    return message
