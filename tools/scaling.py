"""Measure what images cost as they become more: python -m tools.scaling

Draws small images of many classes, see many_images.py, and runs the scripts on them. Prints a table: processor time, which
other programs disturb less than time, and the most memory that each script had.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, PROJECT, UserError, number

FIND = """
import sys
from dataset import read_train_sets
sets = read_train_sets(sys.argv[1], 8)
print(f"{len(sets.train)} + {len(sets.valid)}")
"""


def main(argv=None):
    """Parse the command line, measure, print, and return the exit code."""
    parser = argparse.ArgumentParser("python -m tools.scaling", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes",
        type=number(int, 4),
        nargs="+",
        default=[2_000, 14_000, 200_000],
        metavar="N",
        help="numbers of images (default: 2000 14000 200000)",
    )
    parser.add_argument("--classes", type=number(int, 2), default=1000, metavar="N", help="default: 1,000")
    parser.add_argument("--only-find", action="store_true", help="find, decode and split the images, no more")
    arguments = parser.parse_args(argv)
    print("| images | | processor time (s) | for an image (µs) | most memory (MB) |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        for size in arguments.sizes:
            images, output = Path(folder, "images"), Path(folder, "runs")
            draw = ["-m", "tools.many_images", images, "--images", size, "--classes", arguments.classes]
            measure(draw, os.devnull)
            train = ["train.py", "--data-dir", images, "--output", output]
            steps = {
                "find, decode, split": ["-c", FIND, images],
                "train two epochs": [*train, "--image-size", 32, "--batch-size", 128, "--epochs", 2],
                "evaluate": ["evaluate.py", images, "--model", output],
                "predict to CSV": ["predict.py", images, "--model", output, "--format", "csv"],
            }
            steps |= {f"predict share {k} of 4": [*steps["predict to CSV"], "--shard", f"{k}/4"] for k in (1, 2, 3, 4)}
            printed = []
            for what, command in list(steps.items())[: 1 if arguments.only_find else None]:
                printed.append(Path(folder, f"{what}.csv"))
                seconds, memory = measure(command, printed[-1])
                print(f"| {size:,} | {what} | {seconds:.1f} | {1e6 * seconds / size:.0f} | {memory:.0f} |", flush=True)
            if printed[4:] and digest_of_files(printed[4:]) != digest_of_files(printed[3:4]):
                raise UserError("the CSV files of the shares are not that of all images")
            shutil.rmtree(images)
            shutil.rmtree(output, ignore_errors=True)
    return DONE


def measure(command, output):
    """(seconds of processor time, most memory in MB) of Python with these arguments; what it prints goes to a file.

    Memory is its own, without that of files, such as the cache, which the system takes back when others need it.
    Raises UserError if it fails.
    """
    memory = 0
    with open(output, "w") as out, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=PROJECT, stdout=out, stderr=said)
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory = max(memory, *map(int, re.findall(r"RssAnon:\s+(\d+) kB", status) or [0]))
            time.sleep(0.05)
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        if status:
            raise UserError(f"{' '.join(map(str, command))} failed: {said.read().strip()[-300:]}")
    return usage.ru_utime + usage.ru_stime, memory / 1000


def digest_of_files(paths):
    """The digest of files, one after the other."""
    digest = hashlib.blake2b()
    for path in paths:
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


if __name__ == "__main__":
    console.run(main)
