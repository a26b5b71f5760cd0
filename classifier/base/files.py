"""Files: written whole or not at all, identified by digests, and locked."""

import contextlib
import csv
import errno
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from classifier.base.console import USAGE, UserError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path to write to; what was written then takes the place of `path`, whole, even if the machine loses power.

    It may be a file, a folder, or several files whose names begin with that path (TensorFlow's checkpoints): their
    endings are kept, and they get their names in alphabetical order, each only when the one before has its name for good.
    A link stays a link. After an exception the old ones are in place, or the new ones. Raises OSError.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        for written in _written(partial):
            for file in [written, *written.rglob("*")]:
                sync(file)
            target = path.with_name(written.name.replace(partial.name, path.name, 1))
            with _out_of_the_way(target):
                os.replace(written, target)
            sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            for leftover in _written(partial):
                remove(leftover)
        raise


@contextlib.contextmanager
def _out_of_the_way(target):
    """Move a folder aside, for it could not be replaced, and remove it at the end; after an error, put it back."""
    if not target.is_dir():
        yield
        return
    aside = target.with_name(f"partial-{os.getpid()}-old-{target.name}")
    os.replace(target, aside)
    try:
        yield
    except BaseException:
        os.replace(aside, target)
        raise
    remove(aside)


def _written(partial):
    """What replacing() has written. It lists the folder only if it must: this user may not be allowed to."""
    if partial.exists():
        return [partial]
    return sorted(other for other in partial.parent.iterdir() if other.name.startswith(partial.name))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Raises OSError."""
    if path.is_file():
        with open(path, "r+b") as opened:
            os.fsync(opened.fileno())
        return
    with contextlib.suppress(PermissionError):  # Windows opens no folder, and this user may not be allowed to list it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that cannot do that
                raise
        finally:
            os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing; it stays even if the machine loses power. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder, if that is possible."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file, see replacing(); straight into what is no ordinary file (/dev/stdout). Raises UserError."""
    is_special = os.path.exists(path) and not os.path.isfile(path)
    try:
        with contextlib.nullcontext(Path(path)) if is_special else replacing(path) as target:
            target.write_text(text, newline="", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def check_output(flag: str, path: Path | None, suffix: str, source: Path) -> None:
    """Raise UserError, before any work, if a file to be written has no folder, or could overwrite `source` or a photo."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {flag}", USAGE)
    if path.suffix.lower() != suffix and path.parent != Path("/dev"):  # /dev/stdout
        raise UserError(f"{flag}: {path} does not end in {suffix}", USAGE)
    if path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"{flag} would overwrite {path}, which is read: choose another name", USAGE)


def csv_text(header: Sequence, rows: Iterable[Sequence]) -> str:
    """A table as CSV."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(map(without_formulas, [header, *rows]))
    return text.getvalue()


def without_formulas(row: Sequence) -> list:
    """The cells of a row of CSV; an apostrophe before those that a spreadsheet would take for formulas.

    See OWASP, "CSV Injection". A class or a file can have any name. Numbers stay, and paths, as ./=1.jpg, still lead there.
    """
    return [_without_formula(cell) if isinstance(cell, str | os.PathLike) else cell for cell in row]


def _without_formula(cell):
    text = str(cell)
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")) or re.fullmatch("[-+]?[0-9.]+(e[-+]?[0-9]+)?", text):
        return text
    return f"./{text}" if isinstance(cell, os.PathLike) or os.path.lexists(text) else f"'{text}"


def digest_of(*parts: Any, size: int = 16) -> str:
    """A digest of bytes, `size` bytes as hexadecimal digits; of the parts one after the other, without their borders."""
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing a folder meanwhile. Raises UserError if one is doing that."""
    from filelock import FileLock, Timeout  # slow to import, and only needed to write

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / ".lock", blocking=False))
        except Timeout:
            raise UserError(f"another process is working in {folder}") from None
        except OSError:  # a file system without locks, or the lock of another user
            pass
        yield
