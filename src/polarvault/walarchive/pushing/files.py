"""What a server hands to its archive_command, looked at: is it what its name says?"""

from __future__ import annotations

import os

from polarvault.errors import IntegrityError, UsageError
from polarvault.model import limits
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.names import is_backup_history_name, is_history_name, is_segment_name
from polarvault.wal.segment_header import LONG_HEADER_BYTES, judge_place, parse_segment_header, valid_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from polarvault.wal.segment_header import SegmentHeader

PARTIAL = ".partial"


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


def look_at_segment(stream: BinaryIO, path: str) -> tuple[SegmentHeader, int]:
    """Return the facts on the first page, and how many bytes of the file are WAL; IntegrityError for a wrong one."""
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
    return header, _useful_bytes(stream, header, size) if is_partial else size


def _useful_bytes(stream: BinaryIO, header: SegmentHeader, size: int) -> int:
    """Return how much of a partial segment is WAL: whole pages by their headers, the last one up to its zeros."""
    descriptor = stream.fileno()
    end = valid_bytes(lambda at, length: os.pread(descriptor, length, at), header, size)
    start_of_last = max(0, end - 1) // header.page_bytes * header.page_bytes
    return start_of_last + len(os.pread(descriptor, end - start_of_last, start_of_last).rstrip(b"\0"))
