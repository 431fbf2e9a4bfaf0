"""The server itself is asked whether the configuration editor reads a line as it does."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from polarvault.pgconf.grammar import LineSyntaxError, encode, parse_line
from support.cluster import Cluster

pytestmark = pytest.mark.postgres

NAME = b"dynamic_library_path"
PIECES = [*rb"' '' \' \n \101 a B9 # = . - / : 0x1F 12 1.5 \ _ + $".split(b" "), b" ", b"\t", b"\r", b"\xe4"]


def made_up_line(randomness: random.Random) -> bytes:
    body = b"".join(randomness.choice(PIECES) for _ in range(randomness.randint(0, 6)))
    if randomness.random() < 0.5:
        body = b"'" + body + b"'"
    return NAME + randomness.choice([b" = ", b"=", b" ", b"", b"\t"]) + body + randomness.choice([b"", b" # c", b"#c"])


def read_by_us(line: bytes) -> bytes | None:
    """Return the value, or None for what the server must refuse: bad syntax or an unknown name."""
    try:
        parsed = parse_line(line)
    except LineSyntaxError:
        return None
    assert parsed is not None
    return encode(parsed.value) if parsed.name.encode("utf-8", "surrogateescape") == NAME else None


def test_made_up_lines_are_read_as_the_server_reads_them(any_pg: Cluster, workspace: Path) -> None:
    randomness = random.Random(any_pg.installation.major)
    program = str(any_pg.installation.program("postgres"))
    for _ in range(60):
        line = made_up_line(randomness)
        (workspace / "postgresql.conf").write_bytes(line + b"\n")
        answer = subprocess.run(
            [program, "-C", NAME.decode(), "-D", str(workspace)], capture_output=True, check=False, cwd=workspace
        )
        theirs = answer.stdout[:-1] if answer.returncode == 0 else None
        assert read_by_us(line) == theirs, line
