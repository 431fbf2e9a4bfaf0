"""When the last transaction before an LSN committed, read from a few pieces of WAL in a repository."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from polarvault.errors import ObjectMissing
from polarvault.model.lsn import Lsn
from polarvault.repository.wal.ranges import RepositoryWal, StoredRange
from polarvault.wal.marks import MarkKind
from polarvault.wal.scan import PlainReader

_PAGE = 8192
_WINDOW = 512 << 10
# A record that begins in a window may end behind it; that of a commit is short.
_SPILL = 2 * _PAGE
# The plain reader needs a twentieth of a second for a MiB, and the compiled one more to begin.
_MOST_SCANNED = 2 << 20
# A stream makes a range every five seconds while something is written; what is pushed comes by 16 MiB.
_MOST_RANGES = 16
_MOST_READ = 64 << 20


def last_commit(wal: RepositoryWal, ranges: Iterable[StoredRange], end: Lsn) -> datetime | None:
    """Return the time of the last commit before an LSN; None if none is found in the last bit of it.

    ranges: those that hold the WAL up to there. At most 16 of them are read, and two MiB of records looked at: a
    stretch in which nobody commits for longer has no time. IntegrityError for a range that is damaged.
    """
    at, head, scanned, read, asked = end, b"", 0, 0, 0
    # Of those that begin at one place the longest; what lies over what was looked at is passed over below.
    wanted = sorted((one for one in ranges if one.first < end), key=lambda one: (one.first, one.last), reverse=True)
    for one in wanted:
        if one.first >= at:
            continue
        if asked == _MOST_RANGES or scanned >= _MOST_SCANNED or read >= _MOST_READ or one.last < at:
            break
        asked += 1
        try:
            content = bytes(wal.read_range(one)[: at - one.first]) + head
        except ObjectMissing:
            # Merged with others and removed since it was listed: the one that has its bytes comes next.
            continue
        read += len(content)
        at = one.first
        if not head:
            # Of a segment that was switched away the rest is zeros; a record may end with some of its own.
            written = len(content.rstrip(b"\0"))
            content = content[: written + _PAGE] if written else b""
        found, looked = _search(content, one.first, wal.segment_bytes, most_bytes=_MOST_SCANNED - scanned)
        if found is not None:
            return found
        scanned += looked
        # The record in which the range begins ends here, and is whole together with the range before.
        head = content[: -int(one.first) % _PAGE + _SPILL]
    return None


def _search(content: bytes, first: Lsn, segment_bytes: int, *, most_bytes: int) -> tuple[datetime | None, int]:
    """Look for the last commit, from the end backwards; return it and how much was looked at."""
    lowest, high, looked = -int(first) % _PAGE, len(content), 0
    while high > lowest and looked < most_bytes:
        low = max(lowest, lowest + (high - lowest - _WINDOW) // _PAGE * _PAGE)
        found = _latest(content[low : high + _SPILL], first + low, segment_bytes)
        if found is not None:
            return found, looked
        looked += high - low
        high = low
    if lowest > 0 and high <= lowest and first % 8 == 0:
        # It begins within a page: where the server flushed, which is at a record, or not; its CRC tells.
        return _latest(content[: lowest + _SPILL], first, segment_bytes), looked
    return None, looked


def _latest(content: bytes, start: int, segment_bytes: int) -> datetime | None:
    marks = PlainReader(start, segment_bytes).feed(content)
    times = [one.time for one in marks if one.kind is MarkKind.COMMIT and one.time is not None]
    return times[-1] if times else None
