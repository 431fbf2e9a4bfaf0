"""The objects that --json prints, compared with docs/json.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/json.md").read_text(encoding="utf-8")
COMMON = "every command"


def fields_of_page() -> dict[str, set[str]]:
    """Return the fields that the page explains, by section; `[]` stands for each element of a list."""
    sections: dict[str, set[str]] = {}
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title = part.splitlines()[0].strip("`").lower()
        rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
        if title == "events":
            continue
        sections[title] = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    return sections


FIELDS = fields_of_page()


def paths(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            # Names of tablespaces, not of fields.
            path = f"{prefix}.{name}" if prefix else name
            yield path
            if path != "tablespaces":
                yield from paths(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, prefix + "[]")


def checked(command: str, text: str, *, status: int, section: str | None = None) -> dict[str, Any]:
    """Return the only thing that is in a text, an object whose fields are all explained."""
    document: dict[str, Any] = json.loads(text)
    assert (document["schema"], document["command"], document["exit_status"]) == (1, command, status)
    for name in ("began", "ended"):
        assert document[name].endswith("Z")
    took = datetime.fromisoformat(document["ended"]) - datetime.fromisoformat(document["began"])
    assert document["duration_s"] == pytest.approx(took.total_seconds(), abs=1)
    explained = FIELDS[COMMON] | FIELDS[section or command]
    unexplained = sorted(set(paths(document)) - explained)
    assert not unexplained, unexplained
    assert FIELDS[COMMON] - {name for name in FIELDS[COMMON] if "." in name or "[" in name} <= document.keys()
    if document["error"]:
        assert document["error"]["id"] in (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    return document
