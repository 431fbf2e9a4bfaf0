"""Files of incremental backups of PostgreSQL 17 and later: the blocks of a relation's segment that changed.

Layout (server: backup/basebackup_incremental.h), numbers little-endian as on the server: magic u32, number of blocks
u32, truncation block length u32, the blocks' numbers within the segment u32 each and rising; padded to a page if there
are any; then the blocks. The whole segment is as long as the truncation block length or the last block that is there,
whichever is more; what no block gives comes from the earlier backup, and what that one lacks is zeros.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from polarvault.errors import RemoteProtocolError
from polarvault.model.names import shown_name
from polarvault.pgfiles.pages import PAGE_BYTES

PREFIX = "INCREMENTAL."
_MAGIC = 0xD3AE1F0D
_HEAD = struct.Struct("<III")


def full_name(name: str) -> str | None:
    """Return the path of the file that an incremental one stands for; None if it is none."""
    directory, slash, last = name.rpartition("/")
    return f"{directory}{slash}{last[len(PREFIX) :]}" if last.startswith(PREFIX) else None


@dataclass(frozen=True, slots=True)
class IncrementalHeader:
    """Which blocks there are, by their numbers within the segment, and how many blocks the whole segment has."""

    blocks: tuple[int, ...]
    length: int


class IncrementalReader:
    """Takes a file as it comes, cut anywhere; header is None until all of it has come."""

    def __init__(self, name: str, size: int, *, segment_blocks: int) -> None:
        """segment_blocks: how many blocks a segment has at most."""
        self.header: IncrementalHeader | None = None
        self._name, self._size, self._most = name, size, segment_blocks
        self._head = bytearray()
        self._page = bytearray()
        self._next = 0

    def feed(self, view: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Yield blocks that are complete, each with its number; a page is valid until the next one is asked for.

        Raises RemoteProtocolError for what no server sends.
        """
        at = 0
        if self.header is None:
            at = self._take_head(view)
            if self.header is None:
                return
        blocks = self.header.blocks
        while at < len(view):
            if self._next == len(blocks):
                raise self._wrong("is longer than its header says")
            if not self._page and len(view) - at >= PAGE_BYTES:
                page = view[at : at + PAGE_BYTES]
                at += PAGE_BYTES
            else:
                taken = view[at : at + PAGE_BYTES - len(self._page)]
                self._page += taken
                at += len(taken)
                if len(self._page) < PAGE_BYTES:
                    return
                page, self._page = memoryview(self._page), bytearray()
            yield blocks[self._next], page
            self._next += 1

    def end(self) -> None:
        """Raise RemoteProtocolError if something is missing."""
        if self.header is None or self._next < len(self.header.blocks):
            raise self._wrong("ends too early")

    def _take_head(self, view: memoryview) -> int:
        """Gather the header; return how much of the view belongs to it."""
        at = 0
        for wanted in (_HEAD.size, self._head_bytes):
            need = wanted if isinstance(wanted, int) else wanted()
            taken = view[at : at + max(0, need - len(self._head))]
            self._head += taken
            at += len(taken)
            if len(self._head) < need:
                return at
        _, count, truncated = _HEAD.unpack_from(self._head)
        blocks = struct.unpack_from(f"<{count}I", self._head, _HEAD.size)
        if any(one >= other for one, other in itertools.pairwise(blocks)):
            raise self._wrong("names blocks out of order")
        length = max(truncated, blocks[-1] + 1) if blocks else truncated
        if length > self._most:
            raise self._wrong(f"claims {length} blocks, and a segment has {self._most}")
        self.header = IncrementalHeader(blocks, length)
        self._head = bytearray()
        return at

    def _head_bytes(self) -> int:
        magic, count, _ = cast("tuple[int, int, int]", _HEAD.unpack_from(self._head))
        if magic != _MAGIC:
            raise self._wrong("does not begin as one")
        if count > self._most:
            raise self._wrong(f"claims {count} blocks, and a segment has {self._most}")
        size = _HEAD.size + 4 * count
        size = -(-size // PAGE_BYTES) * PAGE_BYTES if count else size
        if size + count * PAGE_BYTES != self._size:
            raise self._wrong(f"has {self._size} bytes, and its header asks for {size + count * PAGE_BYTES}")
        return size

    def _wrong(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"the incremental file {shown_name(self._name)} {what}")
