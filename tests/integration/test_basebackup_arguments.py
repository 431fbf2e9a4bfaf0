"""Wrong command lines: the same exit status as pg_basebackup's, and its words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polarvault.instance.model import Binaries
from support.backups import run_program
from support.program import run_polarvault

pytestmark = pytest.mark.postgres

SAME_WORDS = """
-D x -F q
-D x -X sometimes
-D x -c slow
-D x -r abc
-D x -s abc
-D x -Z foo
-D x -Ft -Z gzip:workers=2
-D x -Ft -Z zstd:foo=1
-D x -Z 1
-D x -z
-D x -T a
-D x -T a=b=c
-D x -T a=/b
-D x -T /a=b
-D x --waldir=rel
-D x -Ft --waldir=/tmp/abs
-D x -S s -X none
-D x -S s --no-slot
-D x -C
-D x -C --no-slot
-D x -P --no-estimate-size
-D x --no-manifest --manifest-checksums=NONE
-D x --no-manifest --manifest-force-encode
-D x --sync-method=magic
-D x extra
-Ft -D -
-Fp
-D x -t blackhole
-t blackhole -Fp
-t blackhole -X stream
-t blackhole -X none --waldir=/tmp/abs
""".strip().splitlines()
# Ours says more, or comes from another parser: the essential words.
SAME_MEANING = {
    "-D x -r 10": "out of range",
    "-D x -r 2000000": "out of range",
    "-D x -s -1": "-s/--status-interval",
    "-D x -Ft -Z gzip:99": "expects a compression level between 1 and 9",
    "-D x -Ft -Z 10": "expects a compression level between 1 and 9",
    "-D x -Ft -Z gzip:level": "level",
    "-D x -Ft -Z none:1": 'compression algorithm "none" does not accept',
    "-D x --nonsense": "option '--nonsense'",
    "-D": "requires an argument",
    "--no": "option '--no' is ambiguous; possibilities:",
    "-D x -d nonsense=b": "invalid connection option",
    "-D x -h /nowhere": "No such file or directory",
}


def first_line(errors: str) -> str:
    """Return what is said, without the program's name."""
    line = errors.splitlines()[0]
    return line.partition("error: ")[2] or line.partition(": ")[2]


def both(installation: Binaries, words: str, directory: Path) -> tuple[tuple[int, str], tuple[int, str]]:
    ours = run_polarvault("basebackup", *words.split(), check=False, directory=directory)
    theirs = run_program(installation, "pg_basebackup", *words.split())
    assert "Traceback" not in ours.stderr
    assert list(directory.iterdir()) == []
    return (ours.returncode, first_line(ours.stderr)), (theirs.returncode, first_line(theirs.stderr))


@pytest.mark.parametrize("words", SAME_WORDS)
def test_a_wrong_command_line_is_refused_in_the_same_words(
    installation: Callable[[int], Binaries], workspace: Path, words: str
) -> None:
    ours, theirs = both(installation(18), words, workspace)
    assert ours == theirs
    assert ours[0] == 1


@pytest.mark.parametrize("words", SAME_MEANING)
def test_a_wrong_command_line_is_refused_with_the_same_meaning(
    installation: Callable[[int], Binaries], workspace: Path, words: str
) -> None:
    ours, theirs = both(installation(18), words, workspace)
    assert ours[0] == theirs[0] == 1
    assert SAME_MEANING[words] in ours[1]
    assert SAME_MEANING[words] in theirs[1]
