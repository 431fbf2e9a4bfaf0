"""Push WAL into a repository: what an archive_command does with one file. Durable when it returns.

`polarvault wal push` starts once for every segment: nothing heavy may be imported at the top.

A segment becomes ranges. Where ranges are there already (another node pushes as well, a backup has streamed them), the
same bytes are a success, and others an error that says whose they are. A .partial, which a promoted server archives of
the segment that it left, is WAL of the old timeline up to its valid end, and becomes ranges too: whoever asks for the
segment is given as much of it as there is.
"""

from __future__ import annotations

import os

from polarvault.errors import BackupUnusable, IntegrityError, RepositoryNotFound, UsageError
from polarvault.model import limits
from polarvault.model.segment import WalSegment
from polarvault.repository.wal.ranges import RANGE_BYTES
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.names import is_backup_history_name, is_history_name, is_segment_name
from polarvault.wal.segment_header import LONG_HEADER_BYTES, judge_place, parse_segment_header, valid_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from polarvault.repository.catalogue.repository import Generation, Repository
    from polarvault.repository.wal.ranges import RepositoryWal, StoredRange
    from polarvault.wal.segment_header import SegmentHeader

_PARTIAL = ".partial"


class Pusher:
    """Pushes files of one cluster. control: where pg_control is, for the first push; None: beside pg_wal."""

    def __init__(self, repository: Repository, cluster: str, *, control: str | None = None) -> None:
        self._repository, self._cluster, self._control = repository, cluster, control
        self._address = repository.store.address

    def push(self, path: str) -> int:
        """Push a segment, a partial one, a history or a backup history file; return how many bytes were new.

        Raises UsageError for what is none of them, IntegrityError for a segment that is not what its name says and for
        other bytes than are there, StorageFailed.
        """
        name = os.path.basename(path)
        if is_segment_name(name.removesuffix(_PARTIAL)):
            return self._push_segment(path, name)
        if is_history_name(name) or is_backup_history_name(name):
            return self._push_small(path, name)
        raise UsageError(
            f'"{name}" is not the name of a WAL segment, a history file or a backup history file',
            hint="archive_command = 'polarvault wal push %p'",
        )

    def _push_small(self, path: str, name: str) -> int:
        try:
            with open_regular(path) as stream:
                content = stream.read(limits.HISTORY_BYTES + 1)
        except OSError as problem:
            raise storage_failed(problem, "read", path) from problem
        if len(content) > limits.HISTORY_BYTES or not content or b"\0" in content:
            raise IntegrityError(
                f'"{path}" is no file that a server writes under this name', hint=f"see it: less {path}"
            )
        known = self._repository.generations(self._cluster)
        # Such a file does not say whose it is: the pg_control beside it does.
        identifier = self._of_control(path).system_identifier if len(known) != 1 else known[0]
        wal = self._repository.wal_of(self._cluster, identifier)
        timeline_id = int(name[:8], 16)
        before = wal.read_file(timeline_id, name)
        if before == content:
            return 0
        if before is not None:
            raise IntegrityError(
                f'{self._address} has another "{name}" of {self._cluster} than "{path}": two servers write the same '
                f"timeline {timeline_id}",
                hint="see which of them is the cluster; let the other one archive under another cluster name",
            )
        wal.put_file(timeline_id, name, content)
        return len(content)

    def _push_segment(self, path: str, name: str) -> int:
        try:
            with open_regular(path) as stream:
                return self._push_open(stream, path, name)
        except OSError as problem:
            raise storage_failed(problem, "read", path) from problem

    def _push_open(self, stream: BinaryIO, path: str, name: str) -> int:
        header = parse_segment_header(os.pread(stream.fileno(), LONG_HEADER_BYTES, 0))
        if header is None:
            raise IntegrityError(
                f'"{path}" does not begin with a WAL page', hint="it is not archived; see the server's log"
            )
        look = judge_place(name, header)
        if look.problem is not None:
            raise IntegrityError(f'"{path}" {look.problem}', hint=look.hint)
        size = os.fstat(stream.fileno()).st_size
        is_partial = name.endswith(_PARTIAL)
        if size != header.segment_size_bytes and not is_partial:
            raise IntegrityError(
                f'"{path}" has {size} bytes, a segment of this server has {header.segment_size_bytes}',
                hint="it is not archived; see whether the disk of the server is full",
            )
        wal = self._wal(path, header)
        segment = WalSegment.parse(name.removesuffix(_PARTIAL), wal.segment_bytes)
        end = _useful_bytes(stream, header, size) if is_partial else size
        return self._put(wal, segment, stream, end, path)

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
            content = os.pread(stream.fileno(), length, at)
            if len(content) != length:
                raise IntegrityError(f"the segment {segment.file_name} became shorter while it was read")
            wal.put_range(segment.timeline_id, segment.start + at, content)
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
            hint="see which of them is the cluster (a restored copy that was not promoted, an old primary that still "
            "runs?); let the other one archive under another cluster name; nothing was overwritten",
        )

    def _wal(self, path: str, header: SegmentHeader) -> RepositoryWal:
        """Return the WAL of the segment's own system identifier; the first push makes its generation."""
        identifier = header.system_identifier
        try:
            wal = self._repository.wal_of(self._cluster, identifier)
        except RepositoryNotFound:
            found = self._of_control(path)
            if found.system_identifier != identifier:
                raise IntegrityError(
                    f'"{path}" is of the cluster with system identifier {identifier}, the pg_control beside it of '
                    f"{found.system_identifier}",
                    hint="it is not archived; see how this file came here",
                ) from None
            self._repository.ensure_generation(self._cluster, found)
            wal = self._repository.wal_of(self._cluster, identifier)
        if wal.segment_bytes != header.segment_size_bytes:
            raise IntegrityError(
                f'"{path}" is a segment of {header.segment_size_bytes} bytes, and those of {self._cluster} in '
                f"{self._address} have {wal.segment_bytes}",
                hint="two clusters with one name? give this one another name in the repository",
            )
        return wal

    def _of_control(self, path: str) -> Generation:
        """Read what a generation says from the pg_control that belongs to the pg_wal in which the file lies."""
        from polarvault.pgfiles.control import parse_control
        from polarvault.repository.catalogue.repository import Generation

        beside = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(path))), "global", "pg_control")
        # A server runs its archive_command in its data directory; pg_wal may be a link to elsewhere.
        own = os.path.join(os.getcwd(), "global", "pg_control")
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


def _useful_bytes(stream: BinaryIO, header: SegmentHeader, size: int) -> int:
    """Return how much of a partial segment is WAL: whole pages by their headers, the last one up to its zeros."""
    descriptor = stream.fileno()
    end = valid_bytes(lambda at, length: os.pread(descriptor, length, at), header, size)
    start_of_last = max(0, end - 1) // header.page_bytes * header.page_bytes
    return start_of_last + len(os.pread(descriptor, end - start_of_last, start_of_last).rstrip(b"\0"))
