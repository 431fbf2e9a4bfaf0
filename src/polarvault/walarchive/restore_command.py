"""The restore_command that makes a server take its WAL from where it is: this very program, by absolute paths."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from types import MappingProxyType

import polarvault
from polarvault.wal.source import WalSource


def restore_command(
    source: WalSource,
    *,
    system_identifier: int | None = None,
    refuse_empty: bool = False,
    last_segment: str | None = None,
    pfs_cluster: str | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the value of restore_command; what writes it into postgresql.conf has yet to quote it as a value.

    It names the interpreter that runs now and our own file by absolute paths, so that the server's PATH, environment
    and working directory do not matter; the server's user must be able to read both. -I keeps the environment and the
    working directory out, -S leaves out site-packages, which takes longer than a fetch and is loaded when needed.
    pfs_cluster: what the storage is called where the server's pg_wal lies in PFS. environment: what is set for it.
    """
    program = os.path.join(os.path.dirname(os.path.abspath(polarvault.__file__)), "__main__.py")
    words = [_interpreter(), "-I", "-S", program, "wal", "fetch", *source.fetch_options()]
    if system_identifier is not None:
        words += ["--system-identifier", str(system_identifier)]
    if refuse_empty:
        words.append("--refuse-empty")
    if pfs_cluster is not None:
        words += ["--polar_storage_cluster_name", pfs_cluster]
    # A percent sign is the server's; two are one (manual, restore_command).
    if last_segment is not None:
        words += ["--last-segment", last_segment]
    command = shlex.join(words).replace("%", "%%")
    # Python's own status for a file it cannot open is 2, which the server takes for the end of the WAL.
    guard = f"test -r {shlex.quote(program)} || exit 200".replace("%", "%%")
    settings = "".join(f"{name}={shlex.quote(value)} " for name, value in environment.items()).replace("%", "%%")
    # Without exec where something is set: the shell takes no such words in front of it.
    return f'{guard}; {settings or "exec "}{command} %f "%p"'


def _interpreter() -> str:
    # Not resolved: the link in a virtual environment is what finds its packages.
    return os.path.abspath(sys.executable)
