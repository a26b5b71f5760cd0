"""Image files that are bad in every way."""

import os
import zlib

from conftest import encoded
from formats import png


def bomb_png(side=60_000):
    """A file of a few hundred bytes that says it holds 3.6 billion pixels."""
    return png(side, side, 2, (b"IDAT", zlib.compress(bytes(1000))))


BAD_FILES = {
    "empty.jpg": (b"", "empty file"),
    "text.jpg": (b"this is not an image", "not an image of a known kind"),
    "renamed.jpg": (encoded(".gif"), "GIF data in a .jpg file: rename it to .gif"),
    "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, not an image: run git lfs pull"),
    "page.png": (b"<!DOCTYPE html><html>404", "a web page, not an image"),
    "bomb.png": (bomb_png(), "too large"),
    "end_missing.jpg": (encoded(".jpg")[:-2], "damaged or truncated JPEG"),
}
for kind in ("JPEG", "PNG", "BMP", "GIF", "WebP", "TIFF"):
    whole = encoded(f".{kind.lower()}")
    BAD_FILES[f"half.{kind.lower()}"] = whole[: len(whole) // 2], f"damaged or truncated {kind}"
REASONS = {name: reason for name, (_, reason) in BAD_FILES.items()} | {"pipe.jpg": "not a file", "gone.jpg": "No such file"}


def add_bad_files(folder):
    """Put a file of every bad kind into a folder."""
    for name, (data, _) in BAD_FILES.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.jpg")  # reading it would never end
    (folder / "gone.jpg").symlink_to("nowhere")
