"""One receiver to a directory, and what it tells of itself there: a lock file and a status file, both hidden."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from polarvault.errors import PolarvaultError, UsageError
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.storage.below import Below
from polarvault.storage.files import open_regular, storage_failed
from polarvault.storage.processes import own_process, present_moment

LOCK_NAME = ".polarvault-receivewal.lock"
STATUS_NAME = ".polarvault-receivewal.json"
_KEPT_SAMPLES = 4096
_BETWEEN_SAMPLES_S = 0.1


@dataclass(slots=True)
class ReceiverState:
    """What a receiver knows of itself; times are seconds since 1970, LSNs 0 where nothing is known yet."""

    started_at: float
    slot: str | None = None
    server: str | None = None
    state: str = "connecting"
    state_since: float = 0.0
    """When streaming began, or when it ended."""
    news_within_s: float = 0.0
    """A server that is silent for longer is not well."""
    timeline_id: int = 0
    received: Lsn = field(default_factory=lambda: Lsn(0))
    flushed: Lsn = field(default_factory=lambda: Lsn(0))
    flushed_at: float | None = None
    server_end: Lsn = field(default_factory=lambda: Lsn(0))
    heard_at: float | None = None
    connections: int = 0
    slot_state: dict[str, Any] | None = None
    last_error: PolarvaultError | None = None
    last_error_at: float | None = None
    # When the server's WAL reached an LSN, for those not yet flushed here.
    _reached: deque[tuple[Lsn, float]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.state_since = self.started_at

    def enter(self, state: str, now: float) -> None:
        """Note what the receiver does now; connecting again and again is one time without WAL."""
        if (state == "streaming") != (self.state == "streaming"):
            self.state_since = now
        self.state = state

    def server_said(self, end: Lsn, now: float) -> None:
        """Note how far the server's WAL reaches."""
        self.heard_at = now
        if end > self.server_end:
            self.server_end = end
            if not self._reached or (
                now - self._reached[-1][1] >= _BETWEEN_SAMPLES_S and len(self._reached) < _KEPT_SAMPLES
            ):
                self._reached.append((end, now))
            else:
                # Coarser, but the oldest sample, which is the one that counts, stays.
                self._reached[-1] = (end, self._reached[-1][1])

    def flushed_up_to(self, lsn: Lsn, now: float) -> None:
        """Note what is durable here."""
        if lsn != self.flushed:
            self.flushed_at = now
        self.flushed = lsn
        while self._reached and self._reached[0][0] <= lsn:
            self._reached.popleft()

    def failed(self, problem: PolarvaultError, now: float) -> None:
        """Keep the last error, for `--status`."""
        self.last_error, self.last_error_at = problem, now

    @property
    def lag_bytes(self) -> int:
        """How much of the server's WAL is not durable here."""
        return max(0, self.server_end - self.flushed)

    @property
    def behind_since(self) -> float | None:
        """When the server wrote the oldest WAL that it has and that is not durable here."""
        return self._reached[0][1] if self._reached and self.lag_bytes else None

    def lag_s(self, now: float) -> float:
        """How old that WAL is."""
        return max(0.0, now - self.behind_since) if self.behind_since is not None else 0.0

    def as_json(self, now: float) -> dict[str, Any]:
        """Return the content of the status file; `judgement` says what of it is still true when it is read."""
        writer, moment, error = own_process(), present_moment(), self.last_error
        return {
            "process_id": os.getpid(),
            "process_started": writer.started if writer else None,
            "boot_id": moment.boot_id,
            "state": self.state,
            "state_since": self.state_since,
            "server": self.server,
            "slot": self.slot,
            "timeline": self.timeline_id or None,
            "received_lsn": str(self.received),
            "flushed_lsn": str(self.flushed),
            "flushed_at": self.flushed_at,
            "server_lsn": str(self.server_end),
            "behind_since": self.behind_since,
            "slot_state": self.slot_state,
            "connections": self.connections,
            "last_error": error.message if error else None,
            "last_error_id": error.id if error else None,
            "last_error_hint": error.hint if error else None,
            "last_error_at": self.last_error_at,
            "server_heard_at": self.heard_at,
            "news_within_s": self.news_within_s,
            "started_at": self.started_at,
            "updated_at": now,
            "updated_uptime_s": moment.uptime_s,
        }


class DirectoryLock:
    """Held while a receiver writes into a directory; the operating system releases it with the process."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
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


def note_failed_start(directory: str, state: ReceiverState, now: float) -> None:
    """Say in the status of an earlier receiver why the next one could not connect; what was received stays as it was.

    Of a directory that no receiver has written to, nothing is known: a wrong command line leaves no files behind.
    """
    path = os.path.join(directory, STATUS_NAME)
    with contextlib.suppress(PolarvaultError, OSError):
        mode = os.lstat(path).st_mode & 0o777
        before = read_status(directory)
        lock = DirectoryLock(directory)
        try:
            ours = state.as_json(now)
            kept = ("state_since", "server", "timeline", "received_lsn", "flushed_lsn", "server_lsn", "behind_since",
                    "slot_state", "server_heard_at")  # fmt: skip
            write_status(directory, ours | {name: before[name] for name in kept if name in before}, mode)
        finally:
            lock.release()


def read_status(directory: str) -> dict[str, Any]:
    """Return what the last receiver wrote; raise StorageFailed or UsageError if there is none."""
    path = os.path.join(directory, STATUS_NAME)
    try:
        with open_regular(path) as source:
            found = json.loads(source.read(limits.SMALL_FILE_BYTES))
        if not isinstance(found, dict) or "state" not in found:
            raise ValueError("no status")
    except FileNotFoundError:
        raise UsageError(
            f'no receivewal has written to "{directory}" yet',
            hint=f"start one: polarvault receivewal -D {shlex.quote(directory)} -S SLOT",
        ) from None
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
    except (ValueError, RecursionError):
        raise UsageError(f'"{path}" is damaged', hint="restart receivewal: it writes the file anew") from None
    return found
