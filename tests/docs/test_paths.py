"""Pages about the source name files that are there: who follows them must not find that they have moved."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["ARCHITECTURE.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs/internals").glob("*.md")))]
# A path of the project or, shorter, of the package: `verify/wal/check.py`, `tests/docs`, `pyproject.toml`.
_PATH = re.compile(r"`([a-z_]+(?:/[a-z_]+)*/?[A-Za-z_]+\.(?:py|md|toml)|(?:src|tests|docs|bench)/[a-z_/]+)`")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {name for name in _PATH.findall(text) if "/" in name or name.endswith((".md", ".toml"))}
    places = (ROOT, ROOT / "src/polarvault")
    assert {name for name in named if not any((place / name).exists() for place in places)} == set()


def test_every_package_stands_in_the_table_and_in_the_layers() -> None:
    packages = {path.parent.name for path in (ROOT / "src/polarvault").glob("*/__init__.py")}
    table = set(re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE))
    layers = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("layers = [")[1].split("]")[0]
    assert packages - table == set()
    assert packages - set(re.findall(r"polarvault\.([a-z_]+)", layers)) == set()
