"""What a server hands to its archive_command, looked at: is it what its name says?"""

from __future__ import annotations

import os

from polarvault.errors import IntegrityError, UsageError
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.names import is_backup_history_name, is_history_name, is_segment_name
from polarvault.wal.segment_header import LONG_HEADER_BYTES, judge_place, parse_segment_header, valid_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from polarvault.wal.segment_header import SegmentHeader

PARTIAL = ".partial"
# Servers are built with other WAL pages, too; their records are not read.
_PAGE_BYTES = 8192
_ZEROS = bytes(256 << 10)
# Pages before the last one in which a record begins: few records are longer than a page.
_LOOK_BACK = (8, 128, 2048)
# While one of them is there the server is in recovery (server: access/xlog.h); the last one is PolarDB's.
_RECOVERY_SIGNALS = ("standby.signal", "recovery.signal", "replica.signal")


def is_segment(name: str) -> bool:
    """Tell a segment, whole or partial, from the small files beside it; raise UsageError for any other name."""
    if is_segment_name(name.removesuffix(PARTIAL)):
        return True
    if is_history_name(name) or is_backup_history_name(name):
        return False
    raise UsageError(
        f'"{name}" is not the name of a WAL segment, a history file or a backup history file',
        hint="archive_command = 'polarvault wal push %p'",
    )


def read_small(path: str) -> bytes:
    """Return a history or a backup history file; IntegrityError for what no server writes."""
    try:
        with open_regular(path) as stream:
            content = stream.read(limits.HISTORY_BYTES + 1)
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
    if len(content) > limits.HISTORY_BYTES or not content or b"\0" in content:
        raise IntegrityError(f'"{path}" is no file that a server writes under this name', hint=f"see it: less {path}")
    return content


def look_at_segment(stream: BinaryIO, path: str, *, server_directory: str | None = None) -> tuple[SegmentHeader, int]:
    """Return the facts on the first page, and how many bytes of the file are WAL; IntegrityError for a wrong one.

    server_directory: where the server runs its archive_command; None: here.

    Of a segment without .partial these are all. One that ends in zeros while the server is in recovery is refused: a
    standby with archive_mode = always archives what its restore_command gave it (server:
    access/transam/xlogarchive.c, KeepFileRestoredFromArchive), which may be the beginning of a segment. A success would
    end it: that the rest has come is told by the same .ready file, which the archiver takes away behind a success. A
    server that is not in recovery has no rest to come (it was promoted in this segment): then it is what a .partial is.
    """
    name = os.path.basename(path)
    header = parse_segment_header(os.pread(stream.fileno(), LONG_HEADER_BYTES, 0))
    if header is None:
        raise IntegrityError(
            f'"{path}" does not begin with a WAL page', hint="it is not archived; see the server's log"
        )
    look = judge_place(name, header)
    if look.problem is not None:
        raise IntegrityError(f'"{path}" {look.problem}', hint=look.hint)
    size = os.fstat(stream.fileno()).st_size
    is_partial = name.endswith(PARTIAL)
    if size != header.segment_size_bytes and not is_partial:
        raise IntegrityError(
            f'"{path}" has {size} bytes, a segment of this server has {header.segment_size_bytes}',
            hint="it is not archived; see whether the disk of the server is full",
        )
    if is_partial:
        return header, _useful_bytes(stream, header, size)
    if header.page_bytes != _PAGE_BYTES or valid_bytes(_reader(stream), header, size) == size:
        return header, size
    useful = _useful_bytes(stream, header, size)
    # What a server wrote behind a damaged page is not thrown away: whoever reads the segment is told of the page.
    if not _zeros_from(stream, useful) or ends_in_switch(stream, header, useful):
        return header, size
    if not _in_recovery(path, server_directory or os.getcwd()):
        return header, useful
    raise IntegrityError(
        f'"{path}" is not whole yet: its WAL ends after {useful} bytes, at LSN {Lsn(header.page_address + useful)}',
        hint="nothing is wrong if this is a standby: the server tries again, and it is archived when the rest has come",
    )


def _useful_bytes(stream: BinaryIO, header: SegmentHeader, size: int) -> int:
    """Return how much of a partial segment is WAL: whole pages by their headers, the last one up to its zeros."""
    read = _reader(stream)
    end = valid_bytes(read, header, size)
    start_of_last = max(0, end - 1) // header.page_bytes * header.page_bytes
    return start_of_last + len(read(start_of_last, end - start_of_last).rstrip(b"\0"))


def _zeros_from(stream: BinaryIO, start: int) -> bool:
    while content := os.pread(stream.fileno(), len(_ZEROS), start):
        # Comparing memory takes a twentieth of counting bytes.
        if content != (_ZEROS if len(content) == len(_ZEROS) else bytes(len(content))):
            return False
        start += len(content)
    return True


def _in_recovery(path: str, server_directory: str) -> bool:
    """Tell whether the server that hands over a segment of its pg_wal is a standby, or is being recovered."""
    # A server runs its archive_command in its data directory; on PolarDB pg_wal lies in the other half.
    places = os.path.dirname(os.path.dirname(os.path.abspath(path))), server_directory
    return any(os.path.lexists(os.path.join(place, name)) for place in places for name in _RECOVERY_SIGNALS)


def ends_in_switch(stream: BinaryIO, header: SegmentHeader, useful: int) -> bool:
    """Tell whether the last record of a segment is the switch to the next one; then it is whole, zeros and all."""
    # Only where a segment was not filled: most pushes do without.
    from polarvault.wal.records import RecordReader

    page = header.page_bytes
    last = max(0, useful - 1) // page * page
    for back in _LOOK_BACK:
        begin = max(0, last - back * page)
        reader = RecordReader(header.page_address + begin, header.segment_size_bytes)
        # One page more: zeros that belong to the record were taken for the rest of the page.
        reader.feed(_reader(stream)(begin, last + 2 * page - begin))
        if reader.record_count or not begin:
            break
    return reader.next_lsn == header.page_address + header.segment_size_bytes


def _reader(stream: BinaryIO) -> Callable[[int, int], bytes]:
    descriptor = stream.fileno()
    return lambda at, length: os.pread(descriptor, length, at)
