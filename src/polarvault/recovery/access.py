"""Can the server's user read the WAL and run the restore_command? Found out before anything is written, not by FATAL.

When root restores, the server belongs to another user; WAL that root received is often closed to that one.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence

from polarvault.errors import StorageFailed
from polarvault.instance.model import Account
from polarvault.instance.programs import run_program
from polarvault.wal.source import WalSource
from polarvault.walarchive.restore_command import restore_command

# No server asks for this file before four thousand million timelines.
_ABSENT_FILE = "FFFFFFFF.history"
_NOT_THERE = 1
# The first and last files tell who made them; a command line has its limits.
_LOOKED_AT = 100
# A receiver at work renames what it has finished; one that is not there any more is no file that cannot be read.
_FIND_UNREADABLE = (
    'n=$1; shift; for f; do if [ "$n" -gt 0 ]; then n=$((n - 1)); test -r "$f" && test -x "$f"; '
    'else test -r "$f" || test ! -e "$f"; fi || { echo "$f"; exit 1; }; done'
)
_TIMEOUT_S = 60.0


def check_readable(source: WalSource, account: Account, paths: Sequence[str]) -> None:
    """Raise StorageFailed if the account cannot read these WAL files or cannot run our restore_command.

    source: where the restore_command is to look; nothing is asked where that is nowhere. paths: files of it.
    """
    directories = source.paths
    if account.uid == os.geteuid() or not source.fetch_options():
        return
    if directories:
        _check_files(directories, account, paths)
    # As the server does it, from left to right: in "%%f" there is no %f.
    replaced = {"%f": _ABSENT_FILE, "%p": os.devnull, "%%": "%"}
    command = re.sub("%[fp%]", lambda found: replaced[found[0]], restore_command(source))
    try:
        outcome = run_program(["sh", "-c", command], account, timeout_s=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise StorageFailed(
            f"the restore_command did not answer within {_TIMEOUT_S:g} s as user {account.name}",
            hint=f"look at the file systems, or the network, behind {source.place}",
        ) from None
    if outcome.returncode != _NOT_THERE:
        raise StorageFailed(
            f"user {account.name}, who runs the restored server, cannot run the restore_command: "
            f"{outcome.stderr.strip() or f'exit status {outcome.returncode}'}",
            hint="install polarvault where that user can read it, or name another user: --owner USER",
            detail=command,
        )


def _check_files(directories: Sequence[str], account: Account, paths: Sequence[str]) -> None:
    sample = [*paths[:_LOOKED_AT], *paths[_LOOKED_AT:][-_LOOKED_AT:]]
    words = ["sh", "-c", _FIND_UNREADABLE, "sh", str(len(directories)), *directories, *sample]
    unreadable = run_program(words, account).stdout.strip()
    if unreadable:
        raise StorageFailed(
            f'user {account.name}, who runs the restored server, cannot read "{unreadable}", which recovery needs',
            hint=f"give them access, for example: chown -R {account.name} {shlex.quote(directories[0])}; or name "
            "another user: --owner USER",
        )
