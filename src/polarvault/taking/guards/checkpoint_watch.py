"""Watch the checkpoint that every base backup begins with.

On PolarDB with full_page_writes on, a checkpoint cannot start before the slowest read-only node has applied enough
WAL. A stopped node whose slot was kept, or the slot that a failover left behind, therefore holds BASE_BACKUP up for
ever, and the server says so only in its log (facts 5.3). This asks over SQL what our own WAL sender waits for, and
ends the wait with the slot's name.

Measured on PolarDB 15.8: while held up, the WAL sender's wait event is CheckpointStart or CheckpointDone, and neither
the count of written buffers nor the oldest applied LSN moves. That LSN (extension polar_monitor) is 0/0 where no
read-only node has a slot. A role may always see the wait events of its own sessions.
"""

from __future__ import annotations

import time

from polarvault.errors import CheckpointBlocked, PolarvaultError, ServerError
from polarvault.server.connection import Connection, Connector
from polarvault.taking.reporter import BackupReporter

_BETWEEN_LOOKS_S = 2.0
_SAY_AFTER_S = 30.0
_UNSURE_FACTOR = 5
# Beginnings of the wait events of a checkpointer that writes and syncs (manual, "Wait Event Descriptions").
_AT_WORK = ("DataFile", "SLRU", "WAL", "ControlFile", "CheckpointWriteDelay")


class CheckpointWatch:
    """`tick` is called about once a second while the server prepares the backup."""

    def __init__(
        self, connector: Connector, reporter: BackupReporter, *, is_polardb: bool, backend_pid: int, patience_s: float,
        spread: bool,
    ) -> None:  # fmt: skip
        self._connector = connector
        self._reporter = reporter
        self._is_polardb = is_polardb
        self._pid = backend_pid
        self._patience_s = patience_s
        self._spread = spread
        self._started = self._last_look = self._last_change = time.monotonic()
        self._last_signs: tuple[str | None, ...] = ()
        self._sql: Connection | None = None
        self._said = self._blind = False

    def tick(self) -> None:
        """Look at the checkpoint; raise CheckpointBlocked when a slot holds it up."""
        now = time.monotonic()
        if not self._said and now - self._started >= _SAY_AFTER_S:
            self._said = True
            more = "; -c fast makes the server hurry" if self._spread else ""
            self._reporter.note(f"still waiting for the server's checkpoint to complete{more}")
        if not self._is_polardb or self._blind or now - self._last_look < _BETWEEN_LOOKS_S:
            return
        self._last_look = now
        try:
            self._look(now)
        except (CheckpointBlocked, AssertionError):
            raise
        except PolarvaultError as problem:
            self._blind = True
            self._reporter.warning(
                f"cannot ask over SQL why the checkpoint takes long ({problem.message}); "
                "if this does not end, look for inactive slots in pg_replication_slots on the server"
            )

    def close(self) -> None:
        """Close the SQL connection, if one was needed."""
        if self._sql is not None:
            self._sql.close()
            self._sql = None

    def _look(self, now: float) -> None:
        sql = self._sql = self._sql or self._connector.sql()
        waits = sql.query(f"SELECT wait_event FROM pg_stat_activity WHERE pid = {self._pid}").rows
        checkpointer = sql.query("SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'checkpointer'").rows
        signs = (
            waits[0][0] if waits else None,
            sql.query("SELECT buffers_checkpoint FROM pg_stat_bgwriter").value(0, 0),
            self._oldest_apply_lsn(sql),
        )
        # Held up, the checkpointer sleeps without a wait event; at work it shows its writes and syncs as such.
        works = bool(checkpointer) and (checkpointer[0][0] or "").startswith(_AT_WORK)
        if signs != self._last_signs or works:
            self._last_signs, self._last_change = signs, now
            return
        # To a role that sees neither this nor the extension, a checkpoint that syncs for long looks the same, unless it
        # has not even started.
        sure = bool(checkpointer) or signs[2] is not None or signs[0] == "CheckpointStart"
        patience_s = self._patience_s if sure else _UNSURE_FACTOR * self._patience_s
        if now - self._last_change < patience_s or signs[2] == "0/0":
            return
        slots = sql.query(
            "SELECT slot_name, active, restart_lsn FROM pg_replication_slots"
            " WHERE slot_type = 'physical' AND NOT temporary ORDER BY active, restart_lsn"
        ).rows
        if any(slot[1] == "f" for slot in slots) or (slots and signs[2] is not None):
            raise self._blocked(slots, now - self._started)

    def _oldest_apply_lsn(self, sql: Connection) -> str | None:
        """Return how far the slowest read-only node is; 0/0 means that there is none, None that we cannot tell."""
        try:
            return sql.query("SELECT polar_oldest_apply_lsn()").value(0, 0)
        except ServerError:
            return None  # The extension polar_monitor is not installed in this database; the slots still tell.

    def _blocked(self, slots: list[tuple[str | None, ...]], waited_s: float) -> CheckpointBlocked:
        inactive = [f'"{row[0]}" (restart_lsn {row[2]})' for row in slots if row[1] == "f"]
        every = [f'"{row[0]}"' for row in slots]
        suspects = inactive or every
        kind = "inactive replication slot" if inactive else "read-only node behind replication slot"
        plural = "s" if len(suspects) > 1 else ""
        name = slots[0][0]
        return CheckpointBlocked(
            f"the checkpoint is held up by {kind}{plural} {', '.join(suspects)}; "
            f"the backup did not start within {waited_s:.0f} s",
            hint=f"start the read-only node that uses the slot, or, if it is gone for good, "
            f"run on the primary: SELECT pg_drop_replication_slot('{name}')"
            if inactive
            else "see in its log why the read-only node lags, or stop it for the time of the backup's checkpoint",
        )
