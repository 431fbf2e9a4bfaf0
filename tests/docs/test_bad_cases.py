"""The page of bad cases names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| .+ \| `(tests/[a-z_/]+\.py)` \| `(test_\w+)` \|$", re.MULTILINE)
ROWS = _ROW.findall((ROOT / "docs/internals/bad-cases.md").read_text(encoding="utf-8"))


def test_every_row_was_read() -> None:
    lines = (ROOT / "docs/internals/bad-cases.md").read_text(encoding="utf-8").splitlines()
    assert len(ROWS) == sum(line.startswith("| ") for line in lines) - 1 > 20


@pytest.mark.parametrize(("path", "name"), ROWS)
def test_a_test_that_is_named_is_there(path: str, name: str) -> None:
    assert f"\ndef {name}" in (ROOT / path).read_text(encoding="utf-8")
