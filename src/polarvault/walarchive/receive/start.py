"""Where a session begins to stream: the server's history, what is kept, the slot, or the server's present position."""

from __future__ import annotations

from polarvault.errors import PolarvaultError, RemoteProtocolError, ServerError, TimelineDiverged
from polarvault.model import versions
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.server.connection import Connector
from polarvault.server.identity import ServerIdentity
from polarvault.server.wal_connection import WalConnection, fetch_history
from polarvault.wal.history import TimelineHistory
from polarvault.wal.store import Cluster, StartPoint, WalStore, WalWriter
from polarvault.walarchive.receive.histories import continues, on_servers_history
from polarvault.walarchive.receive.request import ReceiveRequest
from polarvault.walarchive.receive.session import ReceiveReporter, no_such_slot
from polarvault.walarchive.receive.stop import StopRequest
from polarvault.walarchive.receive.watch import read_slot_state
from polarvault.wire import commands
from polarvault.wire.messages import parse_lsn


class StartPoints:
    """Finds out where to begin, session after session; remembers servers that write another history."""

    def __init__(
        self,
        request: ReceiveRequest,
        store: WalStore,
        connector: Connector,
        reporter: ReceiveReporter,
        stop: StopRequest,
    ) -> None:
        self._request = request
        self._store = store
        self._connector = connector
        self._reporter = reporter
        self._stop = stop
        # Servers, by address and timeline, that write another history than what is here.
        self._diverged: dict[tuple[str, int], TimelineDiverged] = {}

    def has_diverged(self, address: str, timeline_id: int, problem: TimelineDiverged) -> None:
        """Remember a server whose WAL does not continue what is here."""
        self._diverged[address, timeline_id] = problem

    def histories(self, source: WalConnection, timeline_id: int) -> tuple[TimelineHistory, dict[int, bytes]]:
        """Fetch the history of the server's timeline; return it and, by timeline, those that the store lacks.

        The ancestors' too: recovery looks for the newest timeline by counting up from the backup's, and stops at the
        first history file that is not there.
        """
        history, fetched = TimelineHistory(timeline_id), {}
        if timeline_id > 1:
            fetched[timeline_id] = self._fetch(source, timeline_id)
            history = TimelineHistory.parse(fetched[timeline_id], timeline_id)
        # The ancestors by their entries: the timeline's number may be anything up to 4294967295.
        for ancestor in (entry.timeline_id for entry in history.entries if entry.timeline_id > 1):
            if self._stop.requested:
                raise KeyboardInterrupt
            if self._kept(ancestor) is None:
                try:
                    fetched[ancestor] = self._fetch(source, ancestor)
                except ServerError as problem:
                    self._reporter.note(f"no history of timeline {ancestor} to be had: {problem.message}")
        return history, fetched

    def _fetch(self, source: WalConnection, timeline_id: int) -> bytes:
        with self._stop.interruptible():
            return fetch_history(source, timeline_id)[1]

    def find(
        self,
        source: WalConnection,
        identity: ServerIdentity,
        history: TimelineHistory,
        address: str,
        writer: WalWriter,
    ) -> StartPoint:
        """Find out where to go on, and have the writer ready for it; raise TimelineDiverged where it cannot."""
        wanted = StartPoint(writer.timeline_id, writer.received)
        if not writer.can_go_on(wanted.timeline_id):
            cluster = Cluster(identity.system_identifier, identity.segment_size_bytes)
            held = self._slot_position(source, identity) if writer.begins_anywhere else None
            # Of a store that hangs this takes minutes.
            with self._stop.interruptible():
                resumed = self._store.resume_point(
                    cluster, self._reporter.warning, held_from=held.lsn if held else None
                )
            wanted = (
                resumed
                or held
                or self._slot_position(source, identity)
                or StartPoint(identity.timeline_id, identity.flush_lsn)
            )
            if resumed is not None and writer.begins_anywhere:
                writer.begin(resumed.lsn, resumed.timeline_id)
        self._check_history(wanted, identity, address, source)
        start = on_servers_history(wanted, history, self._kept_history(wanted.timeline_id), identity.segment_size_bytes)
        if start.remark:
            start = self._after_fork(start, identity, history)
        if start.remark:
            self._reporter.warning(start.remark)
        if start != wanted or not writer.can_go_on(start.timeline_id):
            segment = WalSegment.holding(start.lsn, start.timeline_id, identity.segment_size_bytes)
            start = StartPoint(start.timeline_id, segment.start)
            writer.begin(start.lsn, start.timeline_id)
        return start

    def _check_history(self, wanted: StartPoint, identity: ServerIdentity, address: str, source: WalConnection) -> None:
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
        if knows_role and identity.flush_lsn < finished and (flushed := self._flushed_now(source)) < finished:
            segment = WalSegment.holding(flushed, wanted.timeline_id, identity.segment_size_bytes)
            self._diverged[key] = TimelineDiverged(
                f"the server was set back: its WAL ended at {flushed}, but up to {wanted.lsn} was received "
                f"before, on the same timeline {wanted.timeline_id}",
                hint=f"stop receiving, move the segments from {segment.file_name} on out of the directory (only they "
                "hold what the server has lost), start receiving again, and take a new base backup",
            )
        if key in self._diverged:
            raise self._diverged[key]

    def _flushed_now(self, source: WalConnection) -> Lsn:
        """Ask again where the server's WAL ends: others write into a repository, too, while it is asked."""
        with self._stop.interruptible():
            answer = source.query("IDENTIFY_SYSTEM")
        if len(answer.rows) != 1 or len(answer.rows[0]) < 3:
            raise RemoteProtocolError("IDENTIFY_SYSTEM did not return one row of at least three columns")
        return answer.lsn(0, 2, "its position in the WAL")

    def _after_fork(self, fork: StartPoint, identity: ServerIdentity, history: TimelineHistory) -> StartPoint:
        """Return where an earlier run, which has passed the fork as well, left off on the server's history."""
        cluster = Cluster(identity.system_identifier, identity.segment_size_bytes)
        with self._stop.interruptible():
            kept = self._store.resume_point(
                cluster, self._reporter.warning, counts=lambda segment: continues(fork, history, segment)
            )
        if kept is None:
            return fork
        return on_servers_history(kept, history, self._kept_history(kept.timeline_id), identity.segment_size_bytes)

    def _kept_history(self, timeline_id: int) -> TimelineHistory | None:
        content = self._kept(timeline_id)
        return None if content is None else TimelineHistory.parse(content, timeline_id)

    def _kept(self, timeline_id: int) -> bytes | None:
        with self._stop.interruptible():
            return self._store.history(timeline_id)

    def _slot_position(self, source: WalConnection, identity: ServerIdentity) -> StartPoint | None:
        """Return where the slot holds WAL back from, so that an empty directory begins without a gap."""
        slot = self._request.slot
        if slot is None:
            return None
        if versions.of_server(identity.version_num).takes_option_lists:
            with self._stop.interruptible():
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
            with self._stop.interruptible():
                found = read_slot_state(self._connector.without_prompt(), slot)
        except PolarvaultError as problem:
            self._reporter.note(
                f'cannot ask where slot "{slot}" begins, starting at the present WAL: {problem.message}'
            )
            return None
        if found is None:
            raise no_such_slot(slot)
        if not found.restart_lsn:
            return None
        return StartPoint(identity.timeline_id, parse_lsn(found.restart_lsn, "the slot's position"))
