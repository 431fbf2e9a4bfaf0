"""One receiver to a directory, and what it tells of itself there: a lock file and a status file, both hidden."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
from collections.abc import Callable
from typing import Any

from polarvault.errors import PolarvaultError, UsageError
from polarvault.model import limits
from polarvault.storage.below import Below
from polarvault.storage.files import open_regular, storage_failed

LOCK_NAME = ".polarvault-receivewal.lock"
STATUS_NAME = ".polarvault-receivewal.json"
# What is told of an earlier receiver stays, but for what the next one found out.
_KEPT = (
    "state_since", "server", "timeline", "received_lsn", "flushed_lsn", "server_lsn", "behind_since", "slot_state",
    "server_heard_at",
)  # fmt: skip


class DirectoryLock:
    """Held while a receiver writes into a directory; the operating system releases it with the process."""

    def __init__(self, directory: str, mode: Callable[[], int] = lambda: 0o600) -> None:
        """mode: what the status file gets, asked for each time."""
        self._directory = directory
        self._mode = mode
        self._path = os.path.join(directory, LOCK_NAME)
        self._before = _names(directory)
        self._open()
        while not self._is_in_place():
            # Whoever held it has removed it meanwhile, having received nothing.
            os.close(self._descriptor)
            self._open()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _open(self) -> None:
        directory = self._directory
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as problem:
            raise storage_failed(problem, "open lock file", self._path) from problem
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # Anybody who may write there can have written this: only a number goes into a message and a command.
            owner = os.read(self._descriptor, 32).decode(errors="replace").strip()
            owner = owner if owner.isascii() and owner.isdecimal() and int(owner) > 1 else ""
            os.close(self._descriptor)
            raise UsageError(
                f'another receivewal (process {owner or "unknown"}) writes to "{directory}"',
                hint=f"polarvault receivewal -D {shlex.quote(directory)} --status shows what it does"
                + (f"; stop it first: kill {owner}" if owner else ""),
            ) from None

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def tell(self, status: dict[str, Any]) -> None:
        """Write the status file."""
        write_status(self._directory, status, self._mode())

    def release(self) -> None:
        """Let another one in."""
        os.close(self._descriptor)

    def forget_failure(self) -> None:
        """Remove what tells of a receiver, before the release, unless there was one before or WAL was received."""
        ours = {STATUS_NAME, STATUS_NAME + ".tmp", LOCK_NAME}
        if ours & self._before or _names(self._directory) - self._before - ours:
            return
        for name in ours:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._directory, name))


def _names(directory: str) -> set[str]:
    try:
        return set(os.listdir(directory))
    except OSError as problem:
        raise storage_failed(problem, "read directory", directory) from problem


def lock_owner(directory: str) -> tuple[bool, int | None]:
    """Tell whether a receiver writes to the directory now, and which process it says it is."""
    path = os.path.join(directory, LOCK_NAME)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False, None
    except OSError as problem:
        raise storage_failed(problem, "open lock file", path) from problem
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.read(descriptor, 32).decode(errors="replace").strip()
        return True, int(text) if text.isascii() and text.isdigit() else None
    finally:
        os.close(descriptor)
    return False, None


def is_locked(directory: str) -> bool:
    """Tell whether a receiver writes to the directory now."""
    return lock_owner(directory)[0]


def write_status(directory: str, content: dict[str, Any], mode: int) -> None:
    """Replace the status file, by one with this mode.

    It is news, not data: it is not synced, and a full disk does not matter.
    """
    text = json.dumps(content).encode()
    with contextlib.suppress(OSError), Below(directory) as below:
        try:
            below.write(STATUS_NAME + ".tmp", text, mode, sync=False, replace=True)
            below.rename(STATUS_NAME + ".tmp", STATUS_NAME)
        except OSError:
            # On a full disk the blocks of the old file are still there to be written over.
            with open(below.open_for_writing(STATUS_NAME), "r+b") as target:
                target.write(text.ljust(os.fstat(target.fileno()).st_size))


def note_failed_start(directory: str, status: dict[str, Any]) -> None:
    """Say in the status of an earlier receiver why the next one could not connect; what was received stays as it was.

    Of a directory that no receiver has written to, nothing is known: a wrong command line leaves no files behind.
    """
    path = os.path.join(directory, STATUS_NAME)
    with contextlib.suppress(PolarvaultError, OSError):
        mode = os.lstat(path).st_mode & 0o777
        before = read_status(directory)
        lock = DirectoryLock(directory)
        try:
            write_status(directory, status | {name: before[name] for name in _KEPT if name in before}, mode)
        finally:
            lock.release()


def read_status(directory: str, command: str | None = None) -> dict[str, Any]:
    """Return what the last receiver wrote; raise StorageFailed or UsageError if there is none."""
    path = os.path.join(directory, STATUS_NAME)
    try:
        with open_regular(path) as source:
            found = json.loads(source.read(limits.SMALL_FILE_BYTES))
        if not isinstance(found, dict) or "state" not in found:
            raise ValueError("no status")
    except FileNotFoundError:
        raise UsageError(
            f'no receiver has written to "{directory}" yet',
            hint=f"start one: {command or f'polarvault receivewal -D {shlex.quote(directory)} -S SLOT'}",
        ) from None
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
    except (ValueError, RecursionError):
        raise UsageError(f'"{path}" is damaged', hint="restart receivewal: it writes the file anew") from None
    return found
