"""Run polarvault as a user does: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from polarvault.instance.account import server_account


def command_line(*arguments: str | os.PathLike[str], as_server: bool = False) -> list[str]:
    """Return the words that run polarvault, as us or as the user that servers run as.

    The second is for `restore --start` under root: PostgreSQL does not start as root.
    """
    words = list(map(os.fspath, arguments))
    return server_account().polarvault(*words) if as_server else [sys.executable, "-m", "polarvault", *words]


def program_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return our environment without PG variables, so that nothing outside a test decides what it connects to."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    # A home without .pgpass and service file; plain output whatever terminal runs the tests.
    return kept | {"HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "NO_COLOR": "1", "COLUMNS": "120"} | dict(more or {})


def start_polarvault(
    *arguments: str | os.PathLike[str],
    as_server: bool = False,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> subprocess.Popen[str]:
    """Start polarvault and return at once; output and errors are pipes."""
    return subprocess.Popen(
        command_line(*arguments, as_server=as_server),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=program_environment(environment), cwd=directory or "/",
    )  # fmt: skip


def run_polarvault(
    *arguments: str | os.PathLike[str],
    as_server: bool = False,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    check: bool = True,
    timeout_s: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run polarvault to its end; unless `check` is false, fail with its output when it fails."""
    finished = subprocess.run(
        command_line(*arguments, as_server=as_server),
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=program_environment(environment), cwd=directory or "/", timeout=timeout_s, check=False,
    )  # fmt: skip
    if check and finished.returncode != 0:
        command = " ".join(map(str, arguments))
        raise AssertionError(
            f"polarvault {command}\nexit status {finished.returncode}\n{finished.stdout}{finished.stderr}"
        )
    return finished
