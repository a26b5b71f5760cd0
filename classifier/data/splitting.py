"""Splitting: which images of a training are for validation. Images that belong together stay on one side."""

import collections
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from classifier.base.console import NO_DATA, USAGE, UserError
from classifier.base.files import digest_of
from classifier.data.labels import normal


def members_of(classes: list[str], labels: np.ndarray) -> dict[str, list[int]]:
    """{class: the positions of its images}, from their labels, (n,)."""
    members: dict[str, list[int]] = {name: [] for name in classes}
    for i, label in enumerate(labels.tolist()):
        members[classes[label]].append(i)
    return members


def refuse_small_classes(
    folder: Path, classes: list[str], labels: np.ndarray, digests: list[str], skipped: list[tuple[Path, str]], least: int
) -> None:
    """Raise UserError unless each class has at least so many different images in a folder: 1 or 2.

    `skipped` are the files that cannot be used, each with the reason: it may be the cause.
    """
    for name, positions in members_of(classes, labels).items():
        if len({digests[i] for i in positions}) < least:
            count = ["no usable images", "one usable image", "only copies of one image"][min(len(positions), 2)]
            advice = ": it needs two, one to validate on" if least == 2 else ""
            more = f" and {len(skipped) - 1} others" if len(skipped) > 1 else ""
            cause = f"; skipped: {skipped[0][0]} ({skipped[0][1]}){more}" if skipped else ""
            raise UserError(f"class {name!r} has {count} in {folder}{advice}{cause}", NO_DATA)


def split_classes(
    members: dict[str, list[int]],
    digests: list[str],
    fraction: float,
    names: list[str] | None = None,
    near_copies: dict[str, str] | None = None,
) -> tuple[list[int], list[int], dict]:
    """Split the images of each class: (training, validation, {how: what}), both lists in order of the classes.

    `members`, `names`: see split_groups(). `near_copies`, {digest: group}, stay together, too, unless a class has nothing
    else. Raises UserError if the groups of `names` leave a class without images on one side.
    """
    how: dict[str, int | bool] = {}
    if near_copies:
        how["near_copies"] = len(near_copies) - len(set(near_copies.values()))
        ids = [near_copies.get(digest) for digest in digests]
        try:
            training, validation, how["groups"] = split_groups(members, digests, fraction, names, ids)
            return training, validation, how | {"together": True}
        except UserError:
            how["together"] = False
    if names:
        training, validation, how["groups"] = split_groups(members, digests, fraction, names)
    else:
        sides = [split(positions, digests, fraction) for positions in members.values()]
        training, validation = (sum(parts, []) for parts in zip(*sides, strict=True))
    return training, validation, how


def split(members: list[int], digests: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """Split the images of one class, a list of positions in `digests`: returns (training, validation), both in order.

    At least two of them must be different. They are ranked by the digest of their bytes. Chance, order and file names have
    no influence: an image stays on its side when others are added, except a few next to the border, and so do its copies.
    """
    ranked = sorted(members, key=lambda i: (digests[i], i))
    borders = [n for n in range(1, len(ranked)) if digests[ranked[n - 1]] != digests[ranked[n]]]  # between two images
    count = min(borders, key=lambda n: abs(n - round(len(members) * fraction)))  # many copies of one move it far
    return sorted(ranked[count:]), sorted(ranked[:count])


def split_groups(
    members: dict[str, list[int]],
    digests: Sequence[str],
    fraction: float,
    names: Sequence[str] | None = None,
    near_copies: Sequence[str | None] | None = None,
) -> tuple[list[int], list[int], int]:
    """Split images so that each group stays on one side, even if it has images of several classes.

    `members` is {class: positions in `digests`}. Images are in one group if they have the same digest, the same of `names`,
    or the same id in `near_copies`; both are sequences as long as `digests` (None: alone), and one may be missing. Groups
    are ranked by the digest of their name, or else of an image, so that most stay on their side when others are added. In
    this order a group is chosen for validation if that brings its classes nearer to `fraction`. Returns (training,
    validation, number of groups), both lists in order of the classes. Raises UserError if a class cannot be on both sides.
    """
    class_of = {i: name for name, positions in members.items() for i in positions}
    groups = join_groups(list(class_of), digests, *filter(None, [names, near_copies]))
    counts = [collections.Counter(class_of[i] for i in group) for group in groups]
    groups_left = collections.Counter(name for count in counts for name in count)  # for training
    for name, positions in members.items():
        if groups_left[name] < 2:
            problem = f"--group-by: all {len(positions)} images of class {name!r} are in one group"
            raise UserError(f"{problem}: it needs two, one to validate on, or use --validation-dir", NO_DATA)
    keys = [min(digest_of(names[i].encode()) if names else digests[i] for i in group) for group in groups]
    ranked = sorted(range(len(groups)), key=lambda g: (keys[g], groups[g]))
    wanted = {name: max(round(len(positions) * fraction), 1) for name, positions in members.items()}
    validation = {i for g in _choose(ranked, counts, groups_left, wanted) for i in groups[g]}
    return [i for i in class_of if i not in validation], [i for i in class_of if i in validation], len(groups)


def _choose(ranked, counts, groups_left, wanted):
    """The set of those of the ranked groups that are for validation. Raises UserError if a class would have none."""
    chosen, done = set(), collections.Counter()

    def error_with(g):
        """How far the classes of this group are from what is wanted if it is chosen, minus if it is not."""
        return sum((abs(done[c] + n - wanted[c]) - abs(done[c] - wanted[c])) / wanted[c] for c, n in counts[g].items())

    def leaves_some(g):
        return all(groups_left[name] > 1 for name in counts[g])

    def choose(g):
        chosen.add(g)
        done.update(counts[g])
        groups_left.subtract(counts[g].keys())

    for g in ranked:
        if error_with(g) < 0 and leaves_some(g):
            choose(g)
    for name in wanted:
        if not done[name]:  # its groups are large: the one that does least harm
            others = [g for g in ranked if name in counts[g] and leaves_some(g)]
            if not others:
                problem = f"the groups leave no images to validate class {name!r} on"
                raise UserError(f"{problem}: use more or smaller groups, or --validation-dir", NO_DATA)
            choose(min(others, key=error_with))
    return chosen


def join_groups(positions: Sequence[int], *groupings: Sequence) -> list[list[int]]:
    """The connected components of positions that have the same value in any of the groupings, sequences of values.

    None is no value. Returns lists of positions; all in the order of `positions`.
    """
    parents, groups = {i: i for i in positions}, collections.defaultdict(list)
    for grouping in groupings:
        first: dict = {}
        for i in positions:
            if grouping[i] is not None:
                parents[root_of(parents, i)] = root_of(parents, first.setdefault(grouping[i], i))
    for i in positions:
        groups[root_of(parents, i)].append(i)
    return list(groups.values())


def root_of(parents: dict[int, int] | np.ndarray, i: int) -> int:
    """The root of a position in a forest of `parents`, where a root is its own; shortens the way to it."""
    while parents[i] != i:
        parents[i] = i = parents[parents[i]]
    return i


def group_names_of(paths: Iterable[str], pattern: str) -> list[str]:
    """What the regular expression finds in each path: its first group in parentheses, or else the whole match.

    Raises UserError if it finds nothing in one of them.
    """
    matches = {path: re.search(normal(pattern), normal(path)) for path in paths}
    names = {path: match[min(match.re.groups, 1)] for path, match in matches.items() if match}
    if without := [path for path in matches if not names.get(path)]:
        more = f" and {len(without) - 1} others" if len(without) > 1 else ""
        raise UserError(f"--group-by {pattern!r} finds no group in {without[0]}{more}", USAGE)
    return list(names.values())
