"""A look at a folder of images before training: what is in it, and what would spoil a training or a test."""

import collections
from pathlib import Path

import numpy as np

from classifier.base.console import NO_DATA, UserError, aligned, printable, progress
from classifier.base.files import digest_of
from classifier.base.prefetch import prefetch
from classifier.data.duplicates import SIDE, are_compared, grey_image, group_near_copies
from classifier.data.finding import find_images, walk_images
from classifier.data.images import BLANK, BadImageError, decode_with_shape, read_file

DARK, BRIGHT = 25, 240  # grey levels, of 0 to 255: the mean of a very dark or very bright image
TINY = 32  # pixels: the shorter side
EXTREME = 3  # times as wide as high, or as high as wide
SHOWN = 5  # examples of each finding in the table
FINDINGS = {
    "unreadable": "unreadable files",
    "two_classes": "the same image in two classes",
    "leaks": "images that both folders have",
    "exact_copies": "exact copies",
    "near_copies": "near-copies",
    "blank": "blank",
    "very_dark": "very dark",
    "very_bright": "very bright",
    "tiny": "tiny",
    "extreme_shape": "extreme shapes",
}
ADVICE = {
    "unreadable": "They are skipped in training.",
    "two_classes": "At least one of the labels is wrong. A group of near-copies counts, too.",
    "leaks": "A test on images that were trained on shows too high an accuracy.",
    "exact_copies": "The same file more than once.",
    "near_copies": "The same photograph: encoded again, scaled, mirrored, cropped by about 10 %, or brighter.",
    "blank": f"The grey levels have a standard deviation below {BLANK}.",
    "very_dark": f"Of grey levels from 0 to 255, the mean is below {DARK}.",
    "very_bright": f"Of grey levels from 0 to 255, the mean is above {BRIGHT}.",
    "tiny": f"The shorter side has less than {TINY} pixels.",
    "extreme_shape": f"One side is more than {EXTREME} times the other.",
}


def inspect(folder, against=None):
    """Look at all images of a folder, and at those that it shares with the folder `against`. Nothing is written.

    Returns the findings, JSON data, and the labelled images as find_images() does. Each of FINDINGS is a list: of paths; of
    unreadable files, {"path", "reason"}; of groups of copies, {"paths"}, if need be with {"copies": "exact" or "near"}.
    Leaks have "paths" in `folder` and, "against", those in the other one. "classes" are the images of each class, {name:
    count}; "width" and "height" are [lowest, median, highest] in pixels of the usable images. Raises UserError where there
    are none.
    """
    found = find_images(folder)
    return inspect_found(found, against), found


def inspect_found(found, against=None):
    """The findings of inspect() in images that were found already."""
    others = []
    if against is not None:
        if not Path(against).is_dir():
            raise UserError(f"there is no folder {against}", NO_DATA)
        others = [Path(against, path) for path in walk_images(against)[0]]
        if not others:
            raise UserError(f"no images in {against}", NO_DATA)
    paths = found.paths + others
    digests, reasons, shapes, levels, greys = _look_at_all(paths, are_compared(len(paths)))
    usable = [i for i in range(len(found.paths)) if reasons[i] is None]
    counts = np.bincount(found.labels, minlength=len(found.classes)).tolist()
    findings = {
        "folder": str(found.folder),
        "against": against and str(against),
        "images": len(found.paths),
        "classes": dict(zip(found.classes, counts, strict=True)),
    }
    for axis, side in enumerate(("height", "width")):
        sides = [shapes[i][axis] for i in usable]
        findings[side] = [int(np.quantile(sides, q, method="nearest")) for q in (0, 0.5, 1)] if sides else None
    findings["shapes"] = dict(collections.Counter(_shape_of(*shapes[i]) for i in usable).most_common())
    findings["unreadable"] = [
        {"path": str(path), "reason": reason} for path, reason in zip(paths, reasons, strict=True) if reason
    ]
    findings |= _copies(found, paths, digests, _groups(digests, greys))
    findings |= {
        finding: [str(paths[i]) for i in usable if is_odd(*shapes[i], *levels[i])] for finding, is_odd in ODD.items()
    }
    return findings


ODD = {
    "blank": lambda height, width, mean, deviation: deviation < BLANK,
    "very_dark": lambda height, width, mean, deviation: deviation >= BLANK and mean < DARK,
    "very_bright": lambda height, width, mean, deviation: deviation >= BLANK and mean > BRIGHT,
    "tiny": lambda height, width, mean, deviation: min(height, width) < TINY,
    "extreme_shape": lambda height, width, mean, deviation: max(height, width) > EXTREME * min(height, width),
}


def _shape_of(height, width):
    return "square" if height == width else "landscape" if width > height else "portrait"


def _look_at_all(paths, compared):
    """Decode all files: (digests, reasons, shapes, levels, greys), an entry for each path.

    An unreadable file has a reason and no shape and levels, its grey image is blank. Levels are (mean, standard deviation).
    Without `compared`, `greys` is None: they take 9 kB each.
    """

    def look(path):
        try:
            data = read_file(path)
            image, shape = decode_with_shape(path, data, SIDE)
        except BadImageError as error:
            return None, error.reason, None, None, None
        grey = grey_image(image)
        return digest_of(data), None, shape, (float(grey.mean()), float(grey.std())), grey

    greys, rest = np.zeros((len(paths), SIDE, SIDE), np.uint8) if compared else None, []
    with progress("looking at images", len(paths)) as advance:
        for i, (*known, grey) in enumerate(prefetch(look, paths, SIDE**2)):
            rest.append(known)
            if compared and grey is not None:
                greys[i] = grey
            advance()
    return *map(list, zip(*rest, strict=True)), greys


def _groups(digests, greys):
    """Positions of the images in groups of exact and near-copies: lists of at least two."""
    first_of = {}
    for i, digest in enumerate(digests):
        if digest is not None:
            first_of.setdefault(digest, i)
    different = list(first_of.values())
    near = range(len(different)) if greys is None else group_near_copies(greys[different]).tolist()
    near = dict(zip(first_of, near, strict=True))
    groups = collections.defaultdict(list)
    for i, digest in enumerate(digests):
        if digest is not None:
            groups[near[digest]].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _copies(found, paths, digests, groups):
    """The findings about copies, from groups of positions in `paths`: those of the folder come first, then the others."""
    copies = {"two_classes": [], "leaks": [], "exact_copies": [], "near_copies": []}
    name = lambda members: [str(paths[i]) for i in members]  # noqa: E731
    for group in groups:
        mine, others = [i for i in group if i < len(found.paths)], [i for i in group if i >= len(found.paths)]
        by_digest = collections.defaultdict(list)
        for i in mine:
            by_digest[digests[i]].append(i)
        labels = [{found.labels[i] for i in same} for same in by_digest.values()]
        copies["exact_copies"] += [{"paths": name(same)} for same in by_digest.values() if len(same) > 1]
        if len(by_digest) > 1:
            copies["near_copies"].append({"paths": name(mine)})
        if labels and len(set.union(*labels)) > 1:
            copies["two_classes"].append(
                {"copies": "exact" if any(len(same) > 1 for same in labels) else "near", "paths": name(mine)}
            )
        if mine and others:
            copies["leaks"].append(
                {
                    "copies": "exact" if any(digests[i] in by_digest for i in others) else "near",
                    "paths": name(mine),
                    "against": name(others),
                }
            )
    return copies


def describe(entry):
    """One entry of a finding in words: a path, a path with its reason, or the paths of copies."""
    if isinstance(entry, str):
        return entry
    if "reason" in entry:
        return f"{entry['path']}: {entry['reason']}"
    kind = f" ({entry['copies']})" if "copies" in entry else ""
    return " = ".join(entry["paths"] + entry.get("against", [])) + kind


def table_of(findings):
    """The findings for people: the classes, the sizes, then how many of each finding, with examples."""
    lines = [aligned([["class", "images"], *findings["classes"].items()])]
    lines += [
        f"{side}: {low} to {high} pixels, median {middle}"
        for side in ("width", "height")
        if findings[side]
        for low, middle, high in [findings[side]]
    ]
    lines.append("shapes: " + ", ".join(f"{count} {shape}" for shape, count in findings["shapes"].items()))
    for finding, title in FINDINGS.items():
        entries = findings[finding]
        if finding == "leaks" and findings["against"] is None:
            continue
        lines.append(f"{title}: {len(entries) or 'none'}{' groups' if entries and is_groups(entries) else ''}")
        lines += [printable(f"  {describe(entry)}") for entry in entries[:SHOWN]]
        lines += ["  …"] if len(entries) > SHOWN else []
    return "\n".join(lines)


def is_groups(entries):
    """True if the entries of a finding are groups of copies."""
    return isinstance(entries[0], dict) and "paths" in entries[0]


def sections_of(findings, found):
    """What inspect() returns as the sections of a report, see write_report(): each finding, then each class."""
    sections = finding_sections(findings)
    for label, (name, count) in enumerate(findings["classes"].items()):
        members = [i for i, other in enumerate(found.labels) if other == label]
        sections.append((f"Class {name}", f"{count} images", None, [(found.paths[i], found.relative(i)) for i in members]))
    return sections


def finding_sections(findings):
    """The findings of inspect() alone as sections of a report."""
    sizes = [[side, *findings[side]] for side in ("width", "height") if findings[side]]
    sections = [
        ("Classes", "", [["class", "images"], *findings["classes"].items()], []),
        ("Sizes", "In pixels.", [["", "lowest", "median", "highest"], *sizes], []),
    ]
    for finding, title in FINDINGS.items():
        entries = findings[finding]
        if finding == "unreadable":
            rows, images = [["file", "reason"], *([entry["path"], entry["reason"]] for entry in entries)], []
        else:
            rows, images = None, [image for number, entry in enumerate(entries, 1) for image in _images_of(entry, number)]
        if entries:
            sections.append((f"{title[0].upper()}{title[1:]}: {len(entries)}", ADVICE[finding], rows, images))
    return sections


def _images_of(entry, number):
    """The images of one entry of a finding with their captions: copies of each other have the same number."""
    if isinstance(entry, str):
        return [(entry, entry)]
    return [(path, f"{number}: {path}") for path in entry["paths"] + entry.get("against", [])]
