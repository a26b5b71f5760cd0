"""Run the tests with the oldest and the newest packages that the requirements allow: python -m tools.versions [PYTHON ...]

uv installs them into new environments in a temporary folder. Before the tests, pip-audit looks for known holes in them.
Prints the rows of the table in results/reliability.md.
"""

import argparse
import json
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

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}  # uv's names: direct, so what our packages need is new
NOT_TESTED = {"torch", "torchvision", "cleanlab"}  # large, and no test needs them
SHOWN = ("tensorflow", "keras", "opencv-python", "numpy")
OUTCOMES = ("passed", "skipped", "failed", "error")


def main(argv=None):
    """Audit the packages, run the tests with each Python; returns the exit code."""
    parser = argparse.ArgumentParser("python -m tools.versions", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help=f"default: {' '.join(PYTHONS)}")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, default=[], help="all that follows goes to pytest")
    arguments = parser.parse_args(argv)
    pythons = {version: python for version in arguments.pythons or PYTHONS if (python := find_python(version))}
    if not pythons:
        raise UserError("none of these Pythons is on this machine: install one of them, on PATH or with pyenv")
    fine = True
    with tempfile.TemporaryDirectory(prefix="versions-") as folder:
        tools = install_tools(Path(folder) / "tools")
        newest = list(pythons.values())[-1]
        for which in RESOLUTIONS:
            holes, mended = audit(tools, install(tools, newest, which, Path(folder) / which))
            print(f"{which}: {holes}", flush=True)
            fine &= not mended
        print(f"\n| Python | packages | versions | passed | skipped | failed | minutes |\n{'|---' * 7}|", flush=True)
        for version, python in pythons.items():
            for which in RESOLUTIONS:
                environment = install(tools, python, which, Path(folder) / which)
                start = time.monotonic()
                passed, skipped, failed = run_tests(environment, arguments.tests)
                minutes = (time.monotonic() - start) / 60
                cells = (version, which, versions_in(tools, environment), passed, skipped, failed, f"{minutes:.1f}")
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
                fine &= failed == 0
    return DONE if fine else FAILED


def find_python(version):
    """The path of a Python, such as "3.10", on PATH or of pyenv; None, which is said, if there is none."""
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for python in (shutil.which(f"python{version}"), *of_pyenv):  # the first may be a shim of pyenv that leads nowhere
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return python
    say(f"no Python {version} on this machine: left out")
    return None


def execute(*command):
    """Run a command; returns its standard output. Raises UserError with its messages if it fails."""
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise UserError(f"{' '.join(map(str, command[:3]))} failed: {' '.join(finished.stderr.split())}")
    return finished.stdout


def install_tools(folder):
    """Install uv and pip-audit into an environment of their own; returns the folder of their programs."""
    venv.create(folder, with_pip=True)
    say("installing uv and pip-audit")
    execute(folder / "bin/python", "-m", "pip", "install", "--quiet", "uv", "pip-audit")
    return folder / "bin"


def requirements():
    """What the tests need, as in the files of requirements."""
    lines = ((PROJECT / name).read_text().splitlines() for name in ("requirements.txt", "requirements-optional.txt"))
    texts = (line.partition("#")[0].strip() for file in lines for line in file)
    return [text for text in texts if text and re.match(r"[\w-]+", text)[0] not in NOT_TESTED]


def install(tools, python, which, folder):
    """Make an environment with the oldest or the newest packages that are wheels for this Python; returns `folder`."""
    say(f"installing the {which} packages for {python}")
    execute(tools / "uv", "venv", "--quiet", "--clear", "--python", python, folder)
    into = ("--quiet", "--no-build", "--resolution", RESOLUTIONS[which], "--python", folder / "bin/python")
    execute(tools / "uv", "pip", "install", *into, *requirements())
    return folder


def versions_in(tools, environment):
    """The versions of the main packages, as text."""
    frozen = execute(tools / "uv", "pip", "freeze", "--python", environment / "bin/python")
    versions = dict(line.split("==") for line in frozen.splitlines())
    return ", ".join(f"{name} {versions[name]}" for name in SHOWN)


def audit(tools, environment):
    """The known holes of the packages as text, and whether a newer release mends one; or why they are not known."""
    (packages,) = environment.glob("lib/python*/site-packages")
    command = [tools / "pip-audit", "--format", "json", "--path", packages]
    finished = subprocess.run(command, capture_output=True, text=True)
    try:
        answers = json.loads(finished.stdout)["dependencies"]
    except ValueError:
        *_, reason = ["no answer", *finished.stderr.strip().splitlines()]
        return f"not audited: {reason}", False
    audited = [answer for answer in answers if "skip_reason" not in answer]
    if not audited:  # pip-audit itself calls that "No known vulnerabilities found"
        return f"not audited: the package index tells no holes ({answers[0]['skip_reason']})", False
    holes = [(answer, hole) for answer in audited for hole in answer["vulns"]]
    texts = [
        f"{answer['name']} {answer['version']} {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'none'}"
        for answer, hole in holes
    ]
    text = f"{len(audited)} of {len(answers)} packages audited, {len(holes)} known holes"
    return "; ".join([text, *texts]), any(hole["fix_versions"] for _, hole in holes)


def run_tests(environment, arguments):
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
    return passed, skipped, failed + errors


if __name__ == "__main__":
    console.run(main)
