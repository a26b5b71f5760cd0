"""Sorting: copies of images in a folder for each predicted class.

    OUT/cats/IMG_1.jpg  OUT/dogs/IMG_2.jpg  OUT/not_sure/IMG_3.jpg  OUT/unknown/IMG_4.jpg

Nothing is moved and nothing that exists is changed.
"""

import collections
import filecmp
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from classifier.base.console import USAGE, UserError, describe, say
from classifier.base.files import locked, remove
from classifier.data.labels import normal
from classifier.predicting.classifier import Answer, free_name, name_for_unknown

NOT_SURE = "not_sure"
PARTIAL = ".partial"  # the file that is being copied, in OUT


def outside(paths: Sequence[str], out: Path) -> list[str]:
    """The paths that are not in the folder `out`, which holds copies. Raises UserError if there are none."""
    folder = Path(os.path.realpath(out))
    others = [
        path for path in paths if not any(folder in Path(f(path)).parents for f in (os.path.abspath, os.path.realpath))
    ]
    if not others:
        raise UserError(f"--copy-to: all images are in {out} already: choose another folder", USAGE)
    if len(others) < len(paths):
        say(f"ignored: {len(paths) - len(others)} images that are in {out} already")
    return others


def sorting(
    answers: Iterable[Answer], out: Path, classes: Sequence[str], min_confidence: float | None = None
) -> Iterator[Answer]:
    """Yield the answers, and put a copy of each one's file into the folder `out`.

    It comes into the folder of its class, see folder_names(); into `unknown` if it is out of distribution; into `not_sure`
    if the probability of the class is below `min_confidence`, or, without that, less than twice that of the second class.
    Subfolders of the originals are not kept. A file of the same content is never copied again. If another file has its name,
    the copy gets a number: IMG_1_2.jpg. Raises UserError if a file cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"cannot sort into {out}: it is not a folder", USAGE)
    folders, counts, existing = folder_names(classes), collections.Counter[str](), 0
    unknown, not_sure = name_for_unknown(classes), free_name(NOT_SURE, classes)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            remove(out / PARTIAL)  # of a process that was killed
            there = {normal(path.name): path for path in out.iterdir()}  # perhaps in another of Unicode's forms
            for answer in answers:
                if answer.probabilities:
                    name = unknown if answer.ood_score > 1 else _class_if_sure(answer.probabilities, min_confidence)
                    folder = folders.get(name, name or not_sure)
                    folder = there.get(normal(folder), out / folder)
                    existing += not _copy(answer.path, folder, out / PARTIAL)
                    counts[folder.name] += 1
                yield answer
    except OSError as error:
        raise UserError(f"cannot sort into {out}: {describe(error)}") from None
    shown = ", ".join(f"{folder} {count}" for folder, count in sorted(counts.items())) or "no images"
    say(f"sorted into {out}: {shown}{f' ({existing} were there already)' if existing else ''}")


def _class_if_sure(probabilities, min_confidence):
    """The most likely class, or None: see sorting()."""
    (name, first), (_, second), *_ = probabilities.items()
    return name if first >= (2 * second if min_confidence is None else min_confidence) else None


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """{class: name of its folder}: different ones, that every system allows, and none that other images come into."""
    taken = {name_for_unknown(classes), free_name(NOT_SURE, classes)}
    folders = {}
    for name in classes:
        folder = re.sub(r'[<>:"/\\|?*\x00-\x1f]|^\.|[. ]+$', "_", name) or "_"
        if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", folder, re.IGNORECASE):  # devices of Windows
            folder = f"_{folder}"
        while normal(folder).casefold() in taken:
            folder += "_"
        taken.add(normal(folder).casefold())
        folders[name] = folder
    return folders


def _copy(source, folder, partial):
    """Put a copy of a file into a folder. Returns False if it is there already."""
    folder.mkdir(exist_ok=True)
    stem, suffix = os.path.splitext(os.path.basename(source))
    for number in itertools.count(1):
        target = folder / (f"{stem}_{number}{suffix}" if number > 1 else f"{stem}{suffix}")
        if not os.path.lexists(target):
            break
        if target.is_file() and filecmp.cmp(source, target, shallow=False):
            return False
    try:
        shutil.copyfile(source, partial)
        with open(partial, "r+b") as file:
            os.fsync(file.fileno())
        status = os.stat(source)
        os.utime(partial, ns=(status.st_atime_ns, status.st_mtime_ns))  # photos are ordered by their time
        os.rename(partial, target)
    finally:
        remove(partial)
    return True
