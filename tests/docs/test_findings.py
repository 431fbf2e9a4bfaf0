"""Every kind of finding that the program can report is explained on the page of its command.

The names are read from the source: from calls of whatever takes a parameter `check`, so that a new kind is seen here
without being reported by a test first.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/polarvault"
PAGES = {"check": "check.md", "verify": "verifybackup.md", "drill": "drill.md", "status": "status.md"}


def parsed(directory: Path) -> list[ast.Module]:
    return [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(directory.rglob("*.py"))]


def makers(modules: list[ast.Module]) -> dict[tuple[str, bool], int]:
    """Return functions, and methods (True), that take a `check`, and its place among what a caller passes."""
    found = {}
    for node in (node for module in modules for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
        names = [argument.arg for argument in node.args.args]
        is_method = names[:1] == ["self"]
        if "check" in names:
            found[node.name, is_method] = names.index("check") - is_method
    return found


def strings(node: ast.AST) -> set[str]:
    """Return the names that an expression or an assignment may give."""
    if isinstance(node, ast.IfExp):
        return strings(node.body) | strings(node.orelse)
    if isinstance(node, ast.Dict):
        return {name for value in node.values for name in strings(value)}
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    return set()


def assigned(module: ast.Module, variable: str) -> set[str]:
    found: set[str] = set()
    for node in (node for node in ast.walk(module) if isinstance(node, ast.Assign)):
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        for name, given in pairs:
            found |= strings(given) if ast.unparse(name) == variable else set()
    return found


def reported(package: str) -> Iterator[str]:
    modules = parsed(SOURCE / package)
    places = makers([*modules, *parsed(SOURCE / "model")])
    for module in modules:
        hands_on = any(isinstance(node, ast.arg) and node.arg == "check" for node in ast.walk(module))
        for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
            is_method = isinstance(call.func, ast.Attribute)
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            given = next((word.value for word in call.keywords if word.arg == "check"), None)
            if given is None and len(call.args) > places.get((name, is_method), len(call.args)):
                given = call.args[places[name, is_method]]
            if given is None:
                continue
            found = strings(given) or assigned(
                module, ast.unparse(given.value if isinstance(given, ast.Subscript) else given)
            )
            # What was given to a function as `check`, or is kept under that name, is seen where it was given.
            is_seen_elsewhere = ast.unparse(given).endswith(".check") or (hands_on and ast.unparse(given) == "check")
            assert found or is_seen_elsewhere, f"{package}: {ast.unparse(call)}"
            yield from found


@pytest.mark.parametrize("package", PAGES)
def test_every_kind_of_finding_is_explained(package: str) -> None:
    page = (ROOT / "docs" / PAGES[package]).read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`([a-z0-9*-]+)`", row)}
    families = tuple(name[:-1] for name in explained if name.endswith("*"))
    names = set(reported(package))
    assert len(names) > 7
    assert {name for name in names - explained if not name.startswith(families or "\0")} == set()
