"""The places of the program that make something durable: found in the source, so that none is forgotten."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.system_calls import SOURCE

# What makes things durable, by the name that is called.
_SYNCS = frozenset(
    {
        *("fsync", "fdatasync", "syncfs", "fsync_path", "fsync_parent", "fsync_paths", "fsync_tree"),
        *("sync_directory", "sync_parent", "sync_file", "_sync_directory", "sync"),
    }
)
# What does so when it is told to.
_SYNCS_IF_TOLD = frozenset(
    {"write", "write_durably", "write_configuration", "make_directory", "make_directories", "make_parents"}
)


@dataclass(frozen=True, slots=True, order=True)
class SyncSite:
    """A call: file below src, first and last line; text names it without its place, for lists that outlast moves."""

    path: str
    first_line: int
    last_line: int
    function: str
    called: str

    @property
    def text(self) -> str:
        return f"{os.path.basename(self.path)} {self.function} {self.called}"

    @property
    def lines(self) -> tuple[str, int, int]:
        return self.path, self.first_line, self.last_line


def sync_sites() -> list[SyncSite]:
    """Return every call in the program that makes something durable."""
    root = Path(SOURCE)
    return sorted(
        site
        for path in (root / "polarvault").rglob("*.py")
        for site in _of_module(ast.parse(path.read_text()), str(path.relative_to(root)))
    )


def _of_module(tree: ast.Module, path: str) -> Iterator[SyncSite]:
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and (name := _called(call)) and _makes_durable(call, name):
                yield SyncSite(path, call.lineno, call.end_lineno or call.lineno, function.name, name)


def _called(call: ast.Call) -> str | None:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else None


def _makes_durable(call: ast.Call, name: str) -> bool:
    if name in _SYNCS:
        return True
    told = [keyword.value for keyword in call.keywords if keyword.arg == "sync"]
    if name == "write_durably" and not told:
        return True
    off = [value for value in told if isinstance(value, ast.Constant) and value.value is False]
    return name in _SYNCS_IF_TOLD and bool(told) and not off
