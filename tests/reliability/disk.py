"""What a disk may hold after a loss of power, by the strictest reading of POSIX."""

from pathlib import Path


class Disk:
    """Files and folders after some changes (see faults.Change) to an empty folder `root`, and which of them may be lost.

    What was synced is there: the bytes of a file up to its last sync, and the names in a folder up to its last sync. Of all
    changes after that, any may have reached the disk and any may not, except that changes of one name keep their order and
    that a rename is atomic. Where bytes of a file are lost and later ones are not, zeros are in their place.
    """

    def __init__(self, root):
        self._names = {str(root): 0}  # what is there now: {path: number of the file or folder}
        self._folders = {0}
        self._steps = []  # what may be lost: (files or folders to sync for it to stay, kind, details)
        self._synced = []  # of each step
        self._contents = {}  # of files, by the steps that made them

    def apply(self, change):
        """Make a change; one that a real disk would have refused is none."""
        self._contents.clear()
        getattr(self, f"_{change.kind}")(change)

    @property
    def pending(self):
        """The numbers of the steps that may be lost."""
        return [number for number, synced in enumerate(self._synced) if not synced]

    def state(self, kept, torn=False):
        """{path below the root: bytes, or None for a folder}, if of the pending() steps only `kept` reached the disk.

        With `torn`, only the first half of the last one that writes.
        """
        kept = set(kept)
        writes = {number for number in kept if self._steps[number][1] == "write"}
        last = max(writes, default=None) if torn else None
        steps_of, entries = {}, {}
        for number, (_, kind, details) in enumerate(self._steps):
            if not self._synced[number] and number not in kept:
                continue
            if kind == "names":
                for folder, name, node in details:
                    entries[folder, name] = node
            else:
                steps_of.setdefault(details[0], []).append((number, number == last))
        contents = {node: self._content(tuple(steps)) for node, steps in steps_of.items()}
        return dict(self._walk(0, "", entries, contents))

    def _content(self, steps):
        """The bytes of a file that some steps made; of those that are torn, half is lost."""
        if steps not in self._contents:
            content = bytearray()
            for number, is_torn in steps:
                _, kind, (_, offset, data) = self._steps[number]
                if kind == "truncate":
                    del content[offset:]
                data = data[: len(data) // 2] if is_torn else data
                content.extend(bytes(max(offset - len(content), 0)))
                content[offset : offset + len(data)] = data
            self._contents[steps] = bytes(content)
        return self._contents[steps]

    def _walk(self, folder, prefix, entries, contents):
        for (parent, name), node in entries.items():
            if parent == folder and node is not None:
                is_folder = node in self._folders
                yield prefix + name, None if is_folder else contents.get(node, b"")
                if is_folder:
                    yield from self._walk(node, f"{prefix}{name}/", entries, contents)

    @staticmethod
    def write(files, folder):
        """Write a state() into an empty folder."""
        folder = Path(folder)
        folder.mkdir(parents=True)
        for name, data in files.items():
            if data is None:
                (folder / name).mkdir(parents=True, exist_ok=True)
            else:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)

    def _add(self, needs, kind, *details):
        self._steps.append((needs, kind, details))
        self._synced.append(False)

    def _entry(self, path):
        """(number of the folder, name) of a path; None where there is no such folder."""
        parent, _, name = path.rpartition("/")
        return (self._names[parent], name) if parent in self._names else None

    def _create(self, change, is_folder=False):
        entry = self._entry(change.path)
        if entry is None or change.path in self._names:
            return
        node = self._names[change.path] = len(self._steps) + 1
        if is_folder:
            self._folders.add(node)
        self._add({entry[0]}, "names", (*entry, node))

    def _mkdir(self, change):
        self._create(change, is_folder=True)

    def _write(self, change):
        if change.path in self._names:
            node = self._names[change.path]
            self._add({node}, change.kind, node, change.offset, change.data)

    _truncate = _write

    def _sync(self, change):
        node = self._names.get(change.path)
        for number, (needs, *_) in enumerate(self._steps):
            self._synced[number] |= node in needs

    def _unlink(self, change):
        if change.path in self._names and not any(name.startswith(f"{change.path}/") for name in self._names):
            del self._names[change.path]
            entry = self._entry(change.path)
            self._add({entry[0]}, "names", (*entry, None))

    def _rename(self, change):
        source, target = self._entry(change.path), self._entry(change.other)
        if change.path not in self._names or target is None:
            return
        node = self._names[change.path]
        inside = lambda folder: [name for name in self._names if name == folder or name.startswith(f"{folder}/")]  # noqa: E731
        for name in inside(change.other):
            del self._names[name]
        for name in inside(change.path):
            self._names[change.other + name[len(change.path) :]] = self._names.pop(name)
        self._add({source[0], target[0]}, "names", (*source, None), (*target, node))
