"""Receive WAL into a directory until told to stop: the use case behind `polarvault receivewal`. Start reading here.

Theory of operation. A *session* is one connection: identify the server, find out where to start, stream, follow the
timelines. The *receiver* outlives sessions: it keeps the open segment, so that a lost connection goes on at the very
byte where it broke, and the state that `--status` shows. What ends a session is retried with back-off; what would
damage the archive, or what only a person can mend, ends the program.
"""

from __future__ import annotations

import contextlib
import os
import re
import time

from polarvault.errors import (
    ConnectionFailed,
    ConnectionLost,
    DiskFull,
    PolarvaultError,
    RemoteProtocolError,
    ServerError,
    ServerRefused,
    SlotLost,
    StorageFailed,
    TimelineDiverged,
    WalGap,
)
from polarvault.model import limits, versions
from polarvault.model.segment import WalSegment
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity, read_identity, show
from polarvault.server.wal_connection import WalConnection, fetch_history, open_wal_connection
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.history import TimelineHistory, history_file_name
from polarvault.wal.names import is_written
from polarvault.walarchive.continuity import continuity
from polarvault.walarchive.request import ReceiveRequest
from polarvault.walarchive.resume import Cluster, StartPoint, after_kept_wal, continues, on_servers_history
from polarvault.walarchive.session import (
    SHOW_EVERY_S,
    UNDEFINED_OBJECT,
    ReceiveReporter,
    Session,
    no_such_slot,
)
from polarvault.walarchive.slots import lost_slot_error
from polarvault.walarchive.status import DirectoryLock, ReceiverState, note_failed_start, write_status
from polarvault.walarchive.stop import StopRequest
from polarvault.walarchive.wal_files import WalFiles
from polarvault.walarchive.watch import SlotState, SlotWatch, has_lost_wal, has_space, read_slot_state
from polarvault.wire import commands
from polarvault.wire.messages import parse_lsn

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_WARN_AGAIN_S = 300.0
_GRACE_S = 10.0
# A server that is never asked (-s 0) says something after half of its wal_sender_timeout, by default 30 s.
_UNASKED_S = 60.0
_RETRYABLE = (ConnectionFailed, ConnectionLost, ServerError, ServerRefused, DiskFull, TimelineDiverged, WalGap)


def receive_wal(request: ReceiveRequest, connector: Connector, reporter: ReceiveReporter, stop: StopRequest) -> None:
    """Receive until a stop is requested or the end LSN is reached; both are success.

    On return and on failure everything received is durable. Raises what cannot be retried; the first connection, and
    with loop=False every other failure too.
    """
    receiver = _Receiver(request, connector, reporter, stop)
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
        self, request: ReceiveRequest, connector: Connector, reporter: ReceiveReporter, stop: StopRequest
    ) -> None:
        self.request = request
        self.reporter = reporter
        self.stop = stop
        # Some grace: the question and the answer take their time, on a bad network too.
        news_within_s = (request.ask_after_s or _UNASKED_S) + _GRACE_S
        self.state = ReceiverState(time.time(), slot=request.slot, news_within_s=news_within_s)
        self.files: WalFiles | None = None
        self._mode = 0o600
        self._connector = connector
        # Taken once a server has let us in: a mistake in the command line leaves no files behind.
        self._lock: DirectoryLock | None = None
        self._system_identifier: str | None = None
        self._slot_watch: SlotWatch | None = None
        # Servers, by address and timeline, that write another history than what is here.
        self._diverged: dict[tuple[str, int], TimelineDiverged] = {}
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
                    self._lock = self._lock or DirectoryLock(self.request.directory)
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
                    if self.files is not None and self.files.received > before:
                        pause_s = _FIRST_PAUSE_S
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
            if self.files is not None:
                self.files.close()
                self.state.flushed_up_to(self.files.flushed, time.time())
        finally:
            self.state.enter("stopped", time.time())
            self._show(force=True)
            if self._lock is not None:
                if failed:
                    self._lock.forget_failure()
                self._lock.release()
            elif failed:
                note_failed_start(self.request.directory, self.state, time.time())

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
        if self.files is None:
            self.files = self._open_files(identity)
        source = open_wal_connection(connection, self.stop.wake_descriptor, self.reporter.notice)
        with contextlib.closing(source):
            history, fetched = self._history(source, identity.timeline_id)
            start = self._start_point(source, identity, history, _address(connection))
            # Not before: a history that what is here does not belong to would lead recovery astray.
            for name, content in fetched.items():
                self.files.add_history(name, content)
            if self.request.slot is not None and self._slot_watch is None:
                self._watch_slot(self.request.slot, identity.segment_size_bytes)
            session = Session(self, self.files, source, identity, continuity(self.files, history))
            try:
                session.run(start)
            except TimelineDiverged as problem:
                self._diverged[_address(connection), start.timeline_id] = problem
                raise

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

    def _open_files(self, identity: ServerIdentity) -> WalFiles:
        request = self.request
        # New files get the modes of the server's data directory.
        self._mode = 0o640 if identity.group_access else 0o600
        return WalFiles(
            request.directory,
            segment_size_bytes=identity.segment_size_bytes,
            compression=request.compression,
            mode=self._mode,
            sync=request.sync,
            synchronous=request.synchronous,
            wake=self.stop.wake,
            on_segment=lambda segment: self.reporter.step(
                f"finished segment at {segment.end} (timeline {segment.timeline_id})",
                event="segment", segment=segment.file_name, lsn=str(segment.end), timeline=segment.timeline_id,
            ),
        )  # fmt: skip

    def _history(self, source: WalConnection, timeline_id: int) -> tuple[TimelineHistory, dict[str, bytes]]:
        """Fetch the history of the server's timeline; return it and the files that the directory lacks.

        The ancestors' too: recovery looks for the newest timeline by counting up from the backup's, and stops at the
        first history file that is not there.
        """
        assert self.files is not None
        history, fetched = TimelineHistory(timeline_id), {}
        if timeline_id > 1:
            name, content = self.timeline_history(source, timeline_id)
            history, fetched[name] = TimelineHistory.parse(content, timeline_id), content
        # The ancestors by their entries: the timeline's number may be anything up to 4294967295.
        for ancestor in (entry.timeline_id for entry in history.entries if entry.timeline_id > 1):
            if self.stop.requested:
                raise KeyboardInterrupt
            if not self.files.has_history(history_file_name(ancestor)):
                try:
                    name, content = self.timeline_history(source, ancestor)
                    fetched[name] = content
                except ServerError as problem:
                    self.reporter.note(f"no history of timeline {ancestor} to be had: {problem.message}")
        return history, fetched

    def timeline_history(self, source: WalConnection, timeline_id: int) -> tuple[str, bytes]:
        """Fetch name and content of a history file."""
        with self.stop.interruptible():
            return fetch_history(source, timeline_id)

    def _start_point(
        self, source: WalConnection, identity: ServerIdentity, history: TimelineHistory, address: str
    ) -> StartPoint:
        """Find out where to go on, and have the files ready for it."""
        assert self.files is not None
        wanted = StartPoint(self.files.timeline_id, self.files.received)
        if not self.files.can_go_on(wanted.timeline_id):
            cluster = Cluster(identity.system_identifier, identity.segment_size_bytes)
            wanted = (
                after_kept_wal(self.request.directory, cluster, self.reporter.warning)
                or self._slot_position(source, identity)
                or StartPoint(identity.timeline_id, identity.flush_lsn)
            )
        self._check_history(wanted, identity, address)
        start = on_servers_history(wanted, history, self._kept_history(wanted.timeline_id), identity.segment_size_bytes)
        if start.remark:
            start = self._after_fork(start, identity, history)
        if start.remark:
            self.reporter.warning(start.remark)
        if start != wanted or not self.files.can_go_on(start.timeline_id):
            segment = WalSegment.holding(start.lsn, start.timeline_id, identity.segment_size_bytes)
            start = StartPoint(start.timeline_id, segment.start)
            self.files.begin(start.lsn, start.timeline_id)
        return start

    def _check_history(self, wanted: StartPoint, identity: ServerIdentity, address: str) -> None:
        """Refuse a primary that has less WAL than was received from it, for as long as it stays on that timeline.

        Once it has written as much again, no name tells its WAL from what it had before, and the archive would hold
        half of each. A standby may just be behind, and a version 13 does not say whether it is one. WAL that a crash
        without fsync took from the segment that is being received is fetched again.
        """
        if identity.timeline_id != wanted.timeline_id:
            return
        key = address, wanted.timeline_id
        finished = wanted.lsn // identity.segment_size_bytes * identity.segment_size_bytes
        knows_role = versions.of_server(identity.version_num).reports_hot_standby and not identity.in_recovery
        if knows_role and identity.flush_lsn < finished:
            segment = WalSegment.holding(identity.flush_lsn, wanted.timeline_id, identity.segment_size_bytes)
            self._diverged[key] = TimelineDiverged(
                f"the server was set back: its WAL ended at {identity.flush_lsn}, but up to {wanted.lsn} was received "
                f"before, on the same timeline {wanted.timeline_id}",
                hint=f"stop receiving, move the segments from {segment.file_name} on out of the directory (only they "
                "hold what the server has lost), start receiving again, and take a new base backup",
            )
        if key in self._diverged:
            raise self._diverged[key]

    def _after_fork(self, fork: StartPoint, identity: ServerIdentity, history: TimelineHistory) -> StartPoint:
        """Return where an earlier run, which has passed the fork as well, left off on the server's history."""
        cluster = Cluster(identity.system_identifier, identity.segment_size_bytes)
        kept = after_kept_wal(
            self.request.directory, cluster, self.reporter.warning,
            counts=lambda segment: continues(fork, history, segment),
        )  # fmt: skip
        if kept is None:
            return fork
        return on_servers_history(kept, history, self._kept_history(kept.timeline_id), identity.segment_size_bytes)

    def _kept_history(self, timeline_id: int) -> TimelineHistory | None:
        path = os.path.join(self.request.directory, history_file_name(timeline_id))
        try:
            with open_regular(path) as source:
                content = source.read(limits.HISTORY_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise storage_failed(problem, "read", path) from problem
        return TimelineHistory.parse(content, timeline_id) if is_written(content) else None

    def _slot_position(self, source: WalConnection, identity: ServerIdentity) -> StartPoint | None:
        """Return where the slot holds WAL back from, so that an empty directory begins without a gap."""
        slot = self.request.slot
        if slot is None:
            return None
        if versions.of_server(identity.version_num).takes_option_lists:
            with self.stop.interruptible():
                answer = source.query(f"READ_REPLICATION_SLOT {commands.quote_identifier(slot)}")
            row = answer.rows[0] if answer.rows else ()
            if len(row) < 3:
                raise RemoteProtocolError("READ_REPLICATION_SLOT did not return a row of three columns")
            if row[0] is None:
                raise no_such_slot(slot)
            if row[1] is None:
                return None
            timeline_id = answer.timeline(0, 2, "the slot's timeline") if row[2] else identity.timeline_id
            return StartPoint(timeline_id, answer.lsn(0, 1, "the slot's position"))
        try:
            with self.stop.interruptible():
                found = read_slot_state(self._connector.without_prompt(), slot)
        except PolarvaultError as problem:
            self.reporter.note(f'cannot ask where slot "{slot}" begins, starting at the present WAL: {problem.message}')
            return None
        if found is None:
            raise no_such_slot(slot)
        if not found.restart_lsn:
            return None
        return StartPoint(identity.timeline_id, parse_lsn(found.restart_lsn, "the slot's position"))

    # After a failure

    def _with_fate_of_slot(self, problem: PolarvaultError) -> PolarvaultError:
        """Say of missing WAL whether the slot has lost it: then no later try can go better."""
        slot = self.request.slot
        if not isinstance(problem, WalGap) or isinstance(problem, SlotLost) or slot is None or self.files is None:
            return problem
        if not has_lost_wal(self._connector.without_prompt(), slot):
            return problem
        files = self.files
        segment = WalSegment.holding(files.received, files.timeline_id, files.segment_size_bytes)
        return lost_slot_error(slot, files.received, segment.file_name, str(problem.__cause__ or problem.message))

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
        self._make_durable()
        self.reporter.note(f"disconnected; trying again in {pause_s:g} s")
        self._show(force=True)
        self.stop.wait(pause_s)

    def _make_durable(self) -> None:
        """Sync what was received: the server may be gone for good, and this the only copy of what it sent last."""
        if self.files is None:
            return
        # A disk that fails here fails the next session too, which says so.
        with contextlib.suppress(StorageFailed):
            self.files.sync()
            self.files.wait(SHOW_EVERY_S)
            self.state.flushed_up_to(self.files.flushed, time.time())

    def _wait_for_space(self) -> None:
        """Leave the open segment as it is, and come back to it when there is room for a whole one."""
        self.state.enter("disk full", time.time())
        size = self.files.segment_size_bytes if self.files is not None else 0
        if self.files is not None:
            self.files.abandon()
            self.files = None
        self.reporter.note("receiving is suspended until there is space for a segment; nothing is lost meanwhile "
                           "if a replication slot (-S) holds the WAL back")  # fmt: skip
        while not self.stop.requested:
            self._show(force=True)
            if has_space(self.request.directory, size):
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
        if self.files is not None:
            self.state.timeline_id, self.state.received = self.files.timeline_id, self.files.received
        if self._lock is not None:
            write_status(self.request.directory, self.state.as_json(time.time()), self._mode)
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
