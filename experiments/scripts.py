"""What the experiments share: command lines, scripts run as a user runs them, and tables."""

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from classifier.base.console import DONE, PROJECT, UserError
from classifier.base.files import csv_text, write_text

RESULTS = PROJECT / "docs" / "results"


class Parser(argparse.ArgumentParser):
    """A parser whose help begins with the first line of a docstring, and says all defaults."""

    def __init__(self, doc: str):
        what, _, command = doc.partition("\n")[0].rpartition(": ")
        super().__init__(
            " ".join(command.split()[:3]), description=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )

    def add_folder(self, flag: str, default: Path | str, what: str) -> None:
        """Add a flag for a folder, or a file; `default` may be relative to the project's folder."""
        self.add_argument(flag, type=Path, default=PROJECT / default, metavar="PATH", help=what)


def run_script(script: str, *arguments: object, codes: Sequence[int] = (DONE,)) -> str:
    """Run a script in a process of its own; returns its standard output.

    Raises UserError with the last line of its standard error if its exit code is none of `codes`.
    """
    command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape")
    if finished.returncode not in codes:
        raise UserError(f"{script} failed: {_last_line(finished.stderr)}", finished.returncode)
    return finished.stdout


def _last_line(text: str) -> str:
    return ["no reason given", *text.strip().splitlines()][-1].removeprefix("error: ")


def start_workers(commands: Sequence[Sequence[object]]) -> list[subprocess.Popen]:
    """Start Python with each of these lists of arguments, in processes that know of each other: workers on one machine."""
    sockets = [socket.create_server(("localhost", 0)) for _ in commands]
    addresses = [f"localhost:{free.getsockname()[1]}" for free in sockets]
    for free in sockets:
        free.close()
    processes = []
    for index, command in enumerate(commands):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        environment = os.environ | {"TF_CONFIG": json.dumps(task)}
        processes.append(subprocess.Popen([sys.executable, *map(str, command)], env=environment, **pipes))
    return processes


def run_workers(commands: Sequence[Sequence[object]]) -> None:
    """start_workers(), and wait until all have ended. Raises UserError with the last line of one that failed."""
    processes = start_workers(commands)
    said = [process.communicate()[1] for process in processes]
    for process, text in zip(processes, said, strict=True):
        if process.returncode:
            raise UserError(f"a worker failed: {_last_line(text)}", process.returncode)


def seconds_of(function: Callable, *arguments: object) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def link_images(found, folder: Path, labels: Sequence[int] | None = None) -> list[Path]:
    """Make class folders of links to the images found, see finding.Found, named by their positions; returns the links.

    `labels` are those of the links, if not those found.
    """
    links = []
    for i, (path, label) in enumerate(zip(found.paths, found.labels if labels is None else labels, strict=True)):
        links.append(folder / found.classes[label] / f"{i}{path.suffix}")
        links[-1].parent.mkdir(parents=True, exist_ok=True)
        links[-1].symlink_to(path.absolute())
    return links


def record_of(run: Path) -> dict:
    """What the record of a run says."""
    return json.loads((run / "model.json").read_text())


def history_of(run: Path) -> list[dict[str, float]]:
    """The figures of every epoch of a run."""
    with open(run / "history.csv", newline="") as file:
        return [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def test_accuracy_of(run: Path, folder: Path) -> float:
    """The accuracy of a run on the labelled images in a folder."""
    return json.loads(run_script("evaluate.py", folder, "--model", run, "--format", "json"))["accuracy"]


def checked_out_commit() -> str:
    """The commit of this project that is checked out, marked if there are changes."""
    describe = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty"]
    return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with these columns; [] if there is no file. Raises UserError for another table."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != list(columns) or any(None in (*row, *row.values()) for row in rows):
        raise UserError(f"{path} is another table, or it is damaged: restore it, or choose another")
    return rows


def add_to_table(path: Path, columns: Sequence[str], key: int, cells: Sequence[object]) -> None:
    """Put a row into a CSV file, in place of one whose first `key` cells are the same."""
    row = dict(zip(columns, map(str, cells), strict=True))
    rows = [other for other in read_table(path, columns) if list(other.values())[:key] != list(row.values())[:key]]
    write_text(path, csv_text(columns, [each.values() for each in (*rows, row)]))


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table in Markdown, each row as soon as it is there."""
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|", flush=True)
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)
