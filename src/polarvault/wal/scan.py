"""Scan WAL: feed it, get marks, and know exactly where valid WAL ends and why.

Two readers give the same results, as the tests show: the compiled one, and the plain one of `polarvault.wal.records`
where no code can be generated.
"""

from __future__ import annotations

import functools
from typing import Protocol

from polarvault.machine_code.compiling import CANNOT_COMPILE
from polarvault.model.lsn import Lsn
from polarvault.wal.marks import MarkKind, Marks, WalMark, wanted_bytes
from polarvault.wal.pages import WalEnd
from polarvault.wal.records import RecordReader

__all__ = ["MarkKind", "Marks", "WalMark", "WalScanner"]


# The plain reader is done with so much before the compiler is loaded.
_LITTLE_BYTES = 512 << 10


class _Reader(Protocol):
    """What finds marks; the members are those of `WalScanner`, but for the end."""

    @property
    def next_lsn(self) -> Lsn: ...
    @property
    def record_count(self) -> int: ...
    @property
    def last_lsn(self) -> Lsn | None: ...
    @property
    def end(self) -> WalEnd | None: ...
    def feed(self, content: memoryview, /) -> Marks: ...


class PlainReader:
    """Marks by the plain reader, at 20 MB/s."""

    def __init__(
        self, start: int, segment_size_bytes: int, *, check_crc: bool = True, with_blocks: bool = False
    ) -> None:
        wanted = functools.partial(wanted_bytes, with_blocks=with_blocks)
        self._records = RecordReader(start, segment_size_bytes, check_crc=check_crc, wanted_bytes=wanted)
        self._with_blocks = with_blocks

    @property
    def next_lsn(self) -> Lsn:
        """Just past the last whole valid record."""
        return self._records.next_lsn

    @property
    def last_lsn(self) -> Lsn | None:
        """Where the last whole valid record begins."""
        return self._records.last_lsn

    @property
    def record_count(self) -> int:
        """How many valid records have been read."""
        return self._records.record_count

    @property
    def end(self) -> WalEnd | None:
        """Why valid WAL ended; None while it has not."""
        return self._records.end

    def feed(self, content: bytes | bytearray | memoryview) -> Marks:
        """Take the bytes that follow those of the last call; return the marks that end in them."""
        return Marks.of_records(self._records.feed(content), with_blocks=self._with_blocks)


class WalScanner:
    """Feed consecutive WAL bytes from `start` on, cut anywhere.

    start is a record's LSN, or the first byte of a page (such as a segment's): then the rest of a record that began
    before is passed over. WAL is valid as far as the server would replay it; with check_crc that includes every
    record's checksum. Memory is bounded, however long a record is. expected_bytes: how much will be fed, if that is
    known. with_blocks: the marks are mixed with all other records, for `polarvault.wal.blocks`, which takes longer.
    Raises ValueError for a start where neither a record nor a page can begin.
    """

    def __init__(
        self,
        start: Lsn,
        segment_size_bytes: int,
        *,
        check_crc: bool = True,
        expected_bytes: int | None = None,
        with_blocks: bool = False,
    ) -> None:
        is_little = expected_bytes is not None and expected_bytes <= _LITTLE_BYTES
        self._reader = _make_reader(start, segment_size_bytes, check_crc, with_blocks, is_little=is_little)

    def feed(self, view: memoryview) -> Marks:
        """Take the bytes that follow those of the last call; return the marks that end in them.

        A sequence, decoded on access; `Marks.select` is the fast way to look for some of them. Everything fed after
        valid WAL has ended is ignored. A writable view is read where it lies, without a copy.
        """
        return self._reader.feed(view)

    @property
    def next_lsn(self) -> Lsn:
        """Just past the last whole valid record; `start` (or the first record after it) while there is none."""
        return self._reader.next_lsn

    @property
    def last_lsn(self) -> Lsn | None:
        """Where the last whole valid record begins; None while there is none."""
        return self._reader.last_lsn

    @property
    def end(self) -> WalEnd | None:
        """What stands where the next record should, and at which byte it was seen; None while valid WAL may go on."""
        return self._reader.end

    @property
    def end_reason(self) -> str | None:
        """`end` in words."""
        return None if self._reader.end is None else str(self._reader.end)

    @property
    def record_count(self) -> int:
        """How many valid records have been read, marks and others."""
        return self._reader.record_count


def _make_reader(
    start: int, segment_size_bytes: int, check_crc: bool, with_blocks: bool, *, is_little: bool
) -> _Reader:
    if is_little:
        return PlainReader(start, segment_size_bytes, check_crc=check_crc, with_blocks=with_blocks)
    try:
        # Imported here, because it loads the compiler.
        from polarvault.wal.compiled.reader import CompiledReader

        return CompiledReader(start, segment_size_bytes, check_crc=check_crc, with_blocks=with_blocks)
    except CANNOT_COMPILE:
        return PlainReader(start, segment_size_bytes, check_crc=check_crc, with_blocks=with_blocks)
