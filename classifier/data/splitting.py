"""Splitting: which images of a training are for validation. Images that belong together stay on one side."""

import re

from classifier.base.console import NO_DATA, USAGE, UserError
from classifier.base.files import digest_of


def split(members, digests, validation_size):
    """Split the images of one class, a list of positions in `digests`: returns (training, validation), both in order.

    At least two of them must be different. They are ranked by the digest of their bytes. Chance, order and file names have
    no influence: an image stays on its side when others are added, except a few next to the border, and so do its copies.
    """
    ranked = sorted(members, key=lambda i: (digests[i], i))
    borders = [n for n in range(1, len(ranked)) if digests[ranked[n - 1]] != digests[ranked[n]]]  # between two images
    count = next((n for n in borders if n >= round(len(members) * validation_size)), borders[-1])
    return sorted(ranked[count:]), sorted(ranked[:count])


def split_groups(usable, digests, validation_size, group_names=None, near_copies=None):
    """Split images so that each group stays on one side, even if it has images of several classes.

    `usable` is {class: positions in `digests`}. Images are in one group if they have the same digest, the same name in
    `group_names`, or the same id in `near_copies`; both are sequences as long as `digests` (None: alone), and one may be
    missing. Groups are ranked by the digest of their name, or else of an image, so that most stay on their side when others
    are added. In this order a group is chosen for validation if that brings its classes nearer to `validation_size`.
    Returns (training, validation, number of groups), both lists in order of the classes. Raises UserError if a class cannot
    be on both sides.
    """
    positions = [i for members in usable.values() for i in members]
    groups = join_groups(positions, digests, *filter(None, [group_names, near_copies]))
    class_of = {i: name for name, members in usable.items() for i in members}
    counts = [{} for _ in groups]  # {class: its images in the group}
    for group, count in zip(groups, counts, strict=True):
        for i in group:
            count[class_of[i]] = count.get(class_of[i], 0) + 1
    groups_left = {name: sum(name in count for count in counts) for name in usable}  # for training
    for name, number in groups_left.items():
        if number < 2:
            raise UserError(
                f"all {len(usable[name])} images of class {name!r} are in one group: it needs two groups, one to"
                " validate on",
                NO_DATA,
            )
    keys = [min(digest_of(group_names[i].encode()) if group_names else digests[i] for i in group) for group in groups]
    wanted = {name: max(round(len(members) * validation_size), 1) for name, members in usable.items()}
    chosen = _choose(sorted(range(len(groups)), key=lambda g: (keys[g], groups[g])), counts, groups_left, wanted)
    validation = {i for g in chosen for i in groups[g]}
    return [i for i in positions if i not in validation], [i for i in positions if i in validation], len(groups)


def _choose(ranked, counts, groups_left, wanted):
    """The set of those of the ranked groups that are for validation. Raises UserError if a class would have none."""
    chosen, done = set(), dict.fromkeys(wanted, 0)

    def error_with(count):
        """How far the classes of this group are from what is wanted if it is chosen, minus if it is not."""
        return sum((abs(done[c] + n - wanted[c]) - abs(done[c] - wanted[c])) / wanted[c] for c, n in count.items())

    def choose(g):
        chosen.add(g)
        for name, n in counts[g].items():
            done[name] += n
            groups_left[name] -= 1

    def leaves_some(g):
        return all(groups_left[name] > 1 for name in counts[g])

    for g in ranked:
        if error_with(counts[g]) < 0 and leaves_some(g):
            choose(g)
    for name in wanted:
        if not done[name]:  # its groups are large: the one that does least harm
            others = [g for g in ranked if name in counts[g] and leaves_some(g)]
            if not others:
                raise UserError(
                    f"the groups leave no images to validate class {name!r} on: use more or smaller groups, or"
                    " --validation-dir",
                    NO_DATA,
                )
            choose(min(others, key=lambda g: error_with(counts[g])))
    return chosen


def join_groups(positions, *groupings):
    """The connected components of positions that have the same value in any of the groupings, sequences of values.

    None is no value. Returns lists of positions; all in the order of `positions`.
    """
    parent = {i: i for i in positions}

    def root(i):
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for grouping in groupings:
        first = {}
        for i in positions:
            if grouping[i] is not None:
                parent[root(i)] = root(first.setdefault(grouping[i], i))
    groups = {}
    for i in positions:
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def group_names_of(paths, reasons, pattern):
    """What the regular expression finds in each path: its first group in parentheses, or else the whole match.

    Those with a reason why they are skipped need none. Raises UserError if it finds nothing in another.
    """
    matches = [re.search(pattern, path) for path in paths]
    names = [match and match[min(match.re.groups, 1)] for match in matches]
    without = [path for path, name, reason in zip(paths, names, reasons, strict=True) if not (name or reason)]
    if without:
        more = f" and {len(without) - 1} others" if len(without) > 1 else ""
        raise UserError(f"--group-by {pattern!r} finds no group in {without[0]}{more}", USAGE)
    return names
