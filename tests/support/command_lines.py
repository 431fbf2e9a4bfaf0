"""Many command lines of ours in one process, forked for each: what it says and its exit status, as a user sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.program import program_environment

_DRIVER = """
import json, os, sys
from polarvault.cli.main import run
import polarvault.cli.commands.basebackup, polarvault.cli.commands.receivewal, polarvault.server.connection
for number, words in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if child == 0:
        for descriptor in (1, 2):
            os.dup2(os.open(f"{number}.{descriptor}", os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
        status = 255
        try:
            status = run(words)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    open(f"{number}.status", "w").write(str(status))
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """How one command line ended."""

    status: int
    output: str
    errors: str


def run_command_lines(lines: Sequence[Sequence[str]]) -> list[Finished]:
    """Run every command line of `polarvault`, one after the other, each in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="pv-lines-") as name:
        subprocess.run(
            [sys.executable, "-c", _DRIVER], input=json.dumps([list(words) for words in lines]), text=True,
            cwd=name, env=program_environment(), check=True, timeout=600,
        )  # fmt: skip
        return [
            Finished(
                int((Path(name) / f"{number}.status").read_text()),
                (Path(name) / f"{number}.1").read_text(errors="replace"),
                (Path(name) / f"{number}.2").read_text(errors="replace"),
            )
            for number in range(len(lines))
        ]


def environment_for(bindir: Path) -> dict[str, str]:
    """Return the environment for a real program of a directory."""
    return program_environment({"PATH": f"{bindir}:{os.environ['PATH']}"})
