"""Receive WAL into a store until told to stop: the use case behind `polarvault receivewal`. Start reading here.

Theory of operation. A *session* is one connection: identify the server, find out where to start, stream, follow the
timelines. The *receiver* outlives sessions: it keeps the open segment, so that a lost connection goes on at the very
byte where it broke, and the state that `--status` shows. What ends a session is retried with back-off; what would
damage the archive, or what only a person can mend, ends the program.
"""

from __future__ import annotations

import contextlib
import re
import time

from polarvault.errors import (
    ConnectionFailed,
    ConnectionLost,
    DiskFull,
    PolarvaultError,
    ServerError,
    ServerRefused,
    SlotLost,
    StorageFailed,
    TimelineDiverged,
    WalGap,
)
from polarvault.model import versions
from polarvault.model.segment import WalSegment
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity, read_identity, show
from polarvault.server.wal_connection import open_wal_connection
from polarvault.wal.store import StoreLock, WalStore, WalWriter
from polarvault.walarchive.receive.continuity import continuity
from polarvault.walarchive.receive.request import ReceiveRequest
from polarvault.walarchive.receive.session import SHOW_EVERY_S, UNDEFINED_OBJECT, ReceiveReporter, Session
from polarvault.walarchive.receive.slots import ensure_slot, lost_slot_error
from polarvault.walarchive.receive.start import StartPoints
from polarvault.walarchive.receive.state import ReceiverState
from polarvault.walarchive.receive.stop import StopRequest
from polarvault.walarchive.receive.watch import SlotState, SlotWatch, has_lost_wal

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_WARN_AGAIN_S = 300.0
_GRACE_S = 10.0
# A server that is never asked (-s 0) says something after half of its wal_sender_timeout, by default 30 s.
_UNASKED_S = 60.0
_RETRYABLE = (ConnectionFailed, ConnectionLost, ServerError, ServerRefused, DiskFull, TimelineDiverged, WalGap)


def receive_wal(
    request: ReceiveRequest, store: WalStore, connector: Connector, reporter: ReceiveReporter, stop: StopRequest
) -> None:
    """Receive until a stop is requested or the end LSN is reached; both are success.

    On return and on failure everything received is durable. Raises what cannot be retried; the first connection, and
    with loop=False every other failure too.
    """
    receiver = _Receiver(request, store, connector, reporter, stop)
    failed = True
    try:
        receiver.run()
        failed = False
    except PolarvaultError as problem:
        receiver.state.failed(problem, time.time())
        raise
    finally:
        receiver.close(failed=failed)


class _Receiver:
    def __init__(
        self,
        request: ReceiveRequest,
        store: WalStore,
        connector: Connector,
        reporter: ReceiveReporter,
        stop: StopRequest,
    ) -> None:
        self.request = request
        self.store = store
        self.reporter = reporter
        self.stop = stop
        # Some grace: the question and the answer take their time, on a bad network too.
        news_within_s = (request.ask_after_s or _UNASKED_S) + _GRACE_S
        self.state = ReceiverState(time.time(), slot=request.slot, command=request.command, news_within_s=news_within_s)
        self._writer: WalWriter | None = None
        self._connector = connector
        # Taken once a server has let us in: a mistake in the command line leaves no files behind.
        self._lock: StoreLock | None = None
        self._system_identifier: str | None = None
        self._slot_watch: SlotWatch | None = None
        self._starts = StartPoints(request, store, connector, reporter, stop)
        self._shown = 0.0
        self._warned: dict[str, float] = {}

    def run(self) -> None:
        """Stream, session after session."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                connection, identity = self._connect()
            except KeyboardInterrupt:
                return
            except _RETRYABLE as problem:
                if not self.state.connections or not self.request.loop:
                    raise
                self._wait_after(problem, pause_s)
            else:
                before = self.state.received
                try:
                    self._lock = self._lock or self.store.lock()
                    self._session(connection, identity)
                    return
                except KeyboardInterrupt:
                    return
                except _RETRYABLE as failure:
                    named = self._with_fate_of_slot(failure)
                    if self._is_hopeless(named, connection):
                        if named is failure:
                            raise
                        raise named from failure
                    if self._writer is not None and self._writer.received > before:
                        pause_s = _FIRST_PAUSE_S
                    # Before any wait: a server that shuts down waits for whoever is still connected.
                    connection.close()
                    self._wait_after(named, pause_s)
                finally:
                    connection.close()
            if self.stop.requested:
                return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def close(self, *, failed: bool) -> None:
        """Make everything received durable, and leave the last status behind; of a failure at the start, nothing."""
        if self._slot_watch is not None:
            self._slot_watch.close()
        try:
            if self._writer is not None:
                self._writer.close()
                self.state.flushed_up_to(self._writer.flushed, time.time())
        finally:
            self.state.enter("stopped", time.time())
            self._show(force=True)
            if self._lock is not None:
                if failed:
                    self._lock.forget_failure()
                self._lock.release()
            elif failed:
                self.store.note_failed_start(self.state.as_json(time.time()))

    # One session

    def _connect(self) -> tuple[Connection, ServerIdentity]:
        self.state.enter("connecting", time.time())
        with self.stop.interruptible():
            connection = self._connector.replication()
            try:
                identity = read_identity(connection)
            except BaseException:
                connection.close()
                raise
        if identity.is_newer and not self.state.connections:
            self.reporter.warning(f"{versions.is_not_known(identity.product)}; WAL is kept as it comes")
        if self.request.reports_flush:
            self._warn_of_remote_apply(connection)
        self.state.connections += 1
        self.state.server = f"{identity.product} at {_address(connection)}"
        return connection, identity

    def _warn_of_remote_apply(self, connection: Connection) -> None:
        """Warn of commits that would wait for ever: a receiver flushes WAL, and applies none."""
        if show(connection, "synchronous_commit") != "remote_apply":
            return
        names = show(connection, "synchronous_standby_names") or ""
        name = connection.parameter("application_name") or ""
        if "*" in names or name.lower() in re.split(r'[\s,()"]+', names.lower()):
            self.warn(
                f'synchronous_commit is remote_apply, and synchronous_standby_names has "{name}": commits wait for a '
                "receiver, which never applies WAL; set synchronous_commit = on, or name a standby instead",
                "remote_apply",
            )

    def _session(self, connection: Connection, identity: ServerIdentity) -> None:
        """Stream over one connection until it is all over."""
        self._check_cluster(identity)
        if self.request.create_slot and self.request.slot is not None:
            self._make_slot(connection, self.request.slot)
        writer = self._writer = self._writer or self._open_writer(identity)
        source = open_wal_connection(connection, self.stop.wake_descriptor, self.reporter.notice)
        with contextlib.closing(source):
            address = _address(connection)
            history, fetched = self._starts.histories(source, identity.timeline_id)
            start = self._starts.find(source, identity, history, address, writer)
            # Not before: a history that what is here does not belong to would lead recovery astray.
            for timeline_id, content in fetched.items():
                self.store.add_history(timeline_id, content)
            if self.request.slot is not None and self._slot_watch is None:
                self._watch_slot(self.request.slot, identity.segment_size_bytes)
            follows = continuity(writer, history, hint=self.store.diverged_hint, reset_hint=self._reset_hint())
            session = Session(self, writer, source, identity, follows)
            try:
                session.run(start)
            except TimelineDiverged as problem:
                self._starts.has_diverged(address, start.timeline_id, problem)
                raise

    def _reset_hint(self) -> str:
        """Say what to do after pg_resetwal: as after any gap, and a slot that was made since holds it back."""
        if self.request.slot is None:
            return self.store.gap_hint
        drop = f"polarvault receivewal --drop-slot -S {self.request.slot}"
        return f"drop the slot ({drop}), {self.store.lost_slot_hint}"

    def _make_slot(self, connection: Connection, slot: str) -> None:
        """Make the slot on this server if it is missing there: after a failover no server has it (before 17)."""
        if ensure_slot(connection, slot):
            self.reporter.note(f'made replication slot "{slot}" on {self.state.server}; it holds WAL from now on')

    def _check_cluster(self, identity: ServerIdentity) -> None:
        """Refuse to go on from another cluster: one of several hosts may be a wrong one."""
        if self._system_identifier is None:
            self._system_identifier = identity.system_identifier
        if identity.system_identifier != self._system_identifier:
            raise ServerRefused(
                f"{self.state.server} is cluster {identity.system_identifier}, "
                f"the WAL received so far is of cluster {self._system_identifier}",
                hint="name only servers of one cluster in the connection string",
            )

    def _open_writer(self, identity: ServerIdentity) -> WalWriter:
        return self.store.open(
            segment_size_bytes=identity.segment_size_bytes,
            group_access=identity.group_access,
            wake=self.stop.wake,
            on_segment=lambda segment: self.reporter.step(
                f"finished segment at {segment.end} (timeline {segment.timeline_id})",
                event="segment", segment=segment.file_name, lsn=str(segment.end), timeline=segment.timeline_id,
            ),
        )  # fmt: skip

    # After a failure

    def _with_fate_of_slot(self, problem: PolarvaultError) -> PolarvaultError:
        """Say of missing WAL whether the slot has lost it: then no later try can go better."""
        slot = self.request.slot
        if not isinstance(problem, WalGap) or isinstance(problem, SlotLost) or slot is None or self._writer is None:
            return problem
        if not has_lost_wal(self._connector.without_prompt(), slot):
            return problem
        writer = self._writer
        segment = WalSegment.holding(writer.received, writer.timeline_id, writer.segment_size_bytes)
        words, hint = str(problem.__cause__ or problem.message), self.store.lost_slot_hint
        return lost_slot_error(slot, writer.received, segment.file_name, words, hint=hint)

    def _is_hopeless(self, problem: PolarvaultError, connection: Connection) -> bool:
        if not self.request.loop or isinstance(problem, SlotLost):
            return True
        # A server does not get WAL back that it has removed. Another one of several hosts may still have it.
        if isinstance(problem, WalGap) and not connection.has_several_hosts:
            return True
        # A slot that is missing from the start is a mistake in the command; later somebody dropped it, and may see so.
        missing_slot = isinstance(problem, ServerError) and problem.sqlstate == UNDEFINED_OBJECT
        return missing_slot and self.state.connections == 1

    def _wait_after(self, problem: PolarvaultError, pause_s: float) -> None:
        self.reporter.problem(problem)
        self.state.failed(problem, time.time())
        self.state.enter("disconnected", time.time())
        if isinstance(problem, DiskFull):
            self._wait_for_space()
            return
        if self._writer is not None and not self._writer.has_room:
            self._wait_for_room(self._writer)
            return
        self._make_durable()
        self.reporter.note(f"disconnected; trying again in {pause_s:g} s")
        self._show(force=True)
        self.stop.wait(pause_s)

    def _make_durable(self) -> None:
        """Sync what was received: the server may be gone for good, and this the only copy of what it sent last."""
        if self._writer is None:
            return
        # A disk that fails here fails the next session too, which says so.
        with contextlib.suppress(StorageFailed):
            self._writer.sync()
            self._writer.wait(SHOW_EVERY_S)
            self.state.flushed_up_to(self._writer.flushed, time.time())

    def _wait_for_room(self, writer: WalWriter) -> None:
        """Stay away from the server as long as nothing could be taken from it: it can be stopped meanwhile."""
        self.state.enter("no room", time.time())
        self.reporter.note("receiving is suspended until some of what waits is safe; the slot holds the WAL meanwhile, "
                           "if there is one (-S)")  # fmt: skip
        while not self.stop.requested and not writer.has_room:
            self.state.flushed_up_to(writer.flushed, time.time())
            self._show(force=True)
            self.stop.wait(SHOW_EVERY_S)

    def _wait_for_space(self) -> None:
        """Leave the open segment as it is, and come back to it when there is room for a whole one."""
        self.state.enter("disk full", time.time())
        size = self._writer.segment_size_bytes if self._writer is not None else 0
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
        self.reporter.note("receiving is suspended until there is space for a segment; nothing is lost meanwhile "
                           "if a replication slot (-S) holds the WAL back")  # fmt: skip
        while not self.stop.requested:
            self._show(force=True)
            if self.store.has_space(size):
                return
            self.stop.wait(SHOW_EVERY_S)

    # What it tells

    def warn(self, text: str, key: str) -> None:
        """Warn, but not again and again."""
        now = time.monotonic()
        if now - self._warned.get(key, -_WARN_AGAIN_S) >= _WARN_AGAIN_S:
            self._warned[key] = now
            self.reporter.warning(text)

    def show(self) -> None:
        """Tell the state, at most once a second."""
        self._show(force=False)

    def _show(self, *, force: bool) -> None:
        now = time.monotonic()
        if not force and now - self._shown < SHOW_EVERY_S:
            return
        self._shown = now
        if self._writer is not None:
            self.state.timeline_id, self.state.received = self._writer.timeline_id, self._writer.received
        if self._lock is not None:
            self._lock.tell(self.state.as_json(time.time()))
        self.reporter.status(self.state)

    def _watch_slot(self, slot: str, segment_size_bytes: int) -> None:
        def on_state(state: SlotState | None) -> None:
            self.state.slot_state = {
                "wal_status": state.wal_status if state else "missing",
                "safe_wal_bytes": state.safe_wal_bytes if state else None,
                "restart_lsn": state.restart_lsn if state else None,
                "segment_bytes": segment_size_bytes,
                "looked_at": time.time(),
            }
            if state is None:
                return
            warning = state.warning(slot, segment_size_bytes)
            if warning:
                self.warn(warning, f"slot {state.wal_status}")

        def on_problem(problem: PolarvaultError) -> None:
            if self.state.slot_state is None and not self._warned.get("unwatched"):
                self._warned["unwatched"] = time.monotonic()
                self.reporter.note(f'cannot watch the state of slot "{slot}": {problem.message}')

        self._slot_watch = SlotWatch(self._connector.without_prompt(), slot, on_state=on_state, on_problem=on_problem)


def _address(connection: Connection) -> str:
    host, port = connection.pgconn.host.decode(), connection.pgconn.port.decode()
    return f"{host or 'local socket'}:{port}"
