"""Measure training and prediction against Keras and PyTorch on this machine: python -m tools.benchmark

All use the same network, the same files and the same batch size. Every measurement is a process of its own. They take turns,
round by round: if the speed of the machine changes, it changes for all of them alike.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from classifier.base import console, cpu
from classifier.base.console import DONE, PROJECT, UserError, number, say
from classifier.base.files import csv_text, write_text
from tools.contenders import LIMIT, MEASUREMENTS, ONEDNN, OURS


def parse_arguments(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description="Measure training and prediction against Keras and PyTorch on this machine.",
        epilog="PyTorch is measured if it is installed: pip install -c requirements-optional.txt torch torchvision",
    )
    add = parser.add_argument
    add("--data-dir", type=Path, default=PROJECT / "training_data", metavar="FOLDER", help="default: training_data")
    add(
        "--batch-sizes",
        type=number(int, 1),
        nargs="+",
        default=[16, 32, 64],
        metavar="N",
        help="for steps on a batch in memory; from files it is 32 (default: 16 32 64)",
    )
    add("--rounds", type=number(int, 1), default=5, metavar="N", help="how often each is measured (default: 5)")
    add("--steps", type=number(int, 1), default=40, metavar="N", help="steps on a batch in memory (default: 40)")
    add("--epochs", type=number(int, 2), default=4, metavar="N", help="epochs from files (default: 4)")
    add("--output", type=Path, default=PROJECT / "results", metavar="FOLDER", help="for the table (default: results)")
    add("--measure", nargs=2, help=argparse.SUPPRESS)  # one measurement, in a process of its own
    return parser.parse_args(argv)


def main(argv=None):
    """Measure everything in turn, print the table and write it as CSV; returns the exit code."""
    arguments = parse_arguments(argv)
    if arguments.measure:
        kind, who = arguments.measure
        print(json.dumps(MEASUREMENTS[kind][who](arguments)))
        return DONE
    absent = [] if importlib.util.find_spec("torchvision") else ["PyTorch"]
    absent += [] if cpu.has_bfloat16() else ["bfloat16"]
    absent += [ONEDNN] if cpu.has_onednn_as_installed() else []  # it would be measured twice
    everything = [(kind, who) for kind, by_who in MEASUREMENTS.items() for who in by_who]
    measured = [(kind, who) for kind, who in everything if not any(word in who for word in absent)]
    figures = {}  # {what: {who: [a figure for each round]}}
    with tempfile.TemporaryDirectory() as folder:
        num_images = link_images(arguments.data_dir, Path(folder))
        for turn, (kind, who) in itertools.product(range(arguments.rounds), measured):
            say(f"round {turn + 1} of {arguments.rounds}: {kind}, {who}")
            for what, figure in measure(kind, who, arguments, folder).items():
                figures.setdefault(what, {}).setdefault(who, []).append(figure)
    header, rows = summarize(figures)
    limited = " (limited)" if os.environ.get("ONEDNN_MAX_CPU_ISA") else ""
    machine = [cpu.name(), f"{cpu.instruction_set()}{limited}", cpu.cores()]
    print("CPU: {}, {}, {} cores".format(*machine), console.aligned([header, *rows]), sep="\n")
    arguments.output.mkdir(parents=True, exist_ok=True)
    name, instructions = (re.sub(r"[^A-Za-z0-9_]+", "-", part).strip("-") for part in machine[:2])
    packages = [package for package in ("tensorflow", "keras", "torch") if importlib.util.find_spec(package)]
    versions = "-".join(package + importlib.metadata.version(package).split("+")[0] for package in packages)
    path = arguments.output / f"bench-{name}-{instructions}-{machine[2]}cores-{versions}-{num_images}images.csv"
    write_text(path, csv_text([*header, "CPU", "instruction set", "cores"], ([*row, *machine] for row in rows)))
    say(f"written to {path}")
    return DONE


def link_images(data_dir, folder):
    """Make class folders of links to the images, which all three can read; returns the number of images."""
    from classifier.data.finding import find_images

    found = find_images(data_dir)
    for i, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
        link = folder / found.classes[label] / f"{i}_{path.name}"  # files in subfolders may have the same names
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path.absolute())
    return len(found.paths)


def measure(kind, who, arguments, folder):
    """Run one measurement in a process of its own: {what: figure}."""
    flags = ["--data-dir", folder, "--steps", arguments.steps, "--epochs", arguments.epochs]
    flags += ["--batch-sizes", *arguments.batch_sizes]
    command = [sys.executable, "-m", "tools.benchmark", "--measure", kind, who, *map(str, flags)]
    environment = dict(os.environ)
    if who.startswith("Keras"):
        environment["TF_ENABLE_ONEDNN_OPTS"] = "1" if who.endswith(ONEDNN) or cpu.has_onednn_as_installed() else "0"
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PROJECT)
    if finished.returncode:
        raise UserError(f"{kind}, {who} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])


def summarize(figures):
    """(header, rows): median, least and greatest of every figure, its share of the limit, and the ratio of ours to it."""
    header = ["what", "who", "median", "least", "greatest", "runs", "of the limit", "ours / this"]
    (limit,) = (statistics.median(values) for values in figures[LIMIT].values())
    rows = []
    for what, by_who in figures.items():
        for who, values in by_who.items():
            median = statistics.median(values)
            shown = [f"{value:.1f}" for value in (median, min(values), max(values))]
            share = f"{median / limit:.0%}" if what.startswith("step") else ""
            ratio = f"{statistics.median(by_who[OURS]) / median:.2f}" if who != OURS and OURS in by_who else ""
            rows.append([what, who, *shown, len(values), share, ratio])
    return header, rows


if __name__ == "__main__":
    console.run(main)
