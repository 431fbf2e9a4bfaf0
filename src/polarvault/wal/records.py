"""The WAL record reader in plain Python: the definition that the compiled one is tested against, and its fallback.

Record layout (server: access/xlogrecord.h, little-endian): total length u32, transaction id u32, LSN of the record
before u64, info u8, resource manager u8, 2 bytes of padding, CRC-32C u32; then the body: headers of the blocks that the
record touches, their data, and last the main data. The checksum covers the body and then the first 20 bytes of the
header. Records begin at multiples of 8; page headers interrupt them.

The reader is a stream: bytes go in as they come, cut anywhere, and it holds no more than one record's body. Its rules
are those of the server (access/transam/xlogreader.c), so that it ends where recovery would end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import google_crc32c

from polarvault.model import versions
from polarvault.model.dataclass import dataclass
from polarvault.model.lsn import Lsn
from polarvault.model.segment import is_segment_size
from polarvault.wal.pages import (
    CONTINUES_RECORD,
    OVERWRITES_RECORD,
    PAGE_BYTES,
    SHORT_HEADER_BYTES,
    Ending,
    PageHeader,
    PageSequence,
    WalEnd,
    read_page_header,
)

HEADER_BYTES = 24
CHECKED_HEADER_BYTES = 20
ALIGNMENT = 8
# Of the newest version: none has taken one away. Extensions take 128 and more.
LAST_BUILTIN_RMGR, FIRST_CUSTOM_RMGR = versions.NEWEST.records.last_resource_manager, 128
RMGR_XLOG, RMGR_TRANSACTION, RMGR_TABLESPACE = 0, 1, 5
XLOG_SWITCH = 0x40
# The lower half of info belongs to the WAL itself, the upper half to the resource manager.
RMGR_INFO_MASK = 0xF0

_HEADER = struct.Struct("<IIQBBxxI")
# What begins a part of the record's headers; the numbers up to the last block's begin a block.
DATA_SHORT, DATA_LONG, ORIGIN, TOP_XID, LAST_BLOCK_ID = 255, 254, 253, 252, 32
BLOCK_HAS_IMAGE, BLOCK_SAME_RELATION = 0x10, 0x80
IMAGE_HAS_HOLE = 0x01

# How many bytes of a record's body are wanted; it gets the resource manager and the info byte.
WantedBytes = Callable[[int, int], int]


@dataclass(frozen=True, slots=True)
class Record:
    """One valid record. The body may be cut short by the reader's `wanted_bytes`; magic is 0 before the first page."""

    lsn: Lsn
    end_lsn: Lsn
    total_bytes: int
    xid: int
    previous_lsn: Lsn
    info: int
    rmgr: int
    magic: int
    body: bytes


def align(position: int) -> int:
    """Return where the next record can begin."""
    return (position + ALIGNMENT - 1) & -ALIGNMENT


def check_start(start: int, segment_size_bytes: int) -> None:
    """Raise ValueError unless a record or a page can begin there."""
    if not is_segment_size(segment_size_bytes):
        raise ValueError(f"{segment_size_bytes} bytes is not a WAL segment size")
    in_page = start % PAGE_BYTES
    if start % ALIGNMENT or 0 < in_page < SHORT_HEADER_BYTES:
        raise ValueError(f"no record and no page can begin at {Lsn(start)}")


def is_known_rmgr(rmgr: int) -> bool:
    """Tell whether a server can have written a record of this resource manager."""
    return rmgr <= LAST_BUILTIN_RMGR or rmgr >= FIRST_CUSTOM_RMGR


def find_main_data(body: bytes | memoryview, magic: int = 0) -> tuple[int, int]:
    """Return offset and length of the main data in a whole record body; raise ValueError if the headers make no sense.

    Any length may be 0. The block headers in front are walked only as far as needed to pass over them.
    """
    at, data_bytes, main_bytes = 0, 0, 0
    try:
        while len(body) - at > data_bytes:
            block_id = body[at]
            if block_id == DATA_SHORT:
                main_bytes, at = body[at + 1], at + 2
                break
            if block_id == DATA_LONG:
                main_bytes, at = struct.unpack_from("<I", body, at + 1)[0], at + 5
                break
            if block_id == ORIGIN:
                at += 3
            elif block_id == TOP_XID:
                at += 5
            elif block_id <= LAST_BLOCK_ID:
                at, block_bytes = _pass_block_header(body, at, magic)
                data_bytes += block_bytes
            else:
                raise ValueError(f"unknown block number {block_id}")
    except (IndexError, struct.error) as short:
        raise ValueError("the record is shorter than its headers say") from short
    return at + data_bytes, main_bytes


def _pass_block_header(body: bytes | memoryview, at: int, magic: int) -> tuple[int, int]:
    """Return where the block header at `at` ends, and how much data the block has."""
    fork_flags = body[at + 1]
    (data_bytes,) = struct.unpack_from("<H", body, at + 2)
    at += 4
    if fork_flags & BLOCK_HAS_IMAGE:
        image_bytes, _, image_flags = struct.unpack_from("<HHB", body, at)
        compressed = versions.record_layout(magic).image_is_compressed
        at += 7 if image_flags & compressed and image_flags & IMAGE_HAS_HOLE else 5
        data_bytes += image_bytes
    # The relation (tablespace, database, file) unless it is that of the block before; then the block number.
    at += 4 if fork_flags & BLOCK_SAME_RELATION else 16
    return at, data_bytes


class RecordReader:
    """Feed consecutive WAL bytes from `start`; get every record; know where valid WAL ends.

    start is a record's LSN, or a page's first byte: then the rest of a record from before is passed over.
    """

    def __init__(
        self,
        start: int,
        segment_size_bytes: int,
        *,
        check_crc: bool = True,
        wanted_bytes: WantedBytes = lambda rmgr, info: 1 << 32,
    ) -> None:
        check_start(start, segment_size_bytes)
        self.next_lsn = Lsn(start)
        self.end: WalEnd | None = None
        self.record_count = 0
        self._pages = PageSequence(segment_size_bytes)
        self._segment_bytes = segment_size_bytes
        self._check_crc = check_crc
        self._wanted_bytes = wanted_bytes
        # The next byte to look at. It may lie beyond what was fed: padding and the rest of a switched segment.
        self._at = start
        self._fed = start
        self._rest = b""
        # Until the first page is known to begin no continuation, or the continuation has been passed over.
        self._passing = start % PAGE_BYTES == 0
        self._last_lsn: int | None = None
        self._begin(0)

    @property
    def last_lsn(self) -> Lsn | None:
        """Where the last whole valid record begins; None while there is none."""
        return None if self._last_lsn is None else Lsn(self._last_lsn)

    def feed(self, content: bytes | bytearray | memoryview) -> list[Record]:
        """Take the bytes that follow those of the last call; return the records that end in them."""
        records: list[Record] = []
        buffer = self._rest + bytes(content)
        first = self._fed - len(self._rest)
        self._fed += len(content)
        while self.end is None and self._at < self._fed:
            if self._at % PAGE_BYTES == 0:
                done = self._take_page_header(buffer, self._at - first)
            else:
                done = self._take_record_part(buffer, self._at - first, records)
            if not done:
                break
        self._rest = buffer[max(0, self._at - first) :] if self.end is None else b""
        return records

    def _begin(self, lsn: int) -> None:
        """Expect a record; `lsn` is 0 while none has begun."""
        self._lsn = lsn
        self._head = b""
        self._body = bytearray()
        self._body_left = 0
        self._crc = 0

    def _take_page_header(self, buffer: bytes, offset: int) -> bool:
        header = read_page_header(buffer, offset)
        if header is None:
            return False
        page = Lsn(self._at)
        self.end = self._pages.problem(header, page)
        if self.end is None:
            if self._passing:
                self._pass_continuation(header)
            else:
                self.end = self._continuation_problem(header, page)
                self._at += header.size_bytes
        return True

    def _pass_continuation(self, header: PageHeader) -> None:
        """Find the first record of a page with which reading begins."""
        rest = align(header.remaining_bytes) if header.flags & CONTINUES_RECORD else 0
        self._passing = rest >= PAGE_BYTES - header.size_bytes
        self._at += PAGE_BYTES if self._passing else header.size_bytes + rest
        self.next_lsn = Lsn(self._at)

    def _continuation_problem(self, header: PageHeader, page: Lsn) -> WalEnd | None:
        """Compare what a page says about the record from before with what we know of it."""
        if self._lsn and header.flags & OVERWRITES_RECORD:
            # A server that crashed within the record wrote this page again; what it had begun never took place.
            self._begin(0)
            self.next_lsn = page
        if not self._lsn:
            return WalEnd(Ending.UNEXPECTED_CONTINUATION, page) if header.flags & CONTINUES_RECORD else None
        if not header.flags & CONTINUES_RECORD:
            return WalEnd(Ending.MISSING_CONTINUATION, page)
        left = self._body_left if len(self._head) == HEADER_BYTES else self._announced_bytes() - len(self._head)
        if header.remaining_bytes != left:
            return WalEnd(Ending.CONTINUATION_LENGTH, page, header.remaining_bytes, left)
        return None

    def _announced_bytes(self) -> int:
        return int.from_bytes(self._head[:4], "little")

    def _take_record_part(self, buffer: bytes, offset: int, records: list[Record]) -> bool:
        in_page = PAGE_BYTES - self._at % PAGE_BYTES
        if len(self._head) < HEADER_BYTES:
            part = min(HEADER_BYTES - len(self._head), in_page)
            if len(buffer) - offset < part:
                return False
            self._take_header(buffer[offset : offset + part])
        else:
            part = min(self._body_left, in_page, len(buffer) - offset)
            piece = buffer[offset : offset + part]
            self._at += part
            self._body_left -= part
            self._body += piece[: max(0, self._body_limit - len(self._body))]
            if self._check_crc:
                self._crc = google_crc32c.extend(self._crc, piece)
        if self.end is None and len(self._head) == HEADER_BYTES and self._body_left == 0:
            self._finish(records)
        return True

    def _take_header(self, part: bytes) -> None:
        """Take the header, or that part of it which lies on one page; judge what is known."""
        if not self._lsn:
            self._lsn = self._at
        self._at += len(part)
        self._head += part
        total_bytes, lsn = self._announced_bytes(), Lsn(self._lsn)
        if total_bytes < HEADER_BYTES:
            ending = Ending.RECORD_LENGTH if total_bytes else Ending.ZERO_RECORD
            self.end = WalEnd(ending, lsn, total_bytes)
        elif len(self._head) == HEADER_BYTES:
            self._body_left = total_bytes - HEADER_BYTES
            _, _, previous, info, rmgr, _ = _HEADER.unpack(self._head)
            self._body_limit = self._wanted_bytes(rmgr, info)
            if not is_known_rmgr(rmgr):
                self.end = WalEnd(Ending.RESOURCE_MANAGER, lsn, rmgr)
            elif previous >= lsn if self._last_lsn is None else previous != self._last_lsn:
                self.end = WalEnd(Ending.PREVIOUS_RECORD, lsn, previous, self._last_lsn or 0)

    def _finish(self, records: list[Record]) -> None:
        total_bytes, xid, previous, info, rmgr, stored_crc = _HEADER.unpack(self._head)
        lsn = Lsn(self._lsn)
        if self._check_crc:
            crc = google_crc32c.extend(self._crc, self._head[:CHECKED_HEADER_BYTES])
            if crc != stored_crc:
                self.end = WalEnd(Ending.CHECKSUM, lsn, stored_crc, crc)
                return
        self._at = align(self._at)
        if rmgr == RMGR_XLOG and info & RMGR_INFO_MASK == XLOG_SWITCH:
            # The server goes on with the next segment; whatever stands between is no record.
            self._at = -(-self._at // self._segment_bytes) * self._segment_bytes
        self.next_lsn = Lsn(self._at)
        self._last_lsn = lsn
        self.record_count += 1
        records.append(
            Record(
                lsn, self.next_lsn, total_bytes, xid, Lsn(previous), info, rmgr, self._pages.magic, bytes(self._body)
            )
        )
        self._begin(0)
