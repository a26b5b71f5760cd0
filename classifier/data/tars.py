"""Tar files as folders: images inside them are read in place, by paths such as train-000.tar/cats/1.jpg.

A million small files are slow on the file systems of clusters, a thousand tars are not (WebDataset has this layout, too).
"""

import functools
import os
import tarfile

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
    """members_of() a tar of this size and time: as it is now. Names that lead out of it are left out."""
    members = {}
    try:
        with tarfile.open(tar, "r:") as opened:
            for member in opened:
                opened.members.clear()  # or it keeps all of them
                name = os.path.normpath(member.name)
                if member.isreg() and not member.issparse() and not name.startswith(("..", os.sep)):
                    members[name] = member.offset_data, member.size
    except tarfile.TarError as error:
        raise OSError(None, f"not a sound tar file: {error}", tar) from None
    return members
