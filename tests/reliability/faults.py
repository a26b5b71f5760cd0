"""Faults of processes and disks, injected from outside: the programs under test know nothing of them. See faults.c."""

import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_suffix(".c")


class Change(NamedTuple):
    """A change of a file, as faults.c saw it.

    `kind` is "create", "write", "truncate" (to `offset` bytes), "sync", "rename" (to `other`), "unlink" (of a file or an
    empty folder) or "mkdir".
    """

    kind: str
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""


@functools.cache
def library():
    """The path of the library, compiled once. Raises OSError or CalledProcessError where there is no C compiler."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    path = Path(tempfile.gettempdir(), f"faults-{os.getuid()}-{digest}.so")
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", partial, SOURCE, "-ldl", "-lpthread"], check=True)
        partial.rename(path)
    return path


def environment(*folders, log=None, at=0, kill=False, torn=False, error=0, lasting=False):
    """Environment variables for a process in which changes of files in `folders` are counted, from 1.

    They are logged in the file `log`. At change `at` it is killed, with `torn` in the middle of a write; or the change fails
    with the errno `error`, with `lasting` all later ones, too.
    """
    faults = {"FOLDERS": ":".join(os.path.realpath(folder) for folder in folders), "LOG": log, "AT": at}
    faults |= {"KILL": kill, "TORN": torn, "ERROR": error, "LASTING": lasting}
    variables = {f"FAULTS_{name}": str(value) for name, value in faults.items() if value}
    return os.environ | variables | {"LD_PRELOAD": str(library())}


def read_log(path):
    """The changes in a log, a list."""
    changes, rest = [], Path(path).read_bytes()
    position = 0
    while position < len(rest):
        end = rest.index(b"\n", position)
        kind, name, other, offset, size = rest[position:end].split(b"\0")
        position = end + 1 + int(size)
        data = rest[end + 1 : position]
        changes.append(Change(kind.decode(), os.fsdecode(name), os.fsdecode(other), int(offset), data))
    return changes
