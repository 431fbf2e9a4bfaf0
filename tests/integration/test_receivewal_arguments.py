"""Wrong command lines: the same exit status as pg_receivewal's, and its words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polarvault.instance.model import Binaries
from support.backups import run_program
from support.program import run_polarvault

pytestmark = pytest.mark.postgres

SAME_WORDS = """
-v
-D x
-D DIR extra
-D DIR -s abc
-D DIR -s -1
-D DIR -s 99999999999
-D DIR -Z foo
-D DIR -Z 1x
-D DIR -E 12
-D DIR -E zz/1
-D DIR --create-slot
-D DIR --drop-slot
--drop-slot
-D DIR --create-slot --drop-slot -S a
-D DIR --synchronous --no-sync
-D DIR -p abc
-D DIR -h /nowhere
-D DIR -h /nowhere -n
-h /nowhere --create-slot -S a
-h /nowhere --drop-slot -S a -E 1/1
-D DIR --if-not-exists -h /nowhere
-D DIR -h /nowhere -s +5
-h /nowhere --drop-slot -S a -E foo
-h /nowhere --drop-slot -S a -s -1
-h /nowhere --drop-slot -S a -Z foo
-D DIR --create-slot -E foo
-D  -h /nowhere
""".strip().splitlines()
SAME_MEANING = {
    "-D DIR -Z gzip:99": "expects a compression level between 1 and 9",
    "-D DIR -Z 10": "expects a compression level between 1 and 9",
    "-D DIR -Z gzip:level": "level",
    "-D DIR -Z --5": "--5",
    "-D DIR -Z gzip:²": "²",
    "-D DIR -s ²": "²",
    "-h /nowhere --drop-slot -S a -Z gzip:99": "expects a compression level between 1 and 9",
    "-D DIR -Z none:1": 'compression algorithm "none" does not accept',
    "-D DIR --nonsense": "option '--nonsense'",
    "-D DIR --no": "option '--no' is ambiguous; possibilities:",
    "-D": "requires an argument",
    "-D DIR --slot": "requires an argument",
    "-D DIR -m": "m",
    "-D DIR -d nonsense=b": "invalid connection option",
}


def first_line(errors: str) -> str:
    """Return what is said, without the program's name."""
    line = errors.splitlines()[0]
    return line.partition("error: ")[2] or line.partition(": ")[2]


def both(installation: Binaries, words: str, directory: Path) -> tuple[tuple[int, str], tuple[int, str]]:
    arguments = words.replace("DIR", str(directory)).split(" ")
    ours = run_polarvault("receivewal", *arguments, check=False, directory=directory)
    theirs = run_program(installation, "pg_receivewal", *arguments)
    assert "Traceback" not in ours.stderr
    assert all(path.name.startswith(".polarvault-receivewal.") for path in directory.iterdir())
    return (ours.returncode, first_line(ours.stderr)), (theirs.returncode, first_line(theirs.stderr))


@pytest.mark.parametrize("words", SAME_WORDS)
def test_a_wrong_command_line_is_refused_in_the_same_words(
    installation: Callable[[int], Binaries], tmp_path: Path, words: str
) -> None:
    ours, theirs = both(installation(18), words, tmp_path)
    assert ours == theirs
    assert ours[0] == 1


@pytest.mark.parametrize("words", SAME_MEANING)
def test_a_wrong_command_line_is_refused_with_the_same_meaning(
    installation: Callable[[int], Binaries], tmp_path: Path, words: str
) -> None:
    ours, theirs = both(installation(18), words, tmp_path)
    assert ours[0] == theirs[0] == 1
    assert SAME_MEANING[words] in ours[1]
    assert SAME_MEANING[words] in theirs[1]


@pytest.mark.parametrize("words", ["-?", "--help", "-? -D", "--help --nonsense", "--version", "-V -D x --nonsense"])
def test_help_and_version_come_first_and_alone(
    installation: Callable[[int], Binaries], tmp_path: Path, words: str
) -> None:
    ours = run_polarvault("receivewal", *words.split(), check=False, directory=tmp_path)
    theirs = run_program(installation(18), "pg_receivewal", *words.split())
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr) == (0, "")
    assert "receivewal" in ours.stdout
