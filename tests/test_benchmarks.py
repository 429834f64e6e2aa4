"""The benchmarks are run by a person, months apart: what they take from loratune must still be there."""

import ast
import importlib
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


def taken_from_loratune(source: str) -> list[tuple[str, str]]:
    """(module, name) of each `from loratune... import name`, those within functions included."""
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [
        (node.module, alias.name)
        for node in imports
        if node.module.split(".")[0] == "loratune"
        for alias in node.names
    ]


def is_there(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_exists(benchmark):
    taken = taken_from_loratune(benchmark.read_text(encoding="utf-8"))
    assert taken
    assert not [f"{module}.{name}" for module, name in taken if not is_there(module, name)]
