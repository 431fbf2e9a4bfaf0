"""The last pages of what was received: what the next WAL has to continue."""

from __future__ import annotations

import os
from collections import deque

from polarvault.errors import IntegrityError, StorageFailed
from polarvault.model.segment import WalSegment
from polarvault.storage.files import open_regular
from polarvault.wal.pages import PAGE_BYTES
from polarvault.walfiles.choice import find
from polarvault.walfiles.directory import WalDirectory


def tail(path: str, end: int, length: int) -> bytes:
    """Return the last pages of a plain file before an offset, from the start of a page on."""
    start = max(0, end - length) // PAGE_BYTES * PAGE_BYTES
    try:
        with open_regular(path) as source:
            return os.pread(source.fileno(), end - start, start)
    except OSError:
        return b""  # Receiving finds out what is wrong with it.


def end_of_segment(directory: str, segment: WalSegment, length: int) -> bytes:
    """Return the end of a finished segment, nothing of one that is not there, not finished or damaged."""
    file = find(WalDirectory(directory), segment)
    if file is None or not file.is_final:
        return b""
    if file.path is not None and file.size_bytes is not None:
        return tail(file.path, segment.size_bytes, length)
    kept, kept_bytes = deque[bytes](), 0
    try:
        for view in file.views():
            kept.append(bytes(view))
            kept_bytes += len(view)
            while kept_bytes - len(kept[0]) >= length:
                kept_bytes -= len(kept.popleft())
    except (IntegrityError, StorageFailed):
        return b""
    end = b"".join(kept)[-length:]
    return end if len(end) == min(segment.size_bytes, length) else b""
