"""Receive WAL into a directory until told to stop: the use case behind `polarvault receivewal`. Start reading here.

Theory of operation. A *session* is one connection: identify the server, find out where to start, stream, follow the
timelines. The *receiver* outlives sessions: it keeps the open segment, so that a lost connection goes on at the very
byte where it broke, and the state that `--status` shows. What ends a session is retried with back-off; what would
damage the archive, or what only a person can mend, ends the program.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Protocol

from polarvault.errors import (
    ConnectionFailed,
    ConnectionLost,
    DiskFull,
    PolarvaultError,
    ServerError,
    ServerRefused,
    TimelineDiverged,
    WalGap,
)
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity, read_identity
from polarvault.server.wal_source import TimelineEnds, WalSource, open_wal_source
from polarvault.wal.history import TimelineHistory, history_file_name
from polarvault.walarchive.request import ReceiveRequest
from polarvault.walarchive.resume import Cluster, StartPoint, after_kept_wal, continues, on_servers_history
from polarvault.walarchive.status import DirectoryLock, ReceiverState, write_status
from polarvault.walarchive.stop import StopRequest
from polarvault.walarchive.wal_files import WalFiles
from polarvault.walarchive.watch import SlotState, SlotWatch, disk_warning, has_space, read_slot_state
from polarvault.wire import commands

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
# The status file and the line on a terminal; both cost next to nothing.
_SHOW_EVERY_S = 1.0
# Also without status messages (-s 0) an unfinished segment becomes durable this often.
_SYNC_EVERY_S = 10.0
_WARN_AGAIN_S = 300.0
_UNDEFINED_OBJECT = "42704"
_READ_REPLICATION_SLOT_SINCE = 150000
_RETRYABLE = (ConnectionFailed, ConnectionLost, ServerError, ServerRefused, DiskFull, TimelineDiverged, WalGap)


class Reporter(Protocol):
    """Receives what happens."""

    def step(self, text: str) -> None:
        """What pg_receivewal tells with --verbose."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def warning(self, text: str) -> None:
        """Something that needs somebody's attention soon."""

    def problem(self, problem: PolarvaultError) -> None:
        """What ended a session."""

    def status(self, state: ReceiverState) -> None:
        """The present state, about once a second."""


def receive_wal(request: ReceiveRequest, connector: Connector, reporter: Reporter, stop: StopRequest) -> None:
    """Receive until a stop is requested or the end LSN is reached; both are success.

    On return and on failure everything received is durable. Raises what cannot be retried; the first connection, and
    with loop=False every other failure too.
    """
    lock = DirectoryLock(request.directory)
    receiver = _Receiver(request, connector, reporter, stop)
    try:
        receiver.run()
    finally:
        receiver.close()
        lock.release()


class _Receiver:
    def __init__(self, request: ReceiveRequest, connector: Connector, reporter: Reporter, stop: StopRequest) -> None:
        self.request = request
        self.reporter = reporter
        self.stop = stop
        self.state = ReceiverState(time.time(), slot=request.slot)
        self.files: WalFiles | None = None
        self._connector = connector
        self._system_identifier: str | None = None
        self._slot_watch: SlotWatch | None = None
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
                    self._session(connection, identity)
                    return
                except KeyboardInterrupt:
                    return
                except _RETRYABLE as problem:
                    if self._is_hopeless(problem):
                        raise
                    if self.files is not None and self.files.received > before:
                        pause_s = _FIRST_PAUSE_S
                    self._wait_after(problem, pause_s)
                finally:
                    connection.close()
            if self.stop.requested:
                return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def close(self) -> None:
        """Make everything received durable, and leave the last status behind."""
        if self._slot_watch is not None:
            self._slot_watch.close()
        try:
            if self.files is not None:
                self.files.close()
                self.state.flushed_up_to(self.files.flushed)
        finally:
            self.state.state = "stopped"
            self._show(force=True)

    # One session

    def _connect(self) -> tuple[Connection, ServerIdentity]:
        self.state.state = "connecting"
        with self.stop.interruptible():
            connection = self._connector.replication()
            try:
                identity = read_identity(connection)
            except BaseException:
                connection.close()
                raise
        self.state.connections += 1
        self.state.server = f"{identity.product} at {_address(connection)}"
        return connection, identity

    def _session(self, connection: Connection, identity: ServerIdentity) -> None:
        """Stream over one connection until it is all over."""
        self._check_cluster(identity)
        if self.files is None:
            self.files = self._open_files(identity)
        source = open_wal_source(
            connection, self.stop.wake_descriptor, lambda notice: self.reporter.note(notice.message)
        )
        history, fetched = self._history(source, identity.timeline_id)
        start = self._start_point(source, identity, history)
        # Not before: a history that what is here does not belong to would lead recovery astray.
        for name, content in fetched.items():
            self.files.add_history(name, content)
        if self.request.slot is not None and self._slot_watch is None:
            self._watch_slot(self.request.slot, identity.segment_size_bytes)
        _Session(self, source, identity).run(start)

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
        # New files get the modes of the server's data directory, whatever the shell's umask.
        os.umask(0o027 if identity.group_access else 0o077)
        return WalFiles(
            request.directory,
            segment_size_bytes=identity.segment_size_bytes,
            compression=request.compression,
            mode=0o640 if identity.group_access else 0o600,
            sync=request.sync,
            synchronous=request.synchronous,
            wake=self.stop.wake,
            on_segment=lambda segment: self.reporter.step(
                f"finished segment at {segment.end} (timeline {segment.timeline_id})"
            ),
        )

    def _history(self, source: WalSource, timeline_id: int) -> tuple[TimelineHistory, dict[str, bytes]]:
        """Fetch the history of the server's timeline; return it and the files that the directory lacks.

        The ancestors' too: recovery looks for the newest timeline by counting up from the backup's, and stops at the
        first history file that is not there.
        """
        assert self.files is not None
        history, fetched = TimelineHistory(timeline_id), {}
        if timeline_id > 1:
            name, content = self.timeline_history(source, timeline_id)
            history, fetched[name] = TimelineHistory.parse(content, timeline_id), content
        for ancestor in range(2, timeline_id):
            if history.range_of(ancestor) and not self.files.has_history(history_file_name(ancestor)):
                try:
                    name, content = self.timeline_history(source, ancestor)
                    fetched[name] = content
                except ServerError as problem:
                    self.reporter.note(f"no history of timeline {ancestor} to be had: {problem.message}")
        return history, {name: content for name, content in fetched.items() if not self.files.has_history(name)}

    def timeline_history(self, source: WalSource, timeline_id: int) -> tuple[str, bytes]:
        """Fetch name and content of a history file."""
        with self.stop.interruptible():
            found = source.query(f"TIMELINE_HISTORY {timeline_id}")
        return found.value(0, 0), found.value(0, 1).encode("utf-8", "surrogateescape")

    def _start_point(self, source: WalSource, identity: ServerIdentity, history: TimelineHistory) -> StartPoint:
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
            with open(path, "rb") as source:
                return TimelineHistory.parse(source.read(), timeline_id)
        except FileNotFoundError:
            return None

    def _slot_position(self, source: WalSource, identity: ServerIdentity) -> StartPoint | None:
        """Return where the slot holds WAL back from, so that an empty directory begins without a gap."""
        slot = self.request.slot
        if slot is None:
            return None
        if identity.version_num >= _READ_REPLICATION_SLOT_SINCE:
            with self.stop.interruptible():
                row = source.query(f"READ_REPLICATION_SLOT {commands.quote_identifier(slot)}").rows[0]
            if row[0] is None:
                raise _no_such_slot(slot)
            if row[1] is None:
                return None
            return StartPoint(int(row[2] or identity.timeline_id), Lsn.parse(row[1]))
        try:
            with self.stop.interruptible():
                found = read_slot_state(self._connector.without_prompt(), slot)
        except PolarvaultError as problem:
            self.reporter.note(f'cannot ask where slot "{slot}" begins, starting at the present WAL: {problem.message}')
            return None
        if found is None:
            raise _no_such_slot(slot)
        return StartPoint(identity.timeline_id, Lsn.parse(found.restart_lsn)) if found.restart_lsn else None

    # After a failure

    def _is_hopeless(self, problem: PolarvaultError) -> bool:
        if not self.request.loop:
            return True
        # A slot that is missing from the start is a mistake in the command; later somebody dropped it, and may see so.
        missing_slot = isinstance(problem, ServerError) and problem.sqlstate == _UNDEFINED_OBJECT
        return missing_slot and self.state.connections == 1

    def _wait_after(self, problem: PolarvaultError, pause_s: float) -> None:
        self.reporter.problem(problem)
        self.state.failed(problem, time.time())
        self.state.state = "disconnected"
        if isinstance(problem, DiskFull):
            self._wait_for_space()
            return
        self.reporter.note(f"disconnected; trying again in {pause_s:g} s")
        self._show(force=True)
        self.stop.wait(pause_s)

    def _wait_for_space(self) -> None:
        """Leave the open segment as it is, and come back to it when there is room for a whole one."""
        self.state.state = "disk full"
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
            self.stop.wait(_SHOW_EVERY_S)

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
        if not force and now - self._shown < _SHOW_EVERY_S:
            return
        self._shown = now
        if self.files is not None:
            self.state.timeline_id, self.state.received = self.files.timeline_id, self.files.received
        write_status(self.request.directory, self.state.as_json(time.time()))
        self.reporter.status(self.state)

    def _watch_slot(self, slot: str, segment_size_bytes: int) -> None:
        def on_state(state: SlotState | None) -> None:
            if state is None:
                self.state.slot_state = None
                return
            self.state.slot_state = {"wal_status": state.wal_status, "safe_wal_bytes": state.safe_wal_bytes}
            warning = state.warning(slot, segment_size_bytes)
            if warning:
                self.warn(warning, f"slot {state.wal_status}")

        def on_problem(problem: PolarvaultError) -> None:
            if self.state.slot_state is None and not self._warned.get("unwatched"):
                self._warned["unwatched"] = time.monotonic()
                self.reporter.note(f'cannot watch the state of slot "{slot}": {problem.message}')

        self._slot_watch = SlotWatch(self._connector.without_prompt(), slot, on_state=on_state, on_problem=on_problem)


class _Session:
    """Streams over one connection."""

    def __init__(self, receiver: _Receiver, source: WalSource, identity: ServerIdentity) -> None:
        assert receiver.files is not None
        self._receiver = receiver
        self._files = receiver.files
        self._source = source
        self._identity = identity
        self._status_sent = self._synced = self._heard_at = time.monotonic()
        self._heard = False
        self._asked_at: float | None = None
        self._next_duty = 0.0
        self._acknowledged = Lsn(0)

    def run(self, start: StartPoint) -> None:
        """Stream until all that was asked for is done."""
        receiver, files = self._receiver, self._files
        while True:
            receiver.reporter.step(f"starting log streaming at {start.lsn} (timeline {start.timeline_id})")
            ends = self._start(start)
            receiver.state.state = "streaming"
            try:
                ends = ends or self._stream()
            except ServerError as problem:
                raise self._explained(problem) from problem
            if ends is None:
                receiver.reporter.step(f"stopped log streaming at {files.received} (timeline {files.timeline_id})")
                self._say_goodbye()
                return
            start = self._next_timeline(ends)

    def _start(self, start: StartPoint) -> TimelineEnds | None:
        command = commands.start_replication_command(
            str(start.lsn), start.timeline_id, slot=self._receiver.request.slot
        )
        try:
            with self._receiver.stop.interruptible():
                return self._source.start(command, start.lsn)
        except ServerError as problem:
            raise self._explained(problem) from problem

    def _stream(self) -> TimelineEnds | None:
        """Receive until a stop (None) or the end of the timeline."""
        request, files, stop = self._receiver.request, self._files, self._receiver.stop
        while not stop.requested and (request.end_lsn is None or files.received < request.end_lsn):
            if not files.has_room:
                # The disk is behind. The server hears from us all the same.
                files.wait_for_room(_SHOW_EVERY_S)
                self._acknowledge(files.flushed)
                self._housekeeping()
                continue
            found = self._source.receive(self._next_duty - time.monotonic(), eager=request.synchronous)
            if isinstance(found, TimelineEnds):
                return found
            if found.size:
                files.write(found)
            if found.server_end:
                self._heard = True
                self._receiver.state.server_said(found.server_end, time.time())
            if found.reply_now:
                # A server that shuts down asks until all of its WAL is flushed here, and does not end before.
                files.sync()
                files.wait(_SHOW_EVERY_S)
            if found.reply_now or (request.synchronous and found.size):
                self._acknowledge(files.flushed)
            if stop.woken or time.monotonic() >= self._next_duty:
                stop.drain()
                self._check_silence()
                self._housekeeping()
        return None

    def _check_silence(self) -> None:
        """Ask a silent server for a sign of life; one that has none, or a network that lost it, is left.

        A server says nothing by itself while it has no WAL to send and hears from us.
        """
        request, now = self._receiver.request, time.monotonic()
        if self._heard:
            self._heard, self._heard_at, self._asked_at = False, now, None
        half_s = request.silence_limit_s / 2
        if request.status_interval_s == 0 or now - self._heard_at < half_s:
            return
        if self._asked_at is None:
            self._asked_at = now
            self._source.send_status(written=self._files.received, flushed=self._files.flushed, reply_now=True)
        elif now - self._asked_at >= half_s:
            raise ConnectionLost(
                f"nothing came from the server for {request.silence_limit_s:g} s, not even when it was asked",
                hint="see whether the server and the network between are well",
            )

    def _housekeeping(self) -> None:
        """Sync, acknowledge and show, each when it is time; say when the next one is due."""
        now, interval = time.monotonic(), self._receiver.request.status_interval_s
        if now - self._synced >= self._sync_every:
            self._synced = now
            self._files.sync()
            warning = disk_warning(self._files.directory, self._identity.segment_size_bytes)
            if warning:
                self._receiver.warn(warning, "disk")
        flushed = self._files.flushed
        # News about flushed WAL lets the server remove segments; a second more or less does not matter for that.
        has_news = flushed > self._acknowledged and now - self._status_sent >= _SHOW_EVERY_S
        if interval > 0 and (has_news or now - self._status_sent >= interval):
            self._acknowledge(flushed)
        self._receiver.state.flushed_up_to(flushed)
        self._receiver.show()
        duties = [self._synced + self._sync_every, now + _SHOW_EVERY_S]
        if interval > 0:
            duties.append(self._status_sent + interval)
        self._next_duty = min(duties)

    @property
    def _sync_every(self) -> float:
        return min(self._receiver.request.status_interval_s or _SYNC_EVERY_S, _SYNC_EVERY_S)

    def _acknowledge(self, flushed: Lsn) -> None:
        self._source.send_status(written=self._files.received, flushed=flushed)
        self._acknowledged, self._status_sent = flushed, time.monotonic()

    def _next_timeline(self, ends: TimelineEnds) -> StartPoint:
        files = self._files
        self._receiver.reporter.step(f"switched to timeline {ends.timeline_id} at {ends.start}")
        # The new timeline repeats the segment from its first byte, under a name of its own.
        files.end_segment()
        name, content = self._receiver.timeline_history(self._source, ends.timeline_id)
        files.add_history(name, content)
        segment = WalSegment.holding(ends.start, ends.timeline_id, self._identity.segment_size_bytes)
        files.begin(segment.start, ends.timeline_id)
        return StartPoint(ends.timeline_id, segment.start)

    def _say_goodbye(self) -> None:
        """Make the rest durable, acknowledge it, and leave the server in an orderly way."""
        self._files.end_segment()
        # What is durable is durable, whether or not the server is still there to be told.
        with contextlib.suppress(ConnectionLost):
            while not self._files.wait(_SHOW_EVERY_S):
                self._acknowledge(self._files.flushed)
            self._acknowledge(self._files.flushed)
            self._source.end()

    def _explained(self, problem: ServerError) -> PolarvaultError:
        """Give the server's refusals a name and a next step."""
        slot, position = self._receiver.request.slot, self._files.received
        segment = WalSegment.holding(position, self._files.timeline_id, self._identity.segment_size_bytes)
        if "has already been removed" in problem.message:
            return WalGap(
                f"the server no longer has WAL from {position} on (segment {segment.file_name}): {problem.message}",
                hint="copy the missing segments from another WAL archive into the directory; or take a new base backup "
                "and receive into an empty directory, with a slot (-S) so that it does not happen again",
            )
        if problem.sqlstate == _UNDEFINED_OBJECT and slot is not None:
            return _no_such_slot(slot)
        return problem


def _no_such_slot(slot: str) -> ServerError:
    return ServerError(
        f'replication slot "{slot}" does not exist',
        sqlstate=_UNDEFINED_OBJECT,
        hint=f"create it: polarvault receivewal --create-slot -S {slot}, with the same connection options",
    )


def _address(connection: Connection) -> str:
    host, port = connection.pgconn.host.decode(), connection.pgconn.port.decode()
    return f"{host or 'local socket'}:{port}"
