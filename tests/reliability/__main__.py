"""Try what can happen to a run, and count how often a promise is not kept: python -m tests.reliability [CHECK ...]

Prints the rows of the table in docs/results/reliability.md. Folders of trials that failed are kept, and named.
"""

import argparse
import concurrent.futures
import importlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from classifier.base import console, cpu
from classifier.base.console import DONE, FAILED, PROJECT, say

CHECKS = {
    "kills": "SIGKILL at any moment, SIGTERM and Ctrl-C: resumed, the run ends as if nothing had happened",
    "power_cut": "a loss of power at any moment: the same",
    "damage": "damaged files of a run and of the cache are noticed, and the newest sound checkpoint is used",
    "disks": "full and failing disks: a script goes on, or can be resumed once there is room",
    "together": "two processes at once on one run folder and one cache: nothing is lost",
    "workers": "several processes train what one does; if one stops, all stop, and go on together",
    "ways": "files of every form get one answer from predict.py, Classifier, a SavedModel, an HTML page and the demo page",
    "long_run": "thousands of epochs: memory, open files, threads and the disk stay the same",
    "formats": "image files of every form: decoded to what they are made of, or refused with a cause",
    "threads": "a Classifier that several threads use at once: every answer is right",
    "images": "mutated image files: refused with a reason, or decoded to the same pixels every time",
}


def main(argv: list[str] | None = None) -> int:
    """Run the checks and print a row for each result; returns the exit code."""
    parser = argparse.ArgumentParser("python -m tests.reliability", description=__doc__.splitlines()[0], allow_abbrev=False)
    checks = "; ".join(f"{name}: {what}" for name, what in CHECKS.items())
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"default: all of these. {checks}")
    parser.add_argument("--short", action="store_true", help="fewer trials of each kind, in a few minutes")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other trials (default: 0)")
    arguments = parser.parse_args(argv)
    for name in arguments.checks:
        if name not in CHECKS:
            parser.error(f"no check {name}: choose from {', '.join(CHECKS)}")
    if len(arguments.checks) == 1:
        return run_check(arguments.checks[0], arguments.short, arguments.seed)
    options = [*(["--short"] if arguments.short else []), "--seed", str(arguments.seed)]
    command = [sys.executable, "-m", "tests.reliability"]
    with concurrent.futures.ThreadPoolExecutor(cpu.cores()) as pool:  # most trials keep one core busy
        checks = arguments.checks or CHECKS
        processes = pool.map(lambda name: subprocess.run([*command, name, *options], cwd=PROJECT), checks)
        return max(process.returncode for process in processes)


def run_check(name: str, short: bool, seed: int) -> int:
    """Run one check and print a row for each result; returns the exit code."""
    check = importlib.import_module(f"tests.reliability.{name}").check
    folder = Path(tempfile.mkdtemp(prefix=f"reliability-{name}-"))
    failed, start = 0, time.monotonic()
    for what, tried, failures in check(folder, short, seed):
        minutes, start = (time.monotonic() - start) / 60, time.monotonic()
        print(f"| {what} | {tried:,} | {failures} | {minutes:.1f} |", flush=True)
        failed += failures
    if failed:
        say(f"what failed is in {folder}")
        return FAILED
    shutil.rmtree(folder)
    return DONE


if __name__ == "__main__":
    console.run(main)
