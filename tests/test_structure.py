"""The structure: imports point one way."""

import ast
import graphlib

from conftest import PROJECT

NOUNS = {"dataset", "model"}
FILES = [*PROJECT.glob("*.py"), *PROJECT.glob("classifier/**/*.py"), *PROJECT.glob("experiments/*.py")]


def imports_of(path):
    """Names of the project's modules that a file imports, in any of its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_imports_point_one_way():
    modules = {".".join(path.relative_to(PROJECT).with_suffix("").parts): path for path in FILES}
    graph = {name: imports_of(path) & modules.keys() for name, path in modules.items()}
    scripts = {name for name in modules if "." not in name} - NOUNS
    assert scripts >= {"train", "predict", "evaluate", "export"}
    assert not graph["model"], "model.py is for all to read: it needs nothing of ours"
    for name, imported in graph.items():
        if not name.startswith("experiments."):
            assert not imported & scripts, f"{name} imports a script"
            assert not any(other.startswith("experiments.") for other in imported), f"{name} imports an experiment"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError for a circle
