"""The local source: between the start and the stop of a backup, read every file that BASE_BACKUP would send.

Theory of operation. Archives come as a stream would bring them, but in the order in which a copy is right: the data
first, `global/pg_control` when nothing else is left to read of it (a standby's says how far replay has to get), then
the backup is stopped, and `backup_label`, which only the stop returns, goes into the archive of the data directory. The
feeding thread walks and opens; sinks, or the threads of `feeding`, read.
"""

from __future__ import annotations

from collections.abc import Callable

from polarvault.errors import ServerError, ServerRefused, StorageFailed
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.manifest import ManifestRange
from polarvault.pipeline.page_check import PageFindings, PageJudge
from polarvault.server.base_backup import (
    ArchiveBegins,
    ArchiveEnds,
    BackupStart,
    ManifestData,
    StreamEnds,
)
from polarvault.server.identity import ServerIdentity
from polarvault.storage import files
from polarvault.taking.local.content import PageReader, Reading
from polarvault.taking.local.feeding import feeder_for
from polarvault.taking.local.layout import ArchiveWalk, find_archives, size_kb
from polarvault.taking.local.manifest import ManifestLog
from polarvault.taking.local.pace import Pace
from polarvault.taking.local.place import LocalPlace
from polarvault.taking.local.sending import ArchiveSender, control_of
from polarvault.taking.local.session import BackupSession
from polarvault.taking.receive import Receiver
from polarvault.taking.request import ServerRequest
from polarvault.taking.source import Pause

_MANIFEST_PART_BYTES = 1 << 20


class LocalSource:
    """Implements `taking.source.BackupSource`. notice: told, as by the server, of what is left out."""

    def __init__(
        self, place: LocalPlace, identity: ServerIdentity, request: ServerRequest, *, waits: bool,
        notice: Callable[[ServerError], None],
    ) -> None:  # fmt: skip
        self._place, self._identity, self._request = place, identity, request
        self._session = BackupSession(
            place.sql, identity, label=request.label, fast=request.checkpoint_fast, waits=waits
        )
        self._notice = notice
        self._judge: PageJudge | None = None
        self.backend_pid = self._session.backend_pid
        self.findings: PageFindings | None = None
        asked = (request.manifest_checksums or "CRC32C").upper()
        self._algorithm = asked if request.manifest and asked != "NONE" else None
        self._manifest = ManifestLog(algorithm=self._algorithm, force_encode=request.manifest_force_encode)
        self._archives: list[ArchiveWalk] = []
        self._start: BackupStart | None = None
        self._tick: Callable[[], None] = lambda: None
        self._reading: Reading | None = None

    def start(self, while_waiting: Callable[[], None]) -> BackupStart:
        """Begin the backup on the server, find its tablespaces."""
        start_lsn = self._session.start(while_waiting)
        self._see_checkpoint(start_lsn)
        request, identity = self._request, self._identity
        try:
            # A tar has them in tablespace_map.
            archives = find_archives(
                self._place, identity, with_links=request.format != "tar" or identity.shared_storage,
                skip_special=self._skip_special,
            )  # fmt: skip
            if request.estimate_size:
                archives = [size_kb(archive, while_waiting) for archive in archives]
        except OSError as problem:
            raise self._unreadable(problem) from problem
        self._archives = archives
        self._start = BackupStart(start_lsn, self._session.timeline_id, [one.tablespace for one in archives])
        return self._start

    def check_pages(self, *, start_lsn: int, wal_repairs_torn_pages: bool) -> None:
        """Have every page verified as it is read."""
        self._judge = PageJudge(start_lsn=start_lsn, wal_repairs_torn_pages=wal_repairs_torn_pages)
        self.findings = self._judge.findings

    def run(self, receiver: Receiver, tick: Callable[[], None], pause: Pause | None) -> None:
        """Read everything, end the backup, and give the receiver its label, its manifest and its end."""
        rate = self._request.max_rate_kb
        pace = Pace(rate=None if rate is None else rate * 1024, pause=pause)

        def look() -> None:
            receiver.done_bytes = pace.done_bytes
            self._session.check()
            tick()

        self._tick = look
        pages = None
        if self._judge is not None:
            pages = PageReader(self._judge, relation_segment_bytes=self._identity.relation_segment_bytes)
        reading = self._reading = Reading(self._algorithm, pages, pace.taken, look)
        try:
            for archive in self._archives:
                self._send(receiver, archive, reading)
        except OSError as problem:
            raise self._unreadable(problem) from problem
        finally:
            pace.stop()
        receiver.done_bytes = pace.done_bytes

    def cancel(self) -> None:
        """Give the backup up."""
        self._session.cancel()

    def close(self) -> None:
        """Close what a failure has left open; nobody reads any more."""
        for archive in self._archives:
            if archive.tablespace.oid is not None and archive.walk is not None and not archive.tablespace.is_in_place:
                archive.walk.tree.close()
        if self._reading is not None:
            for content in list(self._reading.opened):
                content.discard()

    def _send(self, receiver: Receiver, archive: ArchiveWalk, reading: Reading) -> None:
        """Send one archive; with the last one, the data directory's, the backup ends."""
        space = archive.tablespace
        members = receiver.begin_members(ArchiveBegins(space.archive_name, space))
        feeder = feeder_for(members)
        sender = ArchiveSender(archive, feeder, reading, self._manifest)
        try:
            for found in archive.members():
                reading.looks()
                sender.send(found)
            # Before pg_control is read, and before the backup ends, everything else has been.
            feeder.drain()
            control = control_of(archive.walk.tree)[0] if archive.has_control and archive.walk is not None else None
            stop = None
            if space.oid is None and not space.shared:
                assert self._start is not None
                stop = self._session.stop(self._start.start_lsn, self._tick)
                mode = 0o640 if self._identity.group_access else 0o600
                sender.send_own("backup_label", stop.label, mode)
                if self._request.format == "tar" and not self._identity.shared_storage:
                    sender.send_own("tablespace_map", stop.tablespace_map, mode)
            if control is not None:
                sender.send_control(control)
            feeder.drain()
        finally:
            feeder.close()
        receiver.accept(ArchiveEnds())
        if stop is not None:
            self._finish(receiver, stop.stop_lsn)

    def _finish(self, receiver: Receiver, stop_lsn: Lsn) -> None:
        assert self._start is not None
        timeline_id = self._session.timeline_id
        if self._request.manifest:
            wal = ManifestRange(timeline_id, self._start.start_lsn, stop_lsn)
            content = self._manifest.encode(self._identity, wal)
            for at in range(0, len(content), _MANIFEST_PART_BYTES):
                receiver.accept(ManifestData(content[at : at + _MANIFEST_PART_BYTES]))
        receiver.accept(StreamEnds(stop_lsn, timeline_id))

    def _see_checkpoint(self, start_lsn: Lsn) -> None:
        """Raise ServerRefused unless pg_control has the checkpoint that this backup began with.

        What the server says of pg_control it reads by its path as well; the checkpoint it writes where its files are.
        """
        _, control = control_of(self._place.shared or self._place.data)
        if control.redo_lsn < start_lsn:
            raise ServerRefused(
                f"{self._place.addresses} is a copy, not the server's own directory: the backup began at {start_lsn}, "
                f"and pg_control there still has {control.redo_lsn}",
                hint="take the backup with --source stream, and see what lies at that path",
            )

    def _skip_special(self, name: str) -> None:
        self._notice(
            ServerError(f'skipping special file "./{name}"', severity="WARNING", sqlstate="01000", routine="sendDir")
        )

    def _unreadable(self, problem: OSError) -> StorageFailed:
        path = problem.filename if isinstance(problem.filename, str) else self._place.addresses
        return files.storage_failed(problem, "read", path)
