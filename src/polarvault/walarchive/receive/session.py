"""One connection of a receiver: stream, acknowledge, follow the timelines. `receive` makes one after the other."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Protocol

from polarvault.errors import (
    ConnectionLost,
    PolarvaultError,
    RemoteProtocolError,
    ServerError,
    TimelineDiverged,
    WalGap,
)
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.server.identity import ServerIdentity
from polarvault.server.wal_connection import TimelineEnds, WalConnection, fetch_history
from polarvault.wal.history import TimelineHistory
from polarvault.wal.store import StartPoint, WalStore, WalWriter
from polarvault.walarchive.receive.continuity import Continuity
from polarvault.walarchive.receive.patience import Patience
from polarvault.walarchive.receive.request import ReceiveRequest
from polarvault.walarchive.receive.slots import lost_slot_error
from polarvault.walarchive.receive.state import ReceiverState
from polarvault.walarchive.receive.stop import StopRequest
from polarvault.wire import commands
from polarvault.wire.wal_messages import WalBatch

# The status file and the line on a terminal; both cost next to nothing.
SHOW_EVERY_S = 1.0
UNDEFINED_OBJECT = "42704"
_UNDEFINED_FILE, _NOT_IN_PREREQUISITE_STATE = "58P01", "55000"


class ReceiveReporter(Protocol):
    """Receives what happens."""

    def step(self, text: str, **facts: Any) -> None:
        """What pg_receivewal tells with --verbose; facts: the same for programs, `event` among them."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def notice(self, notice: ServerError) -> None:
        """What the server remarks; called while a message is read."""

    def warning(self, text: str) -> None:
        """Something that needs somebody's attention soon."""

    def problem(self, problem: PolarvaultError) -> None:
        """What ended a session."""

    def status(self, state: ReceiverState) -> None:
        """The present state, about once a second."""


class Receiver(Protocol):
    """What outlives the session."""

    request: ReceiveRequest
    reporter: ReceiveReporter
    stop: StopRequest
    state: ReceiverState
    store: WalStore

    def warn(self, text: str, key: str) -> None:
        """Warn, but not again and again."""

    def show(self) -> None:
        """Tell the state, at most once a second."""


class Session:
    """Streams over one connection."""

    def __init__(
        self,
        receiver: Receiver,
        writer: WalWriter,
        source: WalConnection,
        identity: ServerIdentity,
        continuity: Continuity | None,
    ) -> None:
        self._receiver = receiver
        self._writer = writer
        self._source = source
        self._identity = identity
        self._continuity = continuity
        self._status_sent = self._synced = self._heard_at = time.monotonic()
        self._heard = False
        self._asked_at: float | None = None
        self._patience = Patience()
        self._next_duty = 0.0
        self._acknowledged = Lsn(0)
        # How often the timeline was switched without any WAL in between, and where last.
        self._switches = 0
        self._switched_at = Lsn(0)

    def run(self, start: StartPoint) -> None:
        """Stream until all that was asked for is done."""
        receiver, writer = self._receiver, self._writer
        while True:
            receiver.reporter.step(
                f"starting log streaming at {start.lsn} (timeline {start.timeline_id})",
                event="start", lsn=str(start.lsn), timeline=start.timeline_id,
            )  # fmt: skip
            ends = self._start(start)
            receiver.state.enter("streaming", time.time())
            try:
                ends = ends or self._stream()
            except ServerError as problem:
                raise self._explained(problem) from problem
            if ends is None:
                receiver.reporter.step(
                    f"stopped log streaming at {writer.received} (timeline {writer.timeline_id})",
                    event="stop", lsn=str(writer.received), timeline=writer.timeline_id,
                )  # fmt: skip
                self._say_goodbye()
                return
            start = self._next_timeline(ends)

    def _start(self, start: StartPoint) -> TimelineEnds | None:
        command = commands.start_replication_command(
            str(start.lsn), start.timeline_id, slot=self._receiver.request.slot
        )
        try:
            with self._receiver.stop.interruptible():
                ends = self._source.start(command, start.lsn)
        except ServerError as problem:
            raise self._explained(problem) from problem
        if ends is None and self._receiver.request.status_interval_s > 0:
            # At once, as pg_receivewal does on every timeline: a new slot gets its restart_lsn by this.
            self._acknowledge(self._writer.flushed)
        return ends

    def _stream(self) -> TimelineEnds | None:
        """Receive until a stop (None) or the end of the timeline."""
        request, writer, stop = self._receiver.request, self._writer, self._receiver.stop
        while not stop.requested and (request.end_lsn is None or writer.received < request.end_lsn):
            if not writer.has_room:
                # The disk is behind. The server hears from us all the same.
                if writer.wait(SHOW_EVERY_S) and not writer.has_room:
                    # All of it is durable, and there is no room for more; there may be when the store wakes us.
                    stop.wait(SHOW_EVERY_S)
                self._acknowledge(writer.flushed)
                self._housekeeping()
                self._patience.full(time.monotonic())
                continue
            found = self._source.receive(self._next_duty - time.monotonic(), eager=request.synchronous)
            if isinstance(found, TimelineEnds):
                return found
            if found.size:
                if self._continuity is not None:
                    self._check_continuity(found)
                writer.write(found.views)
                self._patience.took()
            if found.server_end:
                self._heard = True
                self._receiver.state.server_said(found.server_end, time.time())
            if found.reply_now:
                # A server that shuts down asks until all of its WAL is flushed here, and does not end before.
                writer.sync()
                is_durable = writer.wait(SHOW_EVERY_S)
                self._patience.asked(time.monotonic(), is_durable=is_durable or not request.reports_flush)
            if found.reply_now or (request.synchronous and found.size):
                self._acknowledge(writer.flushed)
            if stop.woken or time.monotonic() >= self._next_duty:
                stop.drain()
                self._check_silence()
                self._housekeeping()
        return None

    def _check_continuity(self, batch: WalBatch) -> None:
        """Before the first WAL is written: what is here must not become half of one history and half of another."""
        assert self._continuity is not None
        try:
            self._continuity.check(batch.views)
        except TimelineDiverged:
            # A record that came in several pieces is found to be wrong when some have been written: the next server
            # that is asked sends the segment again.
            self._writer.end_segment()
            raise
        if self._continuity.is_settled():
            self._continuity = None

    def _check_silence(self) -> None:
        """Ask a silent server for a sign of life; one that has none, or a network that lost it, is left.

        A server says nothing by itself while it has no WAL to send and hears from us.
        """
        request, now = self._receiver.request, time.monotonic()
        if self._heard:
            self._heard, self._heard_at, self._asked_at = False, now, None
        silent_s = now - self._heard_at
        if not request.ask_after_s or silent_s < request.ask_after_s:
            return
        if self._asked_at is None:
            self._asked_at = now
            self._acknowledge(self._writer.flushed, reply_now=True)
        elif silent_s >= request.silence_limit_s and now - self._asked_at >= request.silence_limit_s / 2:
            raise ConnectionLost(
                f"nothing came from the server for {request.silence_limit_s:g} s, not even when it was asked",
                hint="see whether the server and the network between are well",
            )

    def _housekeeping(self) -> None:
        """Sync, acknowledge and show, each when it is time; say when the next one is due."""
        now, interval = time.monotonic(), self._receiver.request.status_interval_s
        if now - self._synced >= self._sync_every:
            self._synced = now
            self._writer.sync()
            warning = self._receiver.store.space_warning(self._identity.segment_size_bytes)
            if warning:
                self._receiver.warn(warning, "disk")
        flushed = self._writer.flushed
        # News about flushed WAL lets the server remove segments; a second more or less does not matter for that.
        has_news = (
            self._receiver.request.reports_flush
            and flushed > self._acknowledged
            and now - self._status_sent >= SHOW_EVERY_S
        )
        if interval > 0 and (has_news or now - self._status_sent >= interval):
            self._acknowledge(flushed)
        self._receiver.state.flushed_up_to(flushed, time.time())
        self._receiver.show()
        duties = [self._synced + self._sync_every, now + SHOW_EVERY_S]
        if interval > 0:
            duties.append(self._status_sent + interval)
        self._next_duty = min(duties)

    @property
    def _sync_every(self) -> float:
        request = self._receiver.request
        return min(request.status_interval_s or request.sync_every_s, request.sync_every_s)

    def _acknowledge(self, flushed: Lsn, *, reply_now: bool = False) -> None:
        reported = flushed if self._receiver.request.reports_flush else Lsn(0)
        self._source.send_status(written=self._writer.received, flushed=reported, reply_now=reply_now)
        self._acknowledged, self._status_sent = flushed, time.monotonic()

    def _next_timeline(self, ends: TimelineEnds) -> StartPoint:
        writer = self._writer
        self._check_switch(ends)
        self._receiver.reporter.step(
            f"switched to timeline {ends.timeline_id} at {ends.start}",
            event="timeline", lsn=str(ends.start), timeline=ends.timeline_id,
        )  # fmt: skip
        # The new timeline repeats the segment from its first byte, under a name of its own.
        writer.end_segment()
        self._continuity = None
        with self._receiver.stop.interruptible():
            _, content = fetch_history(self._source, ends.timeline_id)
        left = TimelineHistory.parse(content, ends.timeline_id).range_of(writer.timeline_id)
        if left is None or left.end != ends.start:
            raise RemoteProtocolError(
                f"the server says that timeline {ends.timeline_id} follows timeline {writer.timeline_id} at "
                f"{ends.start}, which its history does not"
            )
        self._receiver.store.add_history(ends.timeline_id, content)
        segment = WalSegment.holding(ends.start, ends.timeline_id, self._identity.segment_size_bytes)
        writer.begin(segment.start, ends.timeline_id)
        return StartPoint(ends.timeline_id, segment.start)

    def _check_switch(self, ends: TimelineEnds) -> None:
        """Refuse a next timeline that cannot be one: WAL that is here would be written over with another history."""
        writer = self._writer
        if ends.timeline_id <= writer.timeline_id:
            raise RemoteProtocolError(
                f"the server says that timeline {ends.timeline_id} follows timeline {writer.timeline_id}"
            )
        if ends.start > writer.received:
            raise RemoteProtocolError(
                f"the server ended timeline {writer.timeline_id} at {writer.received}, but says that timeline "
                f"{ends.timeline_id} begins at {ends.start}"
            )
        self._switches = 0 if writer.received > self._switched_at else self._switches + 1
        self._switched_at = writer.received
        if self._switches > limits.TIMELINES:
            raise RemoteProtocolError(f"the server goes from timeline to timeline at {writer.received} without any WAL")

    def _say_goodbye(self) -> None:
        """Make the rest durable, acknowledge it, and leave the server in an orderly way."""
        self._writer.end_segment()
        # What is durable is durable, whether or not the server is still there to be told.
        with contextlib.suppress(ConnectionLost):
            while not self._writer.wait(SHOW_EVERY_S):
                self._acknowledge(self._writer.flushed)
            self._acknowledge(self._writer.flushed)
            self._source.end()

    def _explained(self, problem: ServerError) -> PolarvaultError:
        """Give the server's refusals a name and a next step."""
        slot, position = self._receiver.request.slot, self._writer.received
        segment = WalSegment.holding(position, self._writer.timeline_id, self._identity.segment_size_bytes)
        # 58P01 is what a server says of a segment that it has removed; since 18 it names the slot that lost it instead.
        lost_slot = problem.sqlstate == _NOT_IN_PREREQUISITE_STATE and "invalidated" in f"{problem} {problem.detail}"
        if slot is not None and lost_slot:
            hint = self._receiver.store.lost_slot_hint
            return lost_slot_error(slot, position, segment.file_name, problem.message, hint=hint)
        if problem.sqlstate == _UNDEFINED_FILE or lost_slot:
            return WalGap(
                f"the server no longer has WAL from {position} on (segment {segment.file_name}): {problem.message}",
                hint=self._receiver.store.gap_hint,
            )
        if "ahead of the WAL flush position" in problem.message:
            # The server has lost WAL that it had sent, in a crash without fsync perhaps: its version counts. The
            # segment is fetched again from its first byte.
            self._writer.end_segment()
        if problem.sqlstate == UNDEFINED_OBJECT and slot is not None:
            return no_such_slot(slot)
        return problem


def no_such_slot(slot: str) -> ServerError:
    """Say that the slot is missing, and how to make it."""
    hint = f"create it: polarvault receivewal --create-slot -S {slot}, with the same connection options"
    return ServerError(
        f'replication slot "{slot}" does not exist',
        sqlstate=UNDEFINED_OBJECT,
        hint=hint if slot else "-S was given an empty name: a shell variable without a value, perhaps",
    )
