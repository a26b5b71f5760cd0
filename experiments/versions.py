"""Run the tests with the oldest and the newest packages that are allowed: python -m experiments.versions [PYTHON ...]

uv installs them into new environments in a temporary folder. Prints the rows of the table in docs/results/reliability.md.
"""

import argparse
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from classifier.base import console
from classifier.base.console import DONE, FAILED, PROJECT, UserError, say
from experiments.scripts import Parser, print_table

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}  # uv's names: direct, so what our packages need is new
NOT_TESTED = {"torch", "torchvision", "cleanlab"}  # large, and no test needs them
SHOWN = ("tensorflow", "keras", "opencv-python-headless", "numpy")
OUTCOMES = ("passed", "skipped", "failed", "error")


def main(argv: list[str] | None = None) -> int:
    """Run the tests with each Python; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", default=PYTHONS, help="those that this machine has")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, default=[], help="all that follows goes to pytest")
    arguments = parser.parse_args(argv)
    pythons = {version: python for version in arguments.pythons if (python := find_python(version))}
    if not pythons:
        raise UserError("none of these Pythons is on this machine: install one of them, on PATH or with pyenv")
    failures = []

    def rows():
        for (version, python), which in itertools.product(pythons.items(), RESOLUTIONS):
            install(uv, python, which, environment)
            started = time.monotonic()
            passed, skipped, failed = run_tests(environment, arguments.tests)
            failures.append(failed)
            minutes = f"{(time.monotonic() - started) / 60:.1f}"
            yield version, which, versions_in(uv, environment), passed, skipped, failed, minutes

    with tempfile.TemporaryDirectory(prefix="versions-") as folder:
        uv, environment = install_uv(Path(folder) / "uv"), Path(folder) / "environment"
        print_table(["Python", "packages", "versions", "passed", "skipped", "failed", "minutes"], rows())
    return FAILED if any(failures) else DONE


def find_python(version: str) -> str | None:
    """The path of a Python, such as "3.10", on PATH or of pyenv; None, which is said, if there is none."""
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for python in (shutil.which(f"python{version}"), *of_pyenv):  # the first may be a shim of pyenv that leads nowhere
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return python
    say(f"no Python {version} on this machine: left out")
    return None


def execute(*command: object) -> str:
    """Run a command; returns its standard output. Raises UserError with its messages if it fails."""
    finished = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if finished.returncode:
        raise UserError(f"{' '.join(map(str, command[:3]))} failed: {' '.join(finished.stderr.split())}")
    return finished.stdout


def install_uv(folder: Path) -> Path:
    """Install uv into an environment of its own; returns its program."""
    venv.create(folder, with_pip=True)
    say("installing uv")
    execute(folder / "bin/python", "-m", "pip", "install", "--quiet", "uv")
    return folder / "bin/uv"


def requirements() -> list[str]:
    """What the tests need, as in the files of requirements."""
    lines = ((PROJECT / name).read_text().splitlines() for name in ("requirements.txt", "requirements-optional.txt"))
    texts = (line.partition("#")[0].strip() for file in lines for line in file)
    return [text for text in texts if text and re.match(r"[\w-]+", text)[0] not in NOT_TESTED]


def install(uv: Path, python: str, which: str, folder: Path) -> None:
    """Make an environment with the oldest or the newest packages that are wheels for this Python."""
    say(f"installing the {which} packages for {python}")
    execute(uv, "venv", "--quiet", "--clear", "--python", python, folder)
    into = ("--quiet", "--no-build", "--resolution", RESOLUTIONS[which], "--python", folder / "bin/python")
    execute(uv, "pip", "install", *into, *requirements())


def versions_in(uv: Path, environment: Path) -> str:
    """The versions of the main packages, as text."""
    frozen = execute(uv, "pip", "freeze", "--python", environment / "bin/python")
    versions = dict(line.split("==") for line in frozen.splitlines())
    return ", ".join(f"{name} {versions[name]}" for name in SHOWN)


def run_tests(environment: Path, arguments: list[str]) -> list[int]:
    """Run the tests with the Python of an environment; returns how many passed, were skipped, and failed."""
    command = [environment / "bin/python", "-m", "pytest", *arguments]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        sys.stderr.write(line)
        summary = line  # the last one: "2 failed, 300 passed, 7 skipped in 300.00s"
    counts = {outcome: int(number) for number, outcome in re.findall(rf"(\d+) ({'|'.join(OUTCOMES)})", summary)}
    passed, skipped, failed, errors = (counts.get(outcome, 0) for outcome in OUTCOMES)
    if process.wait() and not failed + errors:
        raise UserError(f"pytest failed: {summary.strip()}")
    return [passed, skipped, failed + errors]


if __name__ == "__main__":
    console.run(main)
