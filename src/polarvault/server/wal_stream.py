"""Stream WAL on a second connection, in a thread, until the end of the base backup.

Theory of operation. `open` connects and makes or takes the slot before the base backup begins: so a server without a
free WAL sender or slot is found out at once. A slot that it has made holds no WAL yet: it would hold it from the last
checkpoint on, and where max_slot_wal_keep_size is less than the WAL between two checkpoints the backup's own would cut
it off. `start` has it hold the WAL, as late as pg_basebackup does, and begins at the first byte of the start LSN's
segment. `stop_at` names the LSN to stop at; `join` waits for it. A temporary slot goes away with its connection.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, replace
from typing import Protocol

from polarvault.errors import ConnectionLost, PolarvaultError, ServerError, ServerRefused, WalIncomplete
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity
from polarvault.server.readable import wait_readable
from polarvault.server.wal_connection import (
    StreamShutDown,
    TimelineEnds,
    WalConnection,
    fetch_history,
    open_wal_connection,
)
from polarvault.wire import commands
from polarvault.wire.wal_messages import WalBatch

# Only a safety net: whatever the loop waits for also wakes it.
_POLL_S = 1.0
# How long the end of the backup may take to come once it is known. PolarDB flushes it after 20 s at most (facts 1.6).
_PATIENCE_S = 180.0
# SQLSTATE admin_shutdown: what a checkpoint says to the walsender whose slot it cuts off.
_ADMIN_SHUTDOWN = "57P01"


class WalSink(Protocol):
    """Takes WAL in order, starting at a segment's first byte."""

    def write(self, segment: WalSegment, offset: int, payload: memoryview) -> None:
        """Take bytes of a segment; they follow those given before."""

    def segment_done(self, segment: WalSegment) -> None:
        """The segment is complete, or the last one and as long as it will get."""

    def add_history(self, file_name: str, content: bytes) -> None:
        """Keep a timeline history file."""

    def finish(self) -> None:
        """No more WAL will come."""

    def read(self, segment: WalSegment, offset: int, length: int) -> bytes:
        """Read back bytes near the end of what was written; fewer where there are none."""


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """Which replication slot the stream uses: none, an existing one, a new permanent one, or a temporary one."""

    name: str | None
    temporary: bool = False
    create: bool = False

    @classmethod
    def choose(cls, *, name: str | None, create: bool, no_slot: bool) -> SlotPlan:
        """Apply pg_basebackup's rules: without -S a temporary slot, unless --no-slot."""
        if name is not None:
            return cls(name, create=create)
        return cls(None) if no_slot else cls(None, temporary=True, create=True)

    def named_after(self, backend_pid: int) -> SlotPlan:
        """Give a temporary slot pg_basebackup's name for it: what watches slots knows that pattern."""
        return replace(self, name=f"pg_basebackup_{backend_pid}") if self.temporary else self


class WalStream:
    """One WAL stream into one sink."""

    def __init__(
        self,
        connector: Connector,
        identity: ServerIdentity,
        slot: SlotPlan,
        *,
        status_interval_s: float,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._connector = connector
        self._identity = identity
        self._slot = slot
        self._status_interval_s = status_interval_s
        self._patience_s = patience_s
        self._connection: Connection | None = None
        self._source: WalConnection | None = None
        self._thread: threading.Thread | None = None
        self._stop_lsn: Lsn | None = None
        self._cancelled = threading.Event()
        # A byte in this pipe wakes the thread out of its wait for the server.
        self._wake_reader, self._wake_writer = os.pipe()
        self._failure: BaseException | None = None
        self._made_permanent_slot = False
        self.received = Lsn(0)

    @property
    def slot(self) -> SlotPlan:
        """The slot in use; a temporary one has its name once the stream is open."""
        return self._slot

    @property
    def failure(self) -> BaseException | None:
        """What ended the stream before its time."""
        return self._failure

    def open(self) -> None:
        """Connect and make the slot; raise ConnectionFailed, ServerError or ServerRefused."""
        self._connection = self._connector.replication()
        found = self._connection.query("IDENTIFY_SYSTEM").value(0, 0)
        if found != self._identity.system_identifier:
            raise ServerRefused(
                f"the WAL connection reached cluster {found}, the backup cluster {self._identity.system_identifier}",
                hint="give one host, or target_session_attrs, so that both connections reach the same server",
            )
        self._slot = self._slot.named_after(self._connection.pgconn.backend_pid)
        self._make_slot(self._connection, reserve_wal=False)

    def start(self, sink: WalSink, start_lsn: Lsn, timeline_id: int) -> None:
        """Begin streaming at the start of the LSN's segment."""
        assert self._connection is not None
        self._make_slot(self._connection, reserve_wal=True)
        segment = WalSegment.holding(start_lsn, timeline_id, self._identity.segment_size_bytes)
        self._source = open_wal_connection(self._connection, self._wake_reader, lambda notice: None)
        if timeline_id > 1:
            sink.add_history(*fetch_history(self._source, timeline_id))
        command = commands.start_replication_command(str(segment.start), timeline_id, slot=self._slot.name)
        try:
            parted = self._source.start(command, segment.start)
        except (ServerError, ConnectionLost) as error:
            if isinstance(error, ServerError) and error.sqlstate != _ADMIN_SHUTDOWN:
                raise
            # A checkpoint has cut off the slot between its making and the stream's start, which can be minutes later.
            raise WalIncomplete(
                f"the server ended the WAL connection before the stream began: {error.message}",
                hint=self._what_removes_wal(),
            ) from None
        if parted is not None:
            raise self._ended_early()
        self.received = segment.start
        self._thread = threading.Thread(target=self._run, args=(sink, segment), name="wal", daemon=True)
        self._thread.start()

    def _make_slot(self, connection: Connection, *, reserve_wal: bool) -> None:
        """Make the slot, unless it is the user's own; the one that held no WAL gives way to one that does.

        That is what puts the position to hold on to on the server's disk at once; a status message would not.
        """
        slot = self._slot
        if not slot.create or slot.name is None:
            return
        if reserve_wal:
            connection.query(f"DROP_REPLICATION_SLOT {commands.quote_identifier(slot.name)}")
            self._made_permanent_slot = False
        connection.query(
            commands.create_physical_slot_command(
                slot.name, self._identity.version_num, temporary=slot.temporary, reserve_wal=reserve_wal
            )
        )
        self._made_permanent_slot = not slot.temporary

    def stop_at(self, lsn: Lsn) -> None:
        """Name the LSN after which the stream ends."""
        self._stop_lsn = lsn
        os.write(self._wake_writer, b"!")

    def wait(self, timeout_s: float) -> bool:
        """Wait for the stream's end; raise what ended it early."""
        assert self._thread is not None
        self._thread.join(timeout_s)
        if self._failure is not None:
            raise self._failure
        return not self._thread.is_alive()

    def raise_failure(self) -> None:
        """Raise what ended the stream before its time, if anything did."""
        if self._failure is not None:
            raise self._failure

    def close(self, *, failed: bool) -> None:
        """End the thread and the connection; after a failure a permanent slot that we made goes as well."""
        self._cancelled.set()
        os.write(self._wake_writer, b"!")
        if self._thread is not None:
            self._thread.join()
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        if self._source is not None:
            self._source.close()
        if self._connection is not None:
            self._connection.close()
        if failed and self._made_permanent_slot and self._slot.name is not None:
            self._drop_slot(self._slot.name)

    def _drop_slot(self, name: str) -> None:
        try:
            connection = self._connector.replication()
            try:
                connection.query(f"DROP_REPLICATION_SLOT {commands.quote_identifier(name)} WAIT")
            finally:
                connection.close()
        except PolarvaultError:
            pass  # The server may be gone; the failure that brought us here is the one to report.

    def _run(self, sink: WalSink, segment: WalSegment) -> None:
        try:
            self._receive(sink, segment)
        except BaseException as failure:  # Kept for the main thread, which raises it.
            self._failure = failure
        finally:
            try:
                sink.finish()
            except BaseException as failure:  # An error of close() means lost WAL as well.
                self._failure = self._failure or failure

    def _receive(self, sink: WalSink, segment: WalSegment) -> None:
        source = self._source
        assert source is not None
        flushed = segment.start
        # The first at once, as pg_basebackup does: it gives a slot that reserves no WAL yet its restart_lsn, and the
        # backup may be over before a second one is due.
        next_status = progress_at = time.monotonic()
        while not self._cancelled.is_set():
            if self._stop_lsn is not None and self.received >= self._stop_lsn:
                if self.received > segment.start:
                    sink.segment_done(segment)
                source.end()
                return
            if self._status_interval_s > 0 and time.monotonic() >= next_status:
                self._send_status(source, flushed)
                next_status = time.monotonic() + self._status_interval_s
            batch = self._next_batch(source)
            confirmed = flushed
            segment, flushed = self._store(sink, segment, flushed, batch)
            # Each finished segment at once: what the slot holds back counts against max_slot_wal_keep_size.
            if batch.reply_now or (self._slot.name is not None and flushed > confirmed):
                self._send_status(source, flushed)
                next_status = time.monotonic() + self._status_interval_s
            if batch.size or self._stop_lsn is None:
                progress_at = time.monotonic()
            elif time.monotonic() - progress_at > self._patience_s:
                raise self._never_came(self._stop_lsn)
            if batch.is_empty:
                self._drain_wake()

    def _send_status(self, source: WalConnection, flushed: Lsn) -> None:
        # Without a slot no flush position, as pg_basebackup: with one, the backup would be a synchronous standby.
        try:
            source.send_status(written=self.received, flushed=flushed if self._slot.name is not None else Lsn(0))
        except ConnectionLost as problem:
            raise self._lost(problem) from None

    def _store(self, sink: WalSink, segment: WalSegment, flushed: Lsn, batch: WalBatch) -> tuple[WalSegment, Lsn]:
        for view in batch.views:
            payload = view
            while payload:
                offset = self.received - segment.start
                part = payload[: segment.size_bytes - offset]
                sink.write(segment, offset, part)
                self.received = Lsn(self.received + len(part))
                payload = payload[len(part) :]
                if self.received == segment.end:
                    sink.segment_done(segment)
                    # Only a complete segment has been synced, so only that much is reported as flushed.
                    segment, flushed = segment.next(), self.received
        return segment, flushed

    def _next_batch(self, source: WalConnection) -> WalBatch:
        """Return what has come, after a short wait at most; raise when the stream ended."""
        try:
            found = source.receive(_POLL_S, eager=self._stop_lsn is not None)
        except StreamShutDown:
            raise self._ended_early() from None
        except ConnectionLost as problem:
            raise self._lost(problem) from None
        except ServerError as error:
            raise WalIncomplete(
                f"the server ended the WAL stream at {self.received}: {error.message}",
                detail=error.detail,
                hint=error.hint or self._what_removes_wal(),
            ) from None
        if isinstance(found, TimelineEnds):
            raise self._ended_early()
        return found

    def _ended_early(self) -> WalIncomplete:
        return WalIncomplete(
            f"the server ended the WAL stream at {self.received}, before the end of the backup",
            hint=f"the server was shut down or promoted, or {self._what_removes_wal()}; then take the backup again",
        )

    def _lost(self, problem: ConnectionLost) -> ConnectionLost:
        """Say what a lost connection may have been besides: an encrypted one ends without the server's words."""
        return ConnectionLost(
            f"the WAL stream ended at {self.received}: {problem.message}",
            hint=f"look into the server's log: the server or the network failed, or {self._what_removes_wal()}; then "
            "take the backup again",
        )

    def _what_removes_wal(self) -> str:
        if self._slot.name is None:
            return "it removed WAL that was still needed: use a slot (without --no-slot), or raise wal_keep_size"
        other = ", or use --no-slot with enough wal_keep_size" if self._slot.temporary else ""
        return f"it cut off slot {self._slot.name}, which fell behind max_slot_wal_keep_size: raise that setting{other}"

    def _never_came(self, stop_lsn: Lsn) -> WalIncomplete:
        return WalIncomplete(
            f"the server says that the backup ends at {stop_lsn}, but has sent WAL only up to {self.received}, "
            f"and none for {self._patience_s:g} s",
            hint="look into the server's log for what keeps it from writing or sending its WAL; take the backup again",
        )

    def _drain_wake(self) -> None:
        if wait_readable(self._wake_reader, 0):
            os.read(self._wake_reader, 16)
