"""Look ahead for what would end receiving: a slot that is about to lose its WAL.

The slot is asked about over an ordinary connection, since a WAL sender answers no SQL; that happens in a thread of its
own, because a server that cannot be reached must not hold up the stream.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from polarvault.errors import PolarvaultError
from polarvault.server.connection import Connector
from polarvault.wire import commands

_BETWEEN_S = 30.0
# Fewer segments than these left, and somebody has to act.
_FEW_SEGMENTS = 4


@dataclass(frozen=True, slots=True)
class SlotState:
    """A row of pg_replication_slots; sizes are bytes, None where the server sets no limit."""

    wal_status: str | None
    safe_wal_bytes: int | None
    restart_lsn: str | None

    def warning(self, slot: str, segment_size_bytes: int) -> str | None:
        """Say what the DBA must know, None while all is well (manual, "pg_replication_slots")."""
        act = "raise max_slot_wal_keep_size on the server, or see why receiving is slow"
        if self.wal_status == "lost":
            return f'slot "{slot}" has lost WAL that is needed: take a new base backup, then drop and create the slot'
        if self.wal_status == "unreserved":
            return f'slot "{slot}" is about to lose WAL at the next checkpoint: {act}'
        if self.safe_wal_bytes is not None and self.safe_wal_bytes < _FEW_SEGMENTS * segment_size_bytes:
            return f'slot "{slot}" loses WAL when the server has written another {self.safe_wal_bytes >> 20} MB: {act}'
        return None


def read_slot_state(connector: Connector, slot: str) -> SlotState | None:
    """Ask the server; None if there is no such slot. Raise PolarvaultError."""
    connection = connector.sql()
    try:
        found = connection.query(
            "SELECT wal_status, safe_wal_size, restart_lsn FROM pg_catalog.pg_replication_slots "
            f"WHERE slot_name = {commands.quote_literal(slot)}"
        )
    finally:
        connection.close()
    if not found.rows:
        return None
    status, safe, restart = found.rows[0]
    return SlotState(status, None if safe is None else int(safe), restart)


def has_lost_wal(connector: Connector, slot: str) -> bool:
    """Tell whether the server says that a slot that was in use has lost WAL; False if it cannot be asked."""
    with contextlib.suppress(PolarvaultError):
        found = read_slot_state(connector, slot)
        return found is not None and found.wal_status == "lost"
    # A role for replication alone may ask the WAL sender of 15 and later: a lost slot has no position any more.
    with contextlib.suppress(PolarvaultError):
        connection = connector.replication()
        try:
            rows = connection.query(f"READ_REPLICATION_SLOT {commands.quote_identifier(slot)}").rows
        finally:
            connection.close()
        return bool(rows) and rows[0][0] is not None and rows[0][1] is None
    return False


class SlotWatch:
    """Asks about the slot every half minute; `state` is the last answer."""

    def __init__(
        self, connector: Connector, slot: str, *, on_state: Callable[[SlotState | None], None],
        on_problem: Callable[[PolarvaultError], None],
    ) -> None:  # fmt: skip
        self._connector = connector
        self._slot = slot
        self._on_state = on_state
        self._on_problem = on_problem
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slot-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; a question that is on its way is not waited for."""
        self._stop.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._on_state(read_slot_state(self._connector, self._slot))
            except PolarvaultError as problem:
                self._on_problem(problem)
            self._stop.wait(_BETWEEN_S)
