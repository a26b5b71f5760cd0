"""What the tools share: running scripts as a user runs them, and reading tables."""

import csv
import json
import os
import socket
import subprocess
import sys

from classifier.base.console import DONE, PROJECT, UserError


def run_script(script, *arguments, codes=(DONE,)):
    """Run a script in a process of its own; returns its standard output.

    Raises UserError with the last line of its standard error if its exit code is none of `codes`.
    """
    command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape")
    if finished.returncode not in codes:
        *_, reason = ["no reason given", *finished.stderr.strip().splitlines()]
        raise UserError(f"{script} failed: {reason.removeprefix('error: ')}", finished.returncode)
    return finished.stdout


def start_workers(commands, **options):
    """Start Python with each of these lists of arguments, in processes that know of each other: workers on one machine."""
    sockets = [socket.create_server(("localhost", 0)) for _ in commands]
    addresses = [f"localhost:{free.getsockname()[1]}" for free in sockets]
    for free in sockets:
        free.close()
    processes = []
    for index, command in enumerate(commands):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                env=os.environ | {"TF_CONFIG": json.dumps(task)},
                encoding="utf-8",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                **options,
            )
        )
    return processes


def run_workers(commands, **options):
    """start_workers(), and wait until all have ended. Raises UserError with the last line of one that failed."""
    processes = start_workers(commands, **options)
    said = [process.communicate()[1] for process in processes]
    for process, text in zip(processes, said, strict=True):
        if process.returncode:
            *_, reason = ["no reason given", *text.strip().splitlines()]
            raise UserError(f"a worker failed: {reason.removeprefix('error: ')}", process.returncode)


def test_accuracy_of(run, folder):
    """The accuracy of a run on the labelled images in a folder."""
    return json.loads(run_script("evaluate.py", folder, "--model", run, "--format", "json"))["accuracy"]


def checked_out_commit():
    """The commit of this project that is checked out, marked if there are changes."""
    describe = ["git", "-C", PROJECT, "describe", "--always", "--dirty"]
    return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()


def read_table(path, columns, flag):
    """The rows of a CSV file, as lists; [] if there is no file. `columns` are its columns, {name: type}.

    Raises UserError, which names the `flag` for another path, if the file has other columns or is damaged.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = filter(None, csv.reader(file))  # without empty lines
        if header != list(columns):
            raise ValueError(header)
        return [[kind(cell) for kind, cell in zip(columns.values(), row, strict=True)] for row in rows]
    except (ValueError, csv.Error):
        raise UserError(f"{path} is another table, or it is damaged: restore it, or choose another {flag}") from None
