"""Push WAL into a repository: what an archive_command does with one file. Durable when it returns.

`polarvault wal push` starts once for every segment: nothing heavy may be imported at the top.

A segment becomes ranges. Where ranges are there already (another node pushes as well, a backup has streamed them), the
same bytes are a success, and others an error that says whose they are. A .partial, which a promoted server archives of
the segment that it left, is WAL of the old timeline up to its valid end, and becomes ranges too: whoever asks for the
segment is given as much of it as there is.
"""

from __future__ import annotations

import os
import threading

from polarvault.errors import BackupUnusable, IntegrityError, RepositoryNotFound
from polarvault.model import limits
from polarvault.model.segment import WalSegment
from polarvault.repository.wal.ranges import RANGE_BYTES
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.names import is_history_name
from polarvault.wal.segment_header import BEGINNING_BYTES, begins_anew
from polarvault.walarchive.histories import TWO_SERVERS, put_history
from polarvault.walarchive.pushing.files import PARTIAL, is_segment, look_at_segment, read_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from polarvault.repository.catalogue.repository import Generation, Repository
    from polarvault.repository.wal.ranges import RepositoryWal, StoredRange
    from polarvault.wal.segment_header import SegmentHeader


class Pusher:
    """Pushes files of one cluster. control: where pg_control is, for the first push; None: beside pg_wal.

    server_directory: where the server runs its archive_command; None: here.
    """

    def __init__(
        self, repository: Repository, cluster: str, *, control: str | None = None, server_directory: str | None = None
    ) -> None:
        self._repository, self._cluster, self._control = repository, cluster, control
        self._server_directory = os.getcwd() if server_directory is None else server_directory
        self._address = repository.store.address
        self._lock = threading.Lock()
        self._known: dict[int, RepositoryWal] = {}
        self._continued: set[int] = set()

    def push(self, path: str) -> int:
        """Push a segment, a partial one, a history or a backup history file; return how many bytes were new.

        Raises UsageError for what is none of them, IntegrityError for a segment that is not what its name says and for
        other bytes than are there, TimelineDiverged for a history that does not continue what is there, StorageFailed.
        May be called by several threads.
        """
        name = os.path.basename(path)
        return self._push_segment(path, name) if is_segment(name) else self._push_small(path, name)

    def _push_small(self, path: str, name: str) -> int:
        content = read_small(path)
        known = self._repository.generations(self._cluster)
        # Such a file does not say whose it is: the pg_control beside it does.
        identifier = self._of_control(path).system_identifier if len(known) != 1 else known[0]
        wal = self._repository.wal_of(self._cluster, identifier)
        if is_history_name(name):
            return self._put_history(wal, path, content)
        before = wal.read_file(int(name[:8], 16), name)
        if before == content:
            return 0
        if before is not None:
            raise IntegrityError(
                f'{self._address} has another "{name}" of {self._cluster} than "{path}": two servers write the same '
                f"timeline {int(name[:8], 16)}",
                hint=TWO_SERVERS,
            )
        wal.put_file(int(name[:8], 16), name, content)
        return len(content)

    def _put_history(self, wal: RepositoryWal, path: str, content: bytes) -> int:
        """Write a timeline's history if it continues those that are there."""
        return put_history(
            wal, int(os.path.basename(path)[:8], 16), content,
            origin=f'"{path}"', place=f"{self._address} of {self._cluster}",
        )  # fmt: skip

    def _continue(self, wal: RepositoryWal, path: str) -> None:
        """See that the server's timeline is the one that is there, and have its history durable before its WAL."""
        timeline_id = int(os.path.basename(path)[:8], 16)
        with self._lock:
            if timeline_id == 1 or timeline_id in self._continued:
                return
            beside = os.path.join(os.path.dirname(os.path.abspath(path)), f"{timeline_id:08X}.history")
            if os.path.lexists(beside):
                self._put_history(wal, beside, read_small(beside))
            self._continued.add(timeline_id)

    def _push_segment(self, path: str, name: str) -> int:
        try:
            with open_regular(path) as stream:
                return self._push_open(stream, path, name)
        except OSError as problem:
            raise storage_failed(problem, "read", path) from problem

    def _push_open(self, stream: BinaryIO, path: str, name: str) -> int:
        header, end = look_at_segment(stream, path, server_directory=self._server_directory)
        wal = self._wal(path, header)
        self._continue(wal, path)
        segment = WalSegment.parse(name.removesuffix(PARTIAL), wal.segment_bytes)
        if begins_anew(os.pread(stream.fileno(), BEGINNING_BYTES, 0)):
            self._check_reset(wal, segment, stream, path)
        return self._put(wal, segment, stream, end, path)

    def _check_reset(self, wal: RepositoryWal, segment: WalSegment, stream: BinaryIO, path: str) -> None:
        """Refuse what pg_resetwal has begun in the place of, or right behind, what is archived.

        A gap would be seen by everybody who plans a recovery. Without one the WAL looks as if it went on, and the
        server would end its recovery there.
        """
        ranges = wal.ranges(segment.timeline_id)
        before = WalSegment(segment.timeline_id, segment.number - 1, segment.size_bytes)
        there = [one for one in ranges if one.segment == segment and one.first == segment.start]
        is_same = any(
            wal.read_range(one)[:BEGINNING_BYTES] == os.pread(stream.fileno(), BEGINNING_BYTES, 0) for one in there
        )
        if is_same or not (there or any(one.segment == before for one in ranges)):
            return
        last = max(one.segment for one in ranges)
        raise IntegrityError(
            f'"{path}" was begun by pg_resetwal, and does not continue the WAL of {self._cluster} in {self._address}, '
            f"which ends at LSN {max(one.last for one in ranges)}",
            hint=f"leave a gap: stop the server, run pg_resetwal -l {last.next().next().file_name} DIRECTORY, start, "
            f"and take a backup: polarvault backup {self._cluster}; those from before reach what was archived before",
        )

    def _put(self, wal: RepositoryWal, segment: WalSegment, stream: BinaryIO, end: int, path: str) -> int:
        """Compare what is there, and write what is not; return how many bytes that was."""
        at, new = 0, 0
        for one in wal.segment_ranges(segment):
            first, last = one.first - segment.start, one.last - segment.start
            self._compare(wal, one, stream, min(last, end) - first, path)
            new += self._write(wal, segment, stream, at, min(first, end))
            at = max(at, last)
        return new + self._write(wal, segment, stream, at, end)

    def _write(self, wal: RepositoryWal, segment: WalSegment, stream: BinaryIO, at: int, end: int) -> int:
        begin = at
        while at < end:
            length = min(RANGE_BYTES, end - at)

            def read(view: memoryview, at: int = at) -> None:
                if os.preadv(stream.fileno(), [view], at) != len(view):
                    raise IntegrityError(f"the segment {segment.file_name} became shorter while it was read")

            wal.put_filled(segment.timeline_id, segment.start + at, length, read)
            at += length
        return max(0, at - begin)

    def _compare(self, wal: RepositoryWal, one: StoredRange, stream: BinaryIO, length: int, path: str) -> None:
        if length <= 0:
            return
        there = wal.read_range(one)[:length]
        here = os.pread(stream.fileno(), length, one.first - one.segment.start)
        if there == here:
            return
        differs = next(at for at, (mine, other) in enumerate(zip(here, there, strict=False)) if mine != other)
        raise IntegrityError(
            f'"{path}" and what {self._address} has of {one.segment.file_name} of {self._cluster} differ from LSN '
            f"{one.first + differs} on, on timeline {one.segment.timeline_id}: two servers write the same timeline",
            hint=TWO_SERVERS,
        )

    def _wal(self, path: str, header: SegmentHeader) -> RepositoryWal:
        """Return the WAL of the segment's own system identifier; the first push makes its generation."""
        with self._lock:
            if header.system_identifier not in self._known:
                self._known[header.system_identifier] = self._find_wal(path, header)
            wal = self._known[header.system_identifier]
        if wal.segment_bytes != header.segment_size_bytes:
            raise IntegrityError(
                f'"{path}" is a segment of {header.segment_size_bytes} bytes, and those of {self._cluster} in '
                f"{self._address} have {wal.segment_bytes}",
                hint="two clusters with one name? give this one another name in the repository",
            )
        return wal

    def _find_wal(self, path: str, header: SegmentHeader) -> RepositoryWal:
        identifier = header.system_identifier
        try:
            return self._repository.wal_of(self._cluster, identifier)
        except RepositoryNotFound:
            found = self._of_control(path)
            if found.system_identifier != identifier:
                raise IntegrityError(
                    f'"{path}" is of the cluster with system identifier {identifier}, the pg_control beside it of '
                    f"{found.system_identifier}",
                    hint="it is not archived; see how this file came here",
                ) from None
            self._repository.ensure_generation(self._cluster, found)
            return self._repository.wal_of(self._cluster, identifier)

    def _of_control(self, path: str) -> Generation:
        """Read what a generation says from the pg_control that belongs to the pg_wal in which the file lies."""
        from polarvault.pgfiles.control import parse_control
        from polarvault.repository.catalogue.repository import Generation

        beside = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(path))), "global", "pg_control")
        # A server runs its archive_command in its data directory; pg_wal may be a link to elsewhere.
        own = os.path.join(self._server_directory, "global", "pg_control")
        candidates = [self._control] if self._control is not None else [beside, own]
        place = next((one for one in candidates if os.path.exists(one)), None)
        if place is None:
            raise BackupUnusable(
                f"{self._cluster} is new in {self._address}, and no pg_control beside the WAL says what it is",
                hint=f"take a backup first: polarvault backup {self._cluster}; or push out of the server's own pg_wal",
            )
        try:
            with open_regular(place) as stream:
                control = parse_control(stream.read(limits.SMALL_FILE_BYTES))
        except OSError as problem:
            raise storage_failed(problem, "read", place) from problem
        # PolarDB: the shared half has pg_control and pg_wal, and no PG_VERSION, which is in the local one.
        shared = not os.path.exists(os.path.join(os.path.dirname(os.path.dirname(place)), "PG_VERSION"))
        return Generation(
            control.system_identifier,
            (control.major_version or 0) * 10_000,
            shared,
            control.wal_segment_size,
            control.relation_segment_blocks * control.block_size,
            control.has_data_checksums,
        )
