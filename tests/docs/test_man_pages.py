"""Manual pages and completions are what the program says of itself, and man and the shells can read them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
COMPLETION = DOCS.parent / "contrib" / "completion"


def made(what: str) -> dict[str, str]:
    code = f"import sys, json; sys.path.insert(0, sys.argv[1]); import make_man; print(json.dumps(make_man.{what}()))"
    found: dict[str, str] = json.loads(
        subprocess.run([sys.executable, "-c", code, DOCS], capture_output=True, text=True, check=True).stdout
    )
    return found


def on_disk(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in directory.iterdir()}


def test_the_manual_pages_are_current() -> None:
    assert made("man_pages") == on_disk(DOCS / "man"), "run make docs and commit docs/man"


def test_the_completions_are_current() -> None:
    assert made("completions") == on_disk(COMPLETION), "run make docs and commit contrib/completion"


def test_man_finds_nothing_to_complain_about_in_any_page() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    for page in sorted((DOCS / "man").iterdir()):
        read = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-rF0", page], capture_output=True, text=True, check=True
        )
        assert read.stderr == "", page


@pytest.mark.parametrize(
    ("words", "expected"),
    [("base", "basebackup"), ("basebackup --chec", "--checkpoint"), ("restore --target-t", "--target-time")],
)
def test_the_program_completes_commands_and_options(words: str, expected: str) -> None:
    environment = os.environ | {
        "COMP_WORDS": f"polarvault {words}",
        "COMP_CWORD": str(len(words.split())),
        "_POLARVAULT_COMPLETE": "bash_complete",
    }
    completed = subprocess.run(
        [sys.executable, "-c", "from polarvault.cli.entry import main; main()"],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert f"plain,{expected}" in completed.stdout.splitlines()
    assert completed.stderr == ""
