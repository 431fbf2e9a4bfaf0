"""What a receiver knows of itself, and tells: how far it is, how far the server is, what went wrong last."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from polarvault.errors import PolarvaultError
from polarvault.model.lsn import Lsn
from polarvault.storage.processes import own_process, present_moment

_KEPT_SAMPLES = 4096
_BETWEEN_SAMPLES_S = 0.1


@dataclass(slots=True)
class ReceiverState:
    """What a receiver knows of itself; times are seconds since 1970, LSNs 0 where nothing is known yet."""

    started_at: float
    slot: str | None = None
    command: str | None = None
    """What starts such a receiver again, for people."""
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
            "command": self.command,
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
