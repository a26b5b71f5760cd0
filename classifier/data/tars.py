"""Tar files as folders: images inside them are read in place, by paths such as train-000.tar/cats/1.jpg.

A million small files are slow on the file systems of clusters, a thousand tars are not (WebDataset has this layout, too).
"""

import functools
import os
import tarfile

SUFFIX = ".tar"  # not of compressed ones: these can only be read from the beginning


def is_tar(path):
    """True for the name of a tar file."""
    return os.fspath(path).lower().endswith(SUFFIX)


def members_of(tar):
    """The names of the files in a tar, in its order. Raises OSError if it cannot be read."""
    return list(_index(tar))


def tar_of(path):
    """(tar, name of the file in it) of a path, or None if no part of the path but the last is a tar file."""
    text, start = os.fspath(path), 0
    while (end := text.lower().find(f"{SUFFIX}{os.sep}", start)) >= 0:
        start = end + len(SUFFIX)
        if os.path.isfile(text[:start]):
            return text[:start], text[start + 1 :]
    return None


def find_member(tar, name):
    """(tar, offset, size): where the bytes of a file in a tar are. Raises OSError if there is none, or no sound tar."""
    try:
        return tar, *_index(tar)[name]
    except KeyError:
        raise FileNotFoundError(None, "no such file in the tar", os.path.join(tar, name)) from None


def _index(tar):
    status = os.stat(tar)
    return _index_of(tar, status.st_size, status.st_mtime_ns)


@functools.cache
def _index_of(tar, size, time):
    """{name: (offset, size)} of the ordinary files in a tar, as it is now. Names that lead out of it are left out."""
    index = {}
    try:
        with tarfile.open(tar, "r:") as opened:
            for member in opened:
                opened.members.clear()  # or it keeps all of them
                name = os.path.normpath(member.name)
                if member.isreg() and not member.issparse() and not name.startswith(("..", os.sep)):
                    index[name] = member.offset_data, member.size
    except tarfile.TarError as error:
        raise OSError(None, f"not a sound tar file: {error}", tar) from None
    return index
