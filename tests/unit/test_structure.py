"""The structure, as docs/architecture.md draws it: imports point one way, between folders as between files."""

import ast
import graphlib

import pytest
from conftest import PROJECT

LEVELS = ["base"], ["cluster"], ["networks", "data"], ["runs"], ["training", "predicting"], ["export", "pages"]
LEVEL_OF = {folder: number for number, folders in enumerate(LEVELS) for folder in folders}
LESSON = {"train.py": 240, "model.py": 100, "dataset.py": 220, "predict.py": 130}  # lines that each may have
BY_PATH = "classifier.networks.by_name", "model"  # loaded from its file: a user's program may have a model.py of its own
OUTSIDE = ("experiments", "tests")  # nothing else imports them
TEST_MODULES = {path.stem: path for path in PROJECT.glob("tests/*.py")}  # on pytest's path: imported without "tests."
PLACES = ("*.py", "classifier/**/*.py", "experiments/**/*.py", "tests/**/*.py")
FILES = [path for place in PLACES for path in PROJECT.glob(place)]
MODULES = {".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imports_of(name, path):
    """The project's modules that a module imports, in any of its functions, too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, [above, node.module]))
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {source}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    found = {f"tests.{module}" if module in TEST_MODULES else module for module in found}
    return found & MODULES.keys()


def room_of(module):
    """Where a module is: "script", a folder of classifier/, "experiments" or "tests"."""
    first, *others = module.split(".")
    return (others[0] if others else "classifier") if first == "classifier" else first if first in OUTSIDE else "script"


def problem_with(importer, imported):
    """What is wrong with an import, in words; None if nothing is."""
    one, other = room_of(importer), room_of(imported)
    if importer == "model":
        return None if imported == "classifier.networks.layers" else "model.py is for all to read"
    if one == other == "script":
        return None if imported in ("dataset", "model") else "scripts share code through classifier/"
    if other in OUTSIDE:
        return None if one == other or one == "tests" else f"nothing but tests imports {other}"
    if one == "classifier":
        allowed = "classifier.data", "classifier.predicting.classifier"  # the limit of pixels, and what it offers
        return None if imported in allowed else "it offers Classifier, nothing else"
    if other == "script" and one in LEVEL_OF:
        return None if importer == BY_PATH[0] and imported == BY_PATH[1] else "the package imports no script by its name"
    if one == other or {one, other} == {"networks", "data"} or not {one, other} <= LEVEL_OF.keys():
        return None  # of networks and data, one may know the other: see below
    return None if LEVEL_OF[one] > LEVEL_OF[other] else f"{one} may not know {other}"


@pytest.fixture(scope="module")
def graph():
    """{module: the modules that it imports}. What classifier/__init__.py offers is loaded when somebody asks for it."""
    graph = {name: imports_of(name, path) for name, path in MODULES.items()}
    importer, imported = BY_PATH
    assert f"{imported}.py" in MODULES[importer].read_text(encoding="utf-8")
    assert imported not in graph[importer]
    return graph | {importer: graph[importer] | {imported}}


def test_imports_point_one_way(graph):
    pairs = [(importer, imported) for importer, modules in graph.items() for imported in sorted(modules)]
    problems = [f"{one} imports {other}: {problem}" for one, other in pairs if (problem := problem_with(one, other))]
    between = {(room_of(one), room_of(other)): f"{one} imports {other}" for one, other in pairs}
    if ("networks", "data") in between and ("data", "networks") in between:
        problems.append(f"{between['networks', 'data']}, and {between['data', 'networks']}")
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_no_imports_run_in_a_circle(graph):
    """Those in functions count."""
    graph = {name: modules if name != "classifier" else set() for name, modules in graph.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"in a circle, each is imported by the next: {', '.join(error.args[1])}", pytrace=False)


def test_the_package_holds_packages_of_at_most_ten_modules():
    entries = {path for path in (PROJECT / "classifier").iterdir() if path.name not in ("__pycache__", "__init__.py")}
    counts = {path.name: len(list(path.glob("*.py"))) - (path / "__init__.py").exists() for path in entries}
    assert counts.keys() == LEVEL_OF.keys()
    assert not {name: count for name, count in counts.items() if not 1 <= count <= 10}


@pytest.mark.parametrize("name", LESSON)
def test_the_lesson_is_short(name):
    count = len((PROJECT / name).read_text(encoding="utf-8").splitlines())
    assert count <= LESSON[name]
