"""Which of several copies a recovery is given for a segment, and what none of them is good for: one rule.

`polarvault wal fetch` answers a server by it, and a plan foretells by it what the server will be answered. A finished
copy wins over one that may end early, because of the latter nobody knows whether it ends where the WAL does. Of
finished ones the first good one is taken, in the order of the places and plain before compressed; of the others the
one with the longest valid content. A finished copy that holds nothing at all (a crash of a careless archive_command
leaves it empty, or full of zeros) loses against one that holds WAL. Anything else that is wrong with a finished copy is
an error, never the end of the WAL.
"""

from __future__ import annotations

import os

from polarvault.errors import IntegrityError, StorageFailed
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.names import is_written
from polarvault.wal.segment_header import (
    LONG_HEADER_BYTES,
    SegmentHeader,
    is_valid_page,
    judge_place,
    parse_segment_header,
    valid_bytes,
)
from polarvault.walfiles.files import first_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from polarvault.model.segment import WalSegment
    from polarvault.wal.source import WalCopy, WalSource


def find(source: WalSource, segment: WalSegment) -> WalCopy | None:
    """Return the copy of a segment that a recovery is given; None if there is none."""
    return choose(source.copies(segment.file_name), segment)


def history_of(source: WalSource, timeline_id: int) -> bytes | None:
    """Return the content of a timeline's history file, the first one that a fetch would serve."""
    from polarvault.model import limits

    copies = source.copies(f"{timeline_id:08X}.history")
    contents = [content_of(copy, limits.HISTORY_BYTES + 1) for copy in copies]
    return next((content for content in contents if is_written(content)), contents[0] if contents else None)


def content_of(copy: WalCopy, most_bytes: int) -> bytes:
    """Return the content of a small file, no more than so much of it."""
    content = b""
    for view in copy.views():
        content += view[: most_bytes - len(content)]
        if len(content) == most_bytes:
            break
    return content


def choose(copies: Sequence[WalCopy], segment: WalSegment) -> WalCopy | None:
    """Return the best of the copies that are there for a segment, in the order of the places; None if none is."""
    final = [copy for copy in copies if copy.is_final]
    others = [copy for copy in copies if not copy.is_final]
    if final:
        # One alone is not opened here: an archive may hold many thousands.
        if len(final) == 1 and not others:
            return final[0]
        good = next((copy for copy in final if _looks_good(copy, segment)), None)
        if good is not None:
            return good
        partial = longest([copy for copy in others if holds_wal(copy)]) if all(map(_is_hollow, final)) else None
        return partial or final[0]
    return longest([copy for copy in others if holds_wal(copy)])


def _is_hollow(copy: WalCopy) -> bool:
    try:
        return copy.look_at_start().is_hollow
    except IntegrityError:
        return False


def holds_wal(copy: WalCopy) -> bool:
    """Tell whether a copy holds anything of its segment, or something that is wrong and has to be said."""
    look = copy.look_at_start()
    return look.header is not None or look.problem is not None


def longest(copies: Sequence[WalCopy]) -> WalCopy | None:
    """Return the copy with the longest valid content; the first of equal ones, None of none."""
    if len(copies) < 2:
        return copies[0] if copies else None
    return max(copies, key=valid_end)


def valid_end(copy: WalCopy) -> int:
    """Return how many bytes of valid WAL a copy holds: whole pages by their headers, the last one up to its zeros."""
    header = parse_segment_header(first_bytes(copy))
    if header is None:
        return 0
    try:
        stream = copy.open_plain()
        if stream is None:
            return _valid_end_of_views(copy, header)
        with stream:
            return _valid_end_of_file(stream, header)
    except OSError as problem:
        raise storage_failed(problem, "read", copy.where) from problem


def valid_end_in_server(path: str, name: str, system_identifier: int) -> int:
    """Return how much of a segment a server has itself; 0 where it has none, or another cluster's.

    path: of the file in its pg_wal, which may be there under this name and not yet written to, too.
    """
    try:
        with open_regular(path) as stream:
            header = parse_segment_header(os.pread(stream.fileno(), LONG_HEADER_BYTES, 0))
            if header is None or judge_place(name, header).problem is not None:
                return 0
            return _valid_end_of_file(stream, header) if header.system_identifier == system_identifier else 0
    except OSError:
        return 0


def _valid_end_of_file(stream: BinaryIO, header: SegmentHeader) -> int:
    def read(offset: int, length: int) -> bytes:
        return os.pread(stream.fileno(), length, offset)

    end = valid_bytes(read, header, os.fstat(stream.fileno()).st_size)
    start_of_last = max(0, end - 1) // header.page_bytes * header.page_bytes
    return start_of_last + len(read(start_of_last, end - start_of_last).rstrip(b"\0"))


def _valid_end_of_views(copy: WalCopy, header: SegmentHeader) -> int:
    pages, kept, last = 0, b"", b""
    for view in copy.views():
        kept += view
        whole = len(kept) // header.page_bytes * header.page_bytes
        for start in range(0, whole, header.page_bytes):
            page = kept[start : start + header.page_bytes]
            if not is_valid_page(page[:16], header, pages):
                return max(0, pages - 1) * header.page_bytes + len(last.rstrip(b"\0"))
            pages, last = pages + 1, page
        kept = kept[whole:]
    if is_valid_page(kept[:16], header, pages):
        pages, last = pages + 1, kept
    return max(0, pages - 1) * header.page_bytes + len(last.rstrip(b"\0"))


def _looks_good(copy: WalCopy, segment: WalSegment) -> bool:
    """Tell whether a finished copy has its segment's first page and, where that is seen without reading it, size."""
    try:
        header = parse_segment_header(first_bytes(copy))
        size_bytes = copy.size_bytes
    except (IntegrityError, StorageFailed, OSError):
        return False
    good_sizes = (None, segment.size_bytes)
    return header is not None and header.page_address == segment.start and size_bytes in good_sizes
