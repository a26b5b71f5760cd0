"""The structure: imports point one way."""

import ast
import graphlib

from conftest import PROJECT

NOUNS = {"dataset", "model"}
FILES = [*PROJECT.glob("*.py"), *PROJECT.glob("classifier/**/*.py"), *PROJECT.glob("tools/**/*.py")]


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
    assert graph["model"] == {"classifier.networks.layers"}, "model.py is for all to read: it needs nothing else of ours"
    for name, imported in graph.items():
        if not name.startswith("tools."):
            assert not imported & scripts, f"{name} imports a script"
            assert not any(other.startswith("tools.") for other in imported), f"{name} imports a tool"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError for a circle
