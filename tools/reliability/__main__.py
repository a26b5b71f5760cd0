"""Try what can happen to a run, and count how often a promise is not kept: python -m tools.reliability [CHECK ...]

Prints the rows of the table in results/reliability.md. Folders of trials that failed are kept, and named.
"""

import argparse
import importlib
import shutil
import tempfile
import time
from pathlib import Path

from classifier import console
from classifier.console import DONE, FAILED, say

CHECKS = {
    "kills": "SIGKILL at any moment, SIGTERM and Ctrl-C: resumed, the run ends as if nothing had happened",
    "power_cut": "a loss of power at any moment: the same",
    "damage": "damaged files of a run and of the cache are noticed, and the newest sound checkpoint is used",
    "disks": "full and failing disks: a script goes on, or can be resumed once there is room",
    "together": "two processes at once on one run folder and one cache: nothing is lost",
    "long_run": "thousands of epochs: memory, open files, threads and the disk stay the same",
    "images": "mutated image files: refused with a reason, or decoded to the same pixels every time",
}


def main(argv=None):
    """Run the checks and print a row for each result; returns the exit code."""
    parser = argparse.ArgumentParser("python -m tools.reliability", description=__doc__.splitlines()[0], allow_abbrev=False)
    checks = "; ".join(f"{name}: {what}" for name, what in CHECKS.items())
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"default: all of these. {checks}")
    parser.add_argument("--short", action="store_true", help="fewer trials of each kind, in a few minutes")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other trials (default: 0)")
    arguments = parser.parse_args(argv)
    for name in arguments.checks:
        if name not in CHECKS:
            parser.error(f"no check {name}: choose from {', '.join(CHECKS)}")
    failed = 0
    print("| what was tried | how often | failed | minutes |\n|---|---|---|---|", flush=True)
    for name in arguments.checks or CHECKS:
        check = importlib.import_module(f"tools.reliability.{name}").check
        folder = Path(tempfile.mkdtemp(prefix=f"reliability-{name}-"))
        start, failed_before = time.monotonic(), failed
        for result in check(folder, arguments.short, arguments.seed):
            minutes, start = (time.monotonic() - start) / 60, time.monotonic()
            print(f"| {result.what} | {result.tried:,} | {result.failed} | {minutes:.1f} |", flush=True)
            failed += result.failed
        if failed == failed_before:
            shutil.rmtree(folder)
        else:
            say(f"what failed is in {folder}")
    return FAILED if failed else DONE


if __name__ == "__main__":
    console.run(main)
