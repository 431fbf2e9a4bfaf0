"""The scratch place of a drill: one directory of its own, marked as a drill's, and what killed drills left behind.

A mark (drill.json) is written before anything else, so that whatever a SIGKILL leaves can be recognised. The copy lies
in `data`, tablespaces in `tablespaces`; the socket in `socket`, or, when that path is too long, in the system's
temporary directory, which the mark then names.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator

from polarvault.drill.place.isolation import HBA, fits_socket
from polarvault.drill.place.processes import postmaster_of, started_at
from polarvault.errors import StorageFailed, UsageError
from polarvault.instance.model import Account
from polarvault.instance.session import acting_as
from polarvault.model.finding import Finding, Severity
from polarvault.storage.below import Below
from polarvault.storage.files import storage_failed

_PREFIX = "polarvault-drill-"
_MARK = "drill.json"
_REMOVE_ATTEMPTS = 5


class Scratch:
    """A directory that does not exist until `make`, and that `remove` takes away with everything in it."""

    def __init__(self, parent: str) -> None:
        self.parent = parent
        name = _PREFIX + secrets.token_hex(4)
        self.directory = os.path.join(parent, name)
        self.data = os.path.join(self.directory, "data")
        self.hba_file = os.path.join(self.directory, "pg_hba.conf")
        self.ident_file = os.path.join(self.directory, "pg_ident.conf")
        inside = os.path.join(self.directory, "socket")
        self.socket_directory = inside if fits_socket(inside) else os.path.join(tempfile.gettempdir(), name + "-s")
        if not fits_socket(self.socket_directory):
            raise UsageError(
                f'neither "{parent}" nor "{tempfile.gettempdir()}" is short enough for the path of a socket',
                hint="name a directory with a shorter path: --scratch /tmp, or set TMPDIR",
            )
        self._made: list[str] = []
        self._backup = ""
        self._stop = ""

    def make(self, account: Account, backup: str, stop: str) -> None:
        """Make the directories for the account, nobody else may enter them, and leave the mark.

        stop: the line that stops the server there, for whoever finds it after a SIGKILL.
        """
        self._backup, self._stop = backup, stop
        try:
            self._make_directory(self.directory, account)
            self._mark(kept=False)
            self._make_directory(self.socket_directory, account)
            for path, content in ((self.hba_file, HBA), (self.ident_file, b"")):
                self._write(path, content, account)
        except OSError as problem:
            raise storage_failed(problem, "create", problem.filename or self.directory) from problem
        with acting_as(account):
            try:
                os.listdir(self.directory)
            except OSError as problem:
                raise StorageFailed(
                    f'user {account.name}, who runs the drill\'s server, cannot enter "{self.directory}"',
                    hint="name a directory that this user can enter: --scratch DIR",
                ) from problem

    def keep(self) -> None:
        """Mark the directory as kept on purpose, so that later drills do not take it for a leftover."""
        self._mark(kept=True)

    def remove(self) -> list[str]:
        """Remove what was made; return the paths that would not go away. Safe to call twice."""
        for path in self._made:
            for _ in range(_REMOVE_ATTEMPTS):
                shutil.rmtree(path, ignore_errors=True)
                if not os.path.lexists(path):
                    break
        return [path for path in self._made if os.path.lexists(path)]

    def _make_directory(self, path: str, account: Account) -> None:
        # Noted only once it is ours: a name that is taken already is not ours to remove.
        os.mkdir(path, 0o700)
        self._made.append(path)
        if os.geteuid() == 0:
            os.chown(path, account.uid, account.gid)

    def _mark(self, *, kept: bool) -> None:
        pid = os.getpid()
        mark = {
            "program": "polarvault drill", "backup": self._backup, "pid": pid, "started": started_at(pid),
            "kept": kept, "socket_directory": self.socket_directory, "stop": self._stop,
        }  # fmt: skip
        # The directory is the account's already: a link of that name must not lead us elsewhere.
        with Below(self.directory) as below:
            below.write(_MARK, json.dumps(mark).encode(), 0o600, sync=False, replace=True)

    @staticmethod
    def _write(path: str, content: bytes, account: Account) -> None:
        owner = (account.uid, account.gid) if os.geteuid() == 0 else None
        with Below(os.path.dirname(path), owner=owner) as below:
            below.write(os.path.basename(path), content, 0o600, sync=False)


def check_parent(parent: str) -> None:
    """Raise UsageError for a scratch directory that is not there or cannot be written to."""
    if not os.path.isdir(parent):
        raise UsageError(f'--scratch: "{parent}" is not a directory', hint=f"make it: mkdir -p {shlex.quote(parent)}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(
            f'--scratch: "{parent}" is not writable for this user', hint="name another directory: --scratch DIR"
        )


def leftovers(parent: str) -> Iterator[Finding]:
    """Yield a warning for each directory that a killed drill has left in the same place."""
    for name in sorted(os.listdir(parent)):
        directory = os.path.join(parent, name)
        mark = _read_mark(directory) if name.startswith(_PREFIX) else None
        if mark is None or mark.get("kept") or _is_at_work(mark):
            continue
        remove = f"rm -rf {removal(directory, str(mark.get('socket_directory') or ''))}"
        server = postmaster_of(os.path.join(directory, "data"))
        running = "" if server is None else f"; its server still runs, process {server}"
        yield Finding(
            severity=Severity.WARNING,
            check="leftover-scratch",
            subject=directory,
            message=f'a drill of "{mark.get("backup")}" that was killed left this behind{running}',
            meaning="it takes up space, and has no part in this drill",
            advice=remove if server is None else f"{mark.get('stop')} && {remove}",
        )


def removal(directory: str, socket_directory: str) -> str:
    """Return the words for rm: the socket's directory may lie elsewhere."""
    paths = [directory]
    if socket_directory and os.path.dirname(socket_directory) != directory and os.path.isdir(socket_directory):
        paths.append(socket_directory)
    return " ".join(map(shlex.quote, paths))


def _read_mark(directory: str) -> dict[str, object] | None:
    try:
        with Below(directory) as below:
            mark = json.loads(below.read(_MARK))
    except (OSError, ValueError, RecursionError):
        return None
    return mark if isinstance(mark, dict) and mark.get("program") == "polarvault drill" else None


def _is_at_work(mark: dict[str, object]) -> bool:
    """Tell whether the drill of a mark still runs; a process number alone may be somebody else's by now."""
    pid = mark.get("pid")
    return isinstance(pid, int) and started_at(pid) is not None and started_at(pid) == mark.get("started")
