"""Listing: the images that the arguments of a script name."""

import codecs
import glob
import itertools
import os
import re
import sys
from collections.abc import Sequence

from classifier.base.console import NO_DATA, USAGE, UserError
from classifier.data.decoding import kind_of
from classifier.data.finding import natural_key, walk_images
from classifier.data.tars import is_tar


def list_images(arguments: Sequence[str]) -> list[str]:
    """The paths that the arguments name: files as they are, folders searched, patterns expanded, - read from stdin."""
    paths = []
    for argument in itertools.chain.from_iterable(map(_matching, arguments)):
        if argument == "-":
            paths += _paths_in(sys.stdin.buffer.read() if sys.stdin else b"")
        elif os.path.isdir(argument) or (is_tar(argument) and os.path.isfile(argument)):
            images = walk_images(argument)
            if not images and len(arguments) == 1:
                raise UserError(f"no images in {argument}", NO_DATA)
            paths += [os.path.join(argument, image) for image in images] or [argument]  # which is then an error
        else:
            paths.append(argument)
    if not paths:
        raise UserError("no paths on standard input", NO_DATA)
    return paths


def _matching(argument):
    """The path that an argument is, or the paths that it matches: not every shell expands patterns."""
    path = _path_of(os.fspath(argument))
    if os.path.lexists(path) or not re.search(r"[*?[]", path):
        return [path]
    if not (matching := glob.glob(path, recursive=True)):
        raise UserError(f"no file matches {path}", NO_DATA)
    return sorted(matching, key=natural_key)


def _paths_in(data):
    """The paths in a list: one a line, or with a zero byte after each, as `find -print0` writes them."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # PowerShell writes it
        data = data.decode("utf-16", "replace").encode()
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\0" if b"\0" in data else b"\n")
    paths = [_path_of(os.fsdecode(line.removesuffix(b"\r"))) for line in lines if line.strip()]
    if kind_of(data) and not os.path.lexists(paths[0]):  # and not the name of a file, such as BMW_1.jpg
        raise UserError("standard input is an image: - reads a list of paths, so give the path of the image", USAGE)
    return paths


def _path_of(text):
    """The path in a text: Windows copies paths in quotation marks, file managers as file:// URLs."""
    if re.fullmatch(r"\".+\"|'.+'", text) and not os.path.lexists(text):
        text = text[1:-1]
    if text.startswith("file://"):
        from urllib.request import url2pathname  # it loads much

        return url2pathname(text.removeprefix("file://").removeprefix("localhost"))
    if re.match("https?://", text):
        raise UserError(f"{text} is not a file: download it first", USAGE)
    return text
