"""Files: written whole or not at all, identified by digests, and locked."""

import contextlib
import csv
import hashlib
import io
import os
import shutil
from pathlib import Path

from classifier.console import UserError


@contextlib.contextmanager
def replacing(path):
    """Yield a path to write to; what was written then takes the place of `path`, whole, even if the machine loses power.

    It may be a file, a folder, or several files whose names begin with that path (TensorFlow's checkpoints): their
    endings are kept, and they get their names in alphabetical order. A link stays a link. After an exception nothing has
    changed. Raises OSError.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        for written in _written(partial):
            for file in [written] if written.is_file() else filter(Path.is_file, written.rglob("*")):
                with open(file, "r+b") as opened:
                    os.fsync(opened.fileno())
            target = path.with_name(written.name.replace(partial.name, path.name, 1))
            if target.is_dir():  # a folder that is not empty cannot be replaced
                shutil.rmtree(target)
            os.replace(written, target)
    except BaseException:
        with contextlib.suppress(OSError):
            for leftover in _written(partial):
                remove(leftover)
        raise


def _written(partial):
    """What replacing() has written. It lists the folder only if it must: this user may not be allowed to."""
    if partial.exists():
        return [partial]
    return sorted(other for other in partial.parent.iterdir() if other.name.startswith(partial.name))


def remove(path):
    """Remove a file or a folder, if that is possible."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_text(path, text):
    """Write a text file, see replacing(); straight into what is no ordinary file (/dev/stdout). Raises UserError."""
    is_special = os.path.exists(path) and not os.path.isfile(path)
    try:
        with contextlib.nullcontext(Path(path)) if is_special else replacing(path) as target:
            target.write_text(text, newline="", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def csv_text(header, rows):
    """A table as CSV."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def digest_of(*parts, size=16):
    """A digest of bytes, `size` bytes as hexadecimal digits; of the parts one after the other, without their borders."""
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder):
    """Keep other processes from changing a folder meanwhile. Raises UserError if one is doing that."""
    from filelock import FileLock, Timeout  # slow to import, and only needed to write

    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another process is working in {folder}") from None
    except OSError:  # a file system without locks, or the lock of another user
        pass
    try:
        yield
    finally:
        lock.release()
