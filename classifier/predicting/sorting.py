"""Sorting: copies of images, or links to them, in a folder for each predicted class.

    OUT/cats/IMG_1.jpg  OUT/dogs/IMG_2.jpg  OUT/not_sure/IMG_3.jpg  OUT/unknown/IMG_4.jpg

Nothing is moved and nothing that exists is changed.
"""

import collections
import filecmp
import itertools
import os
import re
import shutil
import unicodedata
from pathlib import Path

from classifier.base.console import USAGE, UserError, describe, say
from classifier.base.files import locked, remove
from classifier.predicting.classifier import free_name, name_for_unknown

NOT_SURE = "not_sure"
PARTIAL = ".partial"  # the file that is being copied, in OUT


def outside(paths, out):
    """The paths that are not in the folder `out`, which holds copies. Raises UserError if there are none."""
    folder = Path(os.path.realpath(out))
    others = [
        path
        for path in paths
        if folder not in Path(os.path.abspath(path)).parents and folder not in Path(os.path.realpath(path)).parents
    ]
    if not others:
        raise UserError(f"--copy-to: all images are in {out} already: choose another folder", USAGE)
    if len(others) < len(paths):
        say(f"ignored: {len(paths) - len(others)} images that are in {out} already")
    return others


def sorting(answers, out, classes, min_confidence=None, link=False):
    """Yield the answers, see inference.Answer, and put a copy of each one's file, or a link, into the folder `out`.

    It comes into the folder of its class, see folder_names(); into `unknown` if it is out of distribution; into `not_sure`
    if the probability of the class is below `min_confidence`, or, without that, less than twice that of the second class.
    Subfolders of the originals are not kept. A file of the same content is never copied again. If another file has its name,
    the copy gets a number: IMG_1_2.jpg. Raises UserError if a file cannot be written.
    """
    folders = folder_names(classes)
    unknown, not_sure = name_for_unknown(classes), free_name(NOT_SURE, classes)
    counts, existing = collections.Counter(), 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            remove(out / PARTIAL)  # of a process that was killed
            for answer in answers:
                if not answer.reason:
                    name = unknown if answer.ood_score > 1 else class_if_sure(answer, min_confidence) or not_sure
                    folder = out / folders.get(name, name)
                    existing += not _put(answer.path, folder, out / PARTIAL, link)
                    counts[folder.name] += 1
                yield answer
    except OSError as error:
        raise UserError(f"cannot sort into {out}: {describe(error)}") from None
    shown = ", ".join(f"{folder} {count}" for folder, count in sorted(counts.items())) or "no images"
    say(f"sorted into {out}: {shown}{f' ({existing} were there already)' if existing else ''}")


def class_if_sure(answer, min_confidence):
    """The most likely class of an answer, or None: see sorting()."""
    (name, first), (_, second), *_ = answer.probabilities.items()
    return name if first >= (2 * second if min_confidence is None else min_confidence) else None


def folder_names(classes):
    """{class: name of its folder}: different ones, that every system allows, and none that other images come into."""
    taken = {name_for_unknown(classes), free_name(NOT_SURE, classes)}
    folders = {}
    for name in classes:
        folder = re.sub(r'[<>:"/\\|?*\x00-\x1f]|^\.|[. ]+$', "_", name) or "_"
        if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", folder, re.IGNORECASE):  # devices of Windows
            folder = f"_{folder}"
        while unicodedata.normalize("NFC", folder).casefold() in taken:
            folder += "_"
        taken.add(unicodedata.normalize("NFC", folder).casefold())
        folders[name] = folder
    return folders


def _put(source, folder, partial, link):
    """Put a copy of a file, or a link to it, into a folder. Returns False if it is there already."""
    folder.mkdir(exist_ok=True)
    stem, suffix = os.path.splitext(os.path.basename(source))
    for number in itertools.count(1):
        target = folder / (f"{stem}_{number}{suffix}" if number > 1 else f"{stem}{suffix}")
        if not os.path.lexists(target):
            break
        if target.is_file() and filecmp.cmp(source, target, shallow=False):
            return False
    if link:
        target.symlink_to(os.path.abspath(source))
        return True
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
