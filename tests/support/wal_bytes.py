"""WAL made by hand, as a server would write it: pages, records across pages and segments, every kind of mark."""

from __future__ import annotations

import struct

import google_crc32c

PAGE = 8192
XLOG, TRANSACTION, HEAP, LOGICAL_MESSAGE = 0, 1, 10, 21
CONTINUES, LONG, OVERWRITES = 1, 2, 8


class WalBuilder:
    """Writes records one after the other; `content` is the WAL from `start`, a segment's first byte, on."""

    def __init__(
        self,
        *,
        segment: int = 1,
        segment_bytes: int = 1 << 20,
        magic: int = 0xD118,
        timeline: int = 1,
        system: int = 77,
    ) -> None:
        self.start = segment * segment_bytes
        self.content = bytearray()
        self.segment_bytes = segment_bytes
        self.magic, self.timeline, self.system = magic, timeline, system
        self.previous = 0
        # LSN, end LSN of every record.
        self.records: list[tuple[int, int]] = []

    @property
    def lsn(self) -> int:
        """Where the next byte goes."""
        return self.start + len(self.content)

    def add(self, body: bytes = b"", *, rmgr: int = HEAP, info: int = 0, xid: int = 0, crc: int | None = None) -> int:
        """Write one record with a ready-made body; return its LSN."""
        self.begin_page_if_due()
        lsn = self.lsn
        record = make_record(body, rmgr=rmgr, info=info, xid=xid, previous=self.previous, crc=crc)
        self.write(record)
        self.content += bytes(-len(self.content) % 8)
        if rmgr == XLOG and info == 0x40:
            self.fill_segment()
        self.previous = lsn
        self.records.append((lsn, self.lsn))
        return lsn

    def add_main(self, main: bytes, *, rmgr: int, info: int, xid: int = 0, before: bytes = b"") -> int:
        """Write one record that has main data and no blocks; `before` are further headers, such as the origin."""
        header = bytes([255, len(main)]) if len(main) < 256 else struct.pack("<BI", 254, len(main))
        return self.add(before + header + main, rmgr=rmgr, info=info, xid=xid)

    def add_up_to(self, lsn: int) -> int:
        """Write one record that ends exactly where the page or segment at `lsn` begins."""
        self.begin_page_if_due()
        headers = range(-(-self.lsn // PAGE) * PAGE, lsn, PAGE)
        between = sum(40 if page % self.segment_bytes == 0 else 24 for page in headers)
        return self.add(bytes(lsn - self.lsn - between - 24))

    def write(self, record: bytes) -> None:
        """Write a record's bytes, with a page header wherever a page begins; cut off it stays unfinished."""
        total = int.from_bytes(record[:4], "little")
        done = 0
        while done < len(record):
            if len(self.content) % PAGE == 0:
                self.add_page_header(CONTINUES if done else 0, total - done if done else 0)
            part = record[done : done + PAGE - len(self.content) % PAGE]
            self.content += part
            done += len(part)

    def begin_page_if_due(self, flags: int = 0) -> None:
        """Write a page header if a page begins here."""
        if len(self.content) % PAGE == 0:
            self.add_page_header(flags, 0)

    def add_page_header(self, flags: int = 0, remaining: int = 0) -> None:
        """Write a page header, a long one at a segment's start."""
        first = self.lsn % self.segment_bytes == 0
        flags |= LONG if first else 0
        self.content += struct.pack("<HHIQI4x", self.magic, flags, self.timeline, self.lsn, remaining)
        if first:
            self.content += struct.pack("<QII", self.system, self.segment_bytes, PAGE)

    def fill_page(self) -> None:
        """Leave the rest of the page zero, as a server does that dies within a record."""
        self.content += bytes(-len(self.content) % PAGE)

    def fill_segment(self) -> None:
        """Leave the rest of the segment zero."""
        self.content += bytes(-len(self.content) % self.segment_bytes)


def make_record(body: bytes, *, rmgr: int, info: int, xid: int, previous: int, crc: int | None = None) -> bytes:
    """Return a record's bytes with its checksum, or with a given wrong one."""
    head = struct.pack("<IIQBBxx", 24 + len(body), xid, previous, info, rmgr)
    if crc is None:
        crc = google_crc32c.extend(google_crc32c.value(body), head)
    return head + struct.pack("<I", crc) + body
