"""Finding: which images a folder has, and which class each of them belongs to."""

import collections
import dataclasses
import os
import re
import unicodedata
from pathlib import Path

from classifier.console import NO_DATA, UserError, say
from classifier.images import KIND_OF_SUFFIX


@dataclasses.dataclass
class Found:
    """Labelled images, not yet opened: `labels[i]` is the index in `classes` of `paths[i]`."""

    folder: Path
    classes: list[str]
    paths: list[Path]
    labels: list[int]


def natural_key(path):
    """Sort key that reads numbers as numbers: `cat.2.jpg` before `cat.10.jpg`."""
    parts = re.split(r"([0-9]+)", str(path))  # every second one is a number
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(path)


def walk_images(folder):
    """Relative paths of all files below `folder` with an image's suffix, in natural order, and a count of the others.

    Hidden files and folders are not counted, links are followed. A folder that cannot be opened is reported.
    """
    images, others, seen = [], collections.Counter(), set()
    cannot_open = lambda error: say(f"ignored: {error.filename}: {error.strerror}")  # noqa: E731
    for root, folders, names in os.walk(folder, onerror=cannot_open, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in names:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in KIND_OF_SUFFIX:
                images.append(Path(root, name).relative_to(folder))
            else:
                others[suffix or name] += 1
    return sorted(images, key=natural_key), others


def find_images(folder, classes=None, limit_per_class=None):
    """Find labelled images in class folders (`cats/1.jpg`) or in Kaggle's flat naming (`cat.1.jpg`).

    `classes` are the classes to look for, in the order of their labels; None takes all, sorted by name.
    `limit_per_class` takes the first N of each class, in natural order. What is ignored is reported.
    Raises UserError where there are no labelled images, or a class is not one of `classes`.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"there is no folder {folder}", NO_DATA)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", NO_DATA)
    images, others = walk_images(folder)
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        say(f"ignored: {others.total()} files in {folder} that are not images ({kinds})")
    by_class = _group_by_class(folder, images)
    _refuse_names_that_differ_by_case(folder, by_class)
    names = sorted(by_class) if classes is None else list(classes)
    unknown = sorted(set(by_class) - set(names))
    if unknown:
        raise UserError(f"{folder}: class {unknown[0]!r} is not one of the model's: {', '.join(names)}", NO_DATA)
    found = Found(folder, names, [], [])
    for label, name in enumerate(names):
        chosen = by_class.get(name, [])[:limit_per_class]
        found.paths += [folder / path for path in chosen]
        found.labels += [label] * len(chosen)
    return found


def _group_by_class(folder, images):
    """{class name: its relative paths}: by top folder, else by the part of the name before the first dot."""
    in_folders = [path for path in images if len(path.parts) > 1]
    flat = [path for path in images if len(path.parts) == 1]
    by_class = collections.defaultdict(list)
    if in_folders:
        for path in in_folders:
            by_class[path.parts[0]].append(path)
        for name in sorted(os.listdir(folder)):
            if os.path.isdir(folder / name) and name not in by_class and not name.startswith((".", "__MACOSX")):
                say(f"ignored: folder {folder / name}, which holds no image")
        _warn_of_classes_below(folder, by_class)
        stray, why = flat, "are not in a class folder"
    else:
        labelled = [path for path in flat if path.name.count(".") >= 2]
        for path in labelled:
            by_class[path.name.split(".")[0]].append(path)
        stray, why = [path for path in flat if path.name.count(".") < 2], "have no class in their names"
    if not by_class:
        advice = "put them in a folder for each class, or name them like cat.1.jpg"
        problem = f"the images in {folder} have no class: {advice}" if stray else f"no images in {folder}"
        raise UserError(problem, NO_DATA)
    if stray:
        say(f"ignored: {len(stray)} images in {folder} that {why} ({stray[0]}{' …' if len(stray) > 1 else ''})")
    return by_class


def _warn_of_classes_below(folder, by_class):
    """Warn if the class folders have the same folders in them, as train/ and test/ have: these may be the classes."""
    below = [{path.parts[1] for path in paths if len(path.parts) > 2} for paths in by_class.values()]
    if len(below) > 1 and len(below[0]) > 1 and all(names == below[0] for names in below):
        say(f"warning: all class folders in {folder} contain the same folders, such as {min(below[0])}: if these are the"
            f" classes, give {folder / max(by_class, key=lambda name: len(by_class[name]))}, for example")  # fmt: skip


def _refuse_names_that_differ_by_case(folder, names):
    seen = {}
    for name in sorted(names):
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UserError(f"{folder}: the classes {other!r} and {name!r} differ only by case: rename one", NO_DATA)


def only_one_class(found):
    """Say which class is the only one, and what to do if the class folders are one level deeper."""
    message = f"there is only one class, {found.classes[0]!r}, in {found.folder}"
    first = found.paths[0].relative_to(found.folder)
    if len(first.parts) > 2 or (len(first.parts) == 2 and first.name.count(".") >= 2):
        message += f" (are the classes in {found.folder / first.parts[0]}?)"
    return message
