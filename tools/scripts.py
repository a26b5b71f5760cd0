"""The scripts, run by tools as a user runs them."""

import subprocess
import sys

from classifier.console import DONE, PROJECT, UserError


def run_script(script, *arguments, codes=(DONE,)):
    """Run a script in a process of its own; returns its standard output.

    Raises UserError with the last line of its errors if its exit code is none of `codes`.
    """
    command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode not in codes:
        *_, reason = ["no reason given", *finished.stderr.strip().splitlines()]
        raise UserError(f"{script} failed: {reason.removeprefix('error: ')}", finished.returncode)
    return finished.stdout
