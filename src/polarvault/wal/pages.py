"""WAL pages: their headers, what makes one valid, and the words for the place where valid WAL ends.

Layout (server: access/xlog_internal.h, little-endian): magic u16, flags u16, timeline u32, page address u64, remaining
length u32, 4 bytes of padding; on a segment's first page also system identifier u64, segment size u32, WAL block size
u32. The remaining length says how much of a record from the page before is still to come.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from polarvault.model import versions
from polarvault.model.dataclass import dataclass
from polarvault.model.lsn import Lsn

PAGE_BYTES = 8192
SHORT_HEADER_BYTES, LONG_HEADER_BYTES = 24, 40
# XLOG_PAGE_MAGIC of each major version.
MAGICS = frozenset(version.page_magic for version in versions.VERSIONS.values())

CONTINUES_RECORD, IS_LONG, _REMOVABLE_BLOCKS, OVERWRITES_RECORD = 1, 2, 4, 8
KNOWN_FLAGS = CONTINUES_RECORD | IS_LONG | _REMOVABLE_BLOCKS | OVERWRITES_RECORD

_SHORT = struct.Struct("<HHIQI4x")
_LONG = struct.Struct("<QII")


class Ending(IntEnum):
    """Why no valid record stands where the next one should; the order has no meaning."""

    ZERO_RECORD = 1
    ZERO_PAGE = 2
    RECORD_LENGTH = 3
    RESOURCE_MANAGER = 4
    PREVIOUS_RECORD = 5
    CHECKSUM = 6
    PAGE_MAGIC = 7
    PAGE_FLAGS = 8
    SYSTEM_IDENTIFIER = 9
    SEGMENT_SIZE = 10
    BLOCK_SIZE = 11
    PAGE_ADDRESS = 12
    TIMELINE = 13
    UNEXPECTED_CONTINUATION = 14
    MISSING_CONTINUATION = 15
    CONTINUATION_LENGTH = 16


@dataclass(frozen=True, slots=True)
class WalEnd:
    """What ended the WAL: at which byte it was seen, what is there and what should be."""

    ending: Ending
    lsn: Lsn
    found: int = 0
    expected: int = 0

    def __str__(self) -> str:
        if self.ending is Ending.PAGE_MAGIC and not self.expected:
            known = versions.KNOWN_VERSIONS
            return f"the page at {self.lsn} has magic {self.found:04X}, which is that of none of {known}"
        return _TEXTS[self.ending].format(
            lsn=self.lsn, found=self.found, expected=self.expected,
            found_lsn=Lsn(self.found), expected_lsn=Lsn(self.expected),
        )  # fmt: skip


_TEXTS = {
    Ending.ZERO_RECORD: "zeros at {lsn}",
    Ending.ZERO_PAGE: "zeros at {lsn}, where a page begins",
    Ending.RECORD_LENGTH: "record length {found} at {lsn} is less than a record header",
    Ending.RESOURCE_MANAGER: "the record at {lsn} has the unknown resource manager {found}",
    Ending.PREVIOUS_RECORD: "the record at {lsn} follows one at {found_lsn}, but the last one was at {expected_lsn}",
    Ending.CHECKSUM: "the record at {lsn} has a wrong checksum: {found:08X} is stored, {expected:08X} calculated",
    Ending.PAGE_MAGIC: "the page at {lsn} has magic {found:04X}, which is not that of its WAL",
    Ending.PAGE_FLAGS: "the page at {lsn} has flags {found:04X}, which no server writes there",
    Ending.SYSTEM_IDENTIFIER: "the page at {lsn} belongs to the system {found}, not to {expected}",
    Ending.SEGMENT_SIZE: "the page at {lsn} is from segments of {found} bytes, not {expected}",
    Ending.BLOCK_SIZE: "the page at {lsn} is from WAL blocks of {found} bytes, not {expected}",
    Ending.PAGE_ADDRESS: "the page at {lsn} is old content of a recycled segment, written for {found_lsn}",
    Ending.TIMELINE: "the page at {lsn} is of timeline {found}, after a page of timeline {expected}",
    Ending.UNEXPECTED_CONTINUATION: "the page at {lsn} continues a record, but none was begun",
    Ending.MISSING_CONTINUATION: "the page at {lsn} does not continue the record before it",
    Ending.CONTINUATION_LENGTH: "the page at {lsn} continues a record with {found} bytes left, not {expected}",
}


@dataclass(frozen=True, slots=True)
class PageHeader:
    """One decoded page header; the last three fields are 0 in a short one."""

    magic: int
    flags: int
    timeline_id: int
    address: Lsn
    remaining_bytes: int
    system_identifier: int = 0
    segment_bytes: int = 0
    block_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Where the page's records begin."""
        return LONG_HEADER_BYTES if self.flags & IS_LONG else SHORT_HEADER_BYTES


def read_page_header(content: bytes, offset: int = 0) -> PageHeader | None:
    """Decode the header at an offset; None when not all of it is there."""
    if len(content) - offset < SHORT_HEADER_BYTES:
        return None
    magic, flags, timeline_id, address, remaining = _SHORT.unpack_from(content, offset)
    if not flags & IS_LONG:
        return PageHeader(magic, flags, timeline_id, Lsn(address), remaining)
    if len(content) - offset < LONG_HEADER_BYTES:
        return None
    more = _LONG.unpack_from(content, offset + SHORT_HEADER_BYTES)
    return PageHeader(magic, flags, timeline_id, Lsn(address), remaining, *more)


class PageSequence:
    """Says whether each page can follow the one before it; the rules are those of XLogReaderValidatePageHeader."""

    def __init__(self, segment_size_bytes: int) -> None:
        self._segment_bytes = segment_size_bytes
        self.magic = 0
        self.system_identifier = 0
        self.timeline_id = 0

    def problem(self, header: PageHeader, lsn: Lsn) -> WalEnd | None:
        """Return what is wrong with the page at the LSN, or None and remember it."""
        if header.magic == 0:
            return WalEnd(Ending.ZERO_PAGE, lsn)
        if header.magic != self.magic and (self.magic or header.magic not in MAGICS):
            return WalEnd(Ending.PAGE_MAGIC, lsn, header.magic, self.magic)
        if header.flags & ~KNOWN_FLAGS:
            return WalEnd(Ending.PAGE_FLAGS, lsn, header.flags)
        if header.flags & IS_LONG:
            if self.system_identifier not in (0, header.system_identifier):
                return WalEnd(Ending.SYSTEM_IDENTIFIER, lsn, header.system_identifier, self.system_identifier)
            if header.segment_bytes != self._segment_bytes:
                return WalEnd(Ending.SEGMENT_SIZE, lsn, header.segment_bytes, self._segment_bytes)
            if header.block_bytes != PAGE_BYTES:
                return WalEnd(Ending.BLOCK_SIZE, lsn, header.block_bytes, PAGE_BYTES)
        elif lsn % self._segment_bytes == 0:
            return WalEnd(Ending.PAGE_FLAGS, lsn, header.flags)
        if header.address != lsn:
            return WalEnd(Ending.PAGE_ADDRESS, lsn, header.address, lsn)
        # A child timeline has a greater number than its parent: in WAL that belongs together numbers never fall.
        if header.timeline_id < self.timeline_id:
            return WalEnd(Ending.TIMELINE, lsn, header.timeline_id, self.timeline_id)
        self.magic, self.timeline_id = header.magic, header.timeline_id
        self.system_identifier = header.system_identifier or self.system_identifier
        return None
