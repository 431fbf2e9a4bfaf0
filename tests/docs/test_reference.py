"""Pages that are made from the program say what it says of itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_PAGES = """
import json, sys
sys.path.insert(0, sys.argv[1])
import make_reference as made
kinds = [[kind.__name__, vars(kind).get("id"), kind.actor, kind.remedy, kind.__doc__] for kind in made.error_classes()]
print(json.dumps({"pages": {path.name: text for path, text in made.pages().items()}, "kinds": kinds}))
"""


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    finished = subprocess.run([sys.executable, "-c", _PAGES, DOCS], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


@pytest.mark.parametrize("page", ["reference.md", "errors.md"])
def test_a_page_that_is_made_from_the_program_is_current(made: dict[str, Any], page: str) -> None:
    assert made["pages"][page] == (DOCS / page).read_text(encoding="utf-8"), f"run make docs and commit docs/{page}"


def test_every_class_of_error_has_an_id_of_its_own(made: dict[str, Any]) -> None:
    kinds = made["kinds"]
    assert len(kinds) > 20
    without = [name for name, own_id, *_ in kinds if own_id is None]
    assert without == [], "give the class an id, an actor and a remedy (errors.py), then make docs"
    ids = [own_id for _, own_id, *_ in kinds]
    assert sorted(set(ids)) == sorted(ids)
    assert [one for one in ids if not re.fullmatch(r"[a-z]+(-[a-z]+)*", one)] == []
    assert [name for name, _, actor, remedy, words in kinds if not (actor and remedy and words)] == []
