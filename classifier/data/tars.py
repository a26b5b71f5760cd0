"""Tar files as folders: images inside them are read in place, by paths such as train-000.tar/cats/1.jpg.

A million small files are slow on the file systems of clusters, a thousand tars are not (WebDataset has this layout, too).
"""

import functools
import os
import tarfile

from classifier.base.console import say

SUFFIX = ".tar"  # not of compressed ones: these can only be read from the beginning


def is_tar(path: str | os.PathLike) -> bool:
    """True for the name of a tar file."""
    return os.fspath(path).lower().endswith(SUFFIX)


def tar_of(path: str | os.PathLike) -> tuple[str, str] | None:
    """(tar, name of the file in it) of a path, or None if no part of the path but the last is a tar file."""
    text, start = os.fspath(path), 0
    while (end := text.lower().find(f"{SUFFIX}{os.sep}", start)) >= 0:
        start = end + len(SUFFIX)
        if os.path.isfile(text[:start]):
            return text[:start], text[start + 1 :]
    return None


def members_of(tar: str) -> dict[str, tuple[int, int]]:
    """{name: (offset, size)} of the ordinary files in a tar, in its order. Raises OSError if it is no sound tar."""
    status = os.stat(tar)
    return _members_of(tar, status.st_size, status.st_mtime_ns)


@functools.cache
def _members_of(tar, _size, _time):
    """members_of() a tar of this size and time: as it is now. Links and names that lead out of it are left out."""
    members: dict[str, tuple[int, int]] = {}
    left_out = []
    try:
        with tarfile.open(tar, "r:") as opened:
            for member in opened:
                opened.members.clear()  # or it keeps all of them
                name = os.path.normpath(member.name)
                original = members.get(os.path.normpath(member.linkname)) if member.islnk() else None  # of a second name
                if name.startswith(("..", os.sep)) or not (member.isreg() or original) or member.issparse():
                    left_out += [] if member.isdir() else [name]
                else:
                    members[name] = original or (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise OSError(None, f"not a sound tar file: {error}", tar) from None
    if left_out:
        say(f"ignored: {len(left_out)} links and other special files in {tar}, such as {left_out[0]}")
    return members
