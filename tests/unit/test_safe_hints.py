"""No hint tells anybody to delete what may be in use: the words are looked for where hints are written."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src/polarvault"
# A directory or file that is not ours can be the one to be saved.
DANGEROUS = re.compile(
    r"\brm\b|\bremove (?:it|what|them|the director)|\bdelete\b|\bempty it\b|pg_resetwal|kill -9", re.IGNORECASE
)
# What was made by ourselves, and what must not be deleted.
ALLOWED = {
    "drill/place/scratch.py": "the drill's own scratch directory",
    "drill/run.py": "the drill's own scratch directory",
    "report/drill.py": "the drill's own scratch directory",
    "pgfiles/backup_label.py": "never delete it",
    "verify/facts/label.py": "never delete it",
    "walarchive/push.py": "of a server that was reset; without -f it refuses one that was not stopped cleanly",
    "check/polardb/tablespaces.py": "the link of a tablespace that holds nothing, as the line before makes sure",
}


def texts_of_hints(path: Path) -> list[tuple[int, str]]:
    """Return line and constant text of everything that is given as a hint or as advice."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg in ("hint", "advice"):
            for part in ast.walk(node.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    found.append((part.lineno, part.value))
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_hints_do_not_lead_to_the_loss_of_data(path: Path) -> None:
    if str(path.relative_to(SOURCE)) in ALLOWED:
        return
    dangerous = [(line, text) for line, text in texts_of_hints(path) if DANGEROUS.search(text)]
    assert dangerous == []
