"""A look at a folder of images before training: what is in it, and what would spoil a training or a test."""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classifier.base.console import NO_DATA, UserError, aligned, printable, progress, say
from classifier.base.files import digest_of
from classifier.base.prefetch import prefetch
from classifier.data.finding import Found, walk_images
from classifier.data.images import BLANK, DIM, BadImageError, decode, fit_square, flaw_of, read_file
from classifier.data.near_copies import SIDE, are_compared, grey_image, group_near_copies

DARK, BRIGHT = 25, 240  # grey levels, of 0 to 255: the mean of a very dark or very bright image
TINY = 32  # pixels: the shorter side
EXTREME = 3  # times as wide as high, or as high as wide
SHOWN = 5  # examples of each finding in the table
FINDINGS = {  # of each its title, and what to make of it
    "unreadable": ("unreadable files", "They are skipped in training."),
    "two_classes": (
        "the same image in two classes",
        "At least one of the labels is wrong. A group of near-copies counts, too.",
    ),
    "leaks": ("images that both folders have", "A test on images that were trained on shows too high an accuracy."),
    "exact_copies": ("exact copies", "The same file more than once."),
    "near_copies": (
        "near-copies",
        "The same photograph: encoded again, scaled, mirrored, cropped by about 10 %, or brighter.",
    ),
    "blank": ("blank", f"The grey levels have a standard deviation below {BLANK}."),
    "dim": (
        "dim",
        f"Of grey levels from 0 to 255, all are below {DIM}, as of 12-bit values in 16-bit files: multiply these by 16.",
    ),
    "very_dark": ("very dark", f"Of grey levels from 0 to 255, the mean is below {DARK}."),
    "very_bright": ("very bright", f"Of grey levels from 0 to 255, the mean is above {BRIGHT}."),
    "tiny": ("tiny", f"The shorter side has less than {TINY} pixels."),
    "extreme_shape": ("extreme shapes", f"One side is more than {EXTREME} times the other."),
}
COPIES = ("two_classes", "leaks", "exact_copies", "near_copies")
ODD = {
    "blank": lambda height, width, flaw, mean: flaw == "blank",
    "dim": lambda height, width, flaw, mean: flaw == "dim",
    "very_dark": lambda height, width, flaw, mean: not flaw and mean < DARK,
    "very_bright": lambda height, width, flaw, mean: not flaw and mean > BRIGHT,
    "tiny": lambda height, width, flaw, mean: min(height, width) < TINY,
    "extreme_shape": lambda height, width, flaw, mean: max(height, width) > EXTREME * min(height, width),
}


def inspect_found(found: Found, against: Path | None = None) -> dict:
    """Look at all found images, and at those that they share with the folder `against`. Nothing is written.

    Returns the findings, JSON data. Each of FINDINGS is a list: of paths; of unreadable files, {"path", "reason"}; of groups
    of copies, {"paths"}, if need be with {"copies": "exact" or "near"}. Leaks have "paths" of those found and, "against",
    in the other folder. "classes" are the images of each class, {name: count}; "width" and "height" are [lowest, median,
    highest] in pixels of the usable images. Raises UserError where there are none in `against`.
    """
    others = []
    if against is not None:
        if not Path(against).is_dir():
            raise UserError(f"--against: {against} is not a folder", NO_DATA)
        others = [Path(against, path) for path in walk_images(against)]
        if not others:
            raise UserError(f"no images in {against}", NO_DATA)
    paths = found.paths + others
    digests, reasons, shapes, levels, greys = _look_at_all(paths, are_compared(len(paths)))
    usable = [i for i in range(len(found.paths)) if reasons[i] is None]
    counts = np.bincount(found.labels, minlength=len(found.classes)).tolist()
    findings: dict[str, Any] = {
        "folder": str(found.folder),
        "against": against and str(against),
        "images": len(found.paths),
        "classes": dict(zip(found.classes, counts, strict=True)),
    }
    for axis, side in enumerate(("height", "width")):
        sides = [shapes[i][axis] for i in usable]
        findings[side] = [int(np.quantile(sides, q, method="nearest")) for q in (0, 0.5, 1)] if sides else None
    forms = ("square" if h == w else "landscape" if w > h else "portrait" for h, w in (shapes[i] for i in usable))
    findings["shapes"] = dict(collections.Counter(forms).most_common())
    findings["unreadable"] = [
        {"path": str(path), "reason": reason} for path, reason in zip(paths, reasons, strict=True) if reason
    ]
    findings |= _copies(found, paths, digests, greys)
    return findings | {
        finding: [str(paths[i]) for i in usable if is_odd(*shapes[i], *levels[i])] for finding, is_odd in ODD.items()
    }


def _look_at_all(paths, compared):
    """Decode all files: (digests, reasons, shapes, levels, greys), an entry for each path.

    An unreadable file has a reason and no shape and levels, its grey image is blank. Levels are (flaw, mean).
    Without `compared`, `greys` is None: they take 9 kB each.
    """

    def look(path):
        try:
            data = read_file(path)
            image, shape = decode(path, data, SIDE)
        except BadImageError as error:
            return None, error.reason, None, None, None
        grey = grey_image(fit_square(image, SIDE, "squash"))
        return digest_of(data), None, shape, (flaw_of(grey), float(grey.mean())), grey

    greys, rest = np.zeros((len(paths), SIDE, SIDE), np.uint8) if compared else None, []
    with progress("looking at images", len(paths)) as advance:
        for i, (*known, grey) in enumerate(prefetch(look, paths, SIDE**2)):
            rest.append(known)
            if greys is not None and grey is not None:
                greys[i] = grey
            advance()
    return *map(list, zip(*rest, strict=True)), greys


def _copies(found, paths, digests, greys):
    """The findings about copies; each is in the order of `paths`: those of the folder come first, then the others."""
    exact: dict[str, list] = collections.defaultdict(list)  # {digest: positions}
    for i, digest in enumerate(digests):
        if digest is not None:
            exact[digest].append(i)
    firsts = [positions[0] for positions in exact.values()]
    near = firsts if greys is None else group_near_copies(greys[firsts]).tolist()
    groups = collections.defaultdict(list)  # of near-copies: the positions of each different image
    for group, positions in zip(near, exact.values(), strict=True):
        groups[group].append(positions)
    copies, count = {kind: [] for kind in COPIES}, len(found.paths)
    name = lambda positions: [str(paths[i]) for i in sorted(positions)]  # noqa: E731
    for group in groups.values():
        mine = [own for own in ([i for i in positions if i < count] for positions in group) if own]
        all_mine, others = sum(mine, []), [i for positions in group for i in positions if i >= count]
        labels = [{found.labels[i] for i in own} for own in mine]
        copies["exact_copies"] += [{"paths": name(own)} for own in mine if len(own) > 1]
        if len(mine) > 1:
            copies["near_copies"].append({"paths": name(all_mine)})
        if len(set().union(*labels)) > 1:
            kind = "exact" if any(len(same) > 1 for same in labels) else "near"
            copies["two_classes"].append({"copies": kind, "paths": name(all_mine)})
        if mine and others:
            kind = "exact" if any(positions[0] < count <= positions[-1] for positions in group) else "near"
            copies["leaks"].append({"copies": kind, "paths": name(all_mine), "against": name(others)})
    return copies


def table_of(findings: dict) -> str:
    """The findings for people: the classes, the sizes, then how many of each finding, with examples."""
    lines = [aligned([["class", "images"], *findings["classes"].items()])]
    for side in ("width", "height"):
        if findings[side]:
            lines.append("{}: {} to {} pixels, median {}".format(side, *(findings[side][k] for k in (0, 2, 1))))
    lines.append("shapes: " + ", ".join(f"{count} {shape}" for shape, count in findings["shapes"].items()))
    for finding, (title, _) in FINDINGS.items():
        entries = findings[finding]
        if finding == "leaks" and findings["against"] is None:
            continue
        groups = " groups" if entries and finding in COPIES else ""
        lines.append(f"{title}: {len(entries) or 'none'}{groups}")
        lines += [printable(f"  {_in_words(entry)}") for entry in entries[:SHOWN]]
        lines += ["  …"] if len(entries) > SHOWN else []
    return "\n".join(lines)


def _in_words(entry):
    """One entry of a finding in words: a path, a path with its reason, or the paths of copies."""
    if isinstance(entry, str):
        return entry
    if "reason" in entry:
        return f"{entry['path']}: {entry['reason']}"
    kind = f" ({entry['copies']})" if "copies" in entry else ""
    return " = ".join(_paths_of(entry)) + kind


def _paths_of(entry):
    """The paths of images in one entry of a finding."""
    return [entry] if isinstance(entry, str) else entry["paths"] + entry.get("against", [])


def finding_sections(findings: dict) -> list[tuple]:
    """The findings as sections of a report, see write_report()."""
    sizes = [[side, *findings[side]] for side in ("width", "height") if findings[side]]
    sections: list[tuple] = [
        ("Classes", "", [["class", "images"], *findings["classes"].items()], []),
        ("Sizes", "In pixels.", [["", "lowest", "median", "highest"], *sizes], []),
    ]
    for finding, (title, advice) in FINDINGS.items():
        rows, images, entries = None, [], findings[finding]
        if finding == "unreadable":
            rows = [["file", "reason"], *([entry["path"], entry["reason"]] for entry in entries)]
        else:  # copies of each other have the same number
            for number, entry in enumerate(entries, 1):
                prefix = "" if isinstance(entry, str) else f"{number}: "
                images += [(path, f"{prefix}{path}") for path in _paths_of(entry)]
        if entries:
            sections.append((f"{title[0].upper()}{title[1:]}: {len(entries)}", advice, rows, images))
    return sections


def class_sections(found: Found) -> list[tuple]:
    """The images of each class as sections of a report."""
    images = collections.defaultdict(list)
    for i, label in enumerate(found.labels):
        images[label].append((found.paths[i], found.relative(i)))
    return [(f"Class {found.classes[label]}", f"{len(shown)} images", None, shown) for label, shown in images.items()]


def warn_of_flaws(flawed: dict[str, list[Path]], num_images: int) -> None:
    """Warn of images of little use, among so many: see images.flaw_of()."""
    meanings = {
        "blank": "show nothing but one colour: there is little to learn from them",
        "dim": f"use only the lowest 1/{256 // DIM} of the grey levels: multiply 12-bit values in 16-bit files by 16",
    }
    for flaw, paths in flawed.items():
        if paths:
            count = f"all {num_images}" if len(paths) == num_images else f"{len(paths)} of {num_images}"
            say(f"warning: {count} images, such as {paths[0]}, {meanings[flaw]}")


def warn_of_contradictions(paths: Sequence[Path], labels: np.ndarray, digests: list[str]) -> None:
    """Warn of images that are in more than one class: at least one of their labels is wrong."""
    text = "images are in two classes, such as {}: remove those whose class is wrong"
    _warn_of_copies(paths, digests, lambda i, first: labels[i] != labels[first], text)


def warn_of_copies(paths: Sequence[Path], digests: list[str], num_train: int) -> None:
    """Warn of images for validation, those after the first `num_train`, that are trained on, too."""
    text = "validation images are trained on, too, such as {}: the validation accuracy will be too high"
    _warn_of_copies(paths, digests, lambda i, first: first < num_train <= i, text)


def _warn_of_copies(paths, digests, spoils, text):
    """Warn of the copies that spoil something; spoils(i, first): positions of an image, and of the first one equal to it."""
    first: dict[str, int] = {}
    if copies := [i for i, digest in enumerate(digests) if spoils(i, first.setdefault(digest, i))]:
        example = f"{paths[copies[0]]}, a copy of {paths[first[digests[copies[0]]]]}"
        say(f"warning: {len(copies)} {text.format(example)}")
