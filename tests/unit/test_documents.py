"""The documents: their links lead somewhere, and their commands name scripts and flags that exist."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENTS = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
DOCUMENTS += sorted((PROJECT / "docs").rglob("*.md"))
SCRIPTS = sorted(path.name for path in PROJECT.glob("*.py"))
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(
    r"(?:(?P<python>python3? )?(?<![\w/.])(?P<script>\w+\.py)|-m (?P<module>(?:experiments|tests)\.[a-z]\w*))\b"
)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def anchors(path):
    """The anchors that GitHub gives the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text):
    """(script, module, text) of the command lines in a document: of all fenced and inline code."""
    code = [line for block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    code += INLINE.findall(FENCED.sub("", text))
    for part in (part for line in code for part in re.split(r"&&|[|;>]|(?:^|\s)#\s", line)):
        for match in COMMAND.finditer(part):
            if match["python"] or match["module"] or FLAG.search(part):
                yield match["script"], match["module"], part[match.end() :]


@functools.cache
def flags_of(*arguments):
    """The flags in the usage of a script or module, by its --help."""
    command = [sys.executable, *arguments, "--help"]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    return {"--help", *FLAG.findall(finished.stdout.split("\n\n")[0])}


@each_document
def test_links_lead_somewhere(path):
    text = INLINE.sub("", FENCED.sub("", path.read_text()))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    for link in (link for link in links if not re.match(r"https?://", link)):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@each_document
def test_commands_exist(path):
    for script, module, rest in commands(path.read_text()):
        if script:
            assert script in SCRIPTS, f"there is no {script}"
        else:
            file = PROJECT / module.replace(".", "/")
            assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), f"there is no module {module}"
        if flags := set(FLAG.findall(rest)):
            unknown = flags - (flags_of(script) if script else flags_of("-m", module))
            assert not unknown, f"{script or module} does not know {unknown}"


@each_document
def test_flags_alone_exist(path):
    text = path.read_text()
    alone = {FLAG.match(code)[0] for code in INLINE.findall(FENCED.sub("", text)) if FLAG.match(code)}
    known = {flag for script in SCRIPTS if script != "model.py" for flag in flags_of(script)}
    modules = {module for _, module, _ in commands(text) if module}
    unknown = {flag for flag in alone - known if not any(flag in flags_of("-m", module) for module in modules)}
    assert not unknown, f"no script knows {unknown}"


def test_readme_fits_on_a_few_screens():
    text = (PROJECT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 1000
