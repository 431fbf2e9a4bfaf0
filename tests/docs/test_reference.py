"""The reference page is what the program says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_page_is_current() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from make_reference import reference; print(reference(), end='')"
    )
    made = subprocess.run([sys.executable, "-c", code, DOCS], capture_output=True, text=True, check=True).stdout
    assert made == (DOCS / "reference.md").read_text(encoding="utf-8"), "run make docs and commit docs/reference.md"
