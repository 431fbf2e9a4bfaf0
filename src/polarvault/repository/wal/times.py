"""When the last transaction before an LSN committed, read from a few pieces of WAL in a repository."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from polarvault.model.lsn import Lsn
from polarvault.repository.wal.ranges import RepositoryWal, StoredRange
from polarvault.wal.marks import MarkKind
from polarvault.wal.scan import PlainReader

_PAGE = 8192
_WINDOW = 512 << 10
# A record that begins in a window may end behind it; that of a commit is short.
_SPILL = 2 * _PAGE
# The plain reader needs a twentieth of a second for a MiB, and the compiled one more to begin.
_MOST_BYTES = 2 << 20
_MOST_RANGES = 3


def last_commit(wal: RepositoryWal, ranges: Iterable[StoredRange], end: Lsn) -> datetime | None:
    """Return the time of the last commit before an LSN; None if none is found in the last bit of it.

    ranges: those that hold the WAL up to there. At most three of them are read, and two MiB of records looked at: a
    stretch in which nobody commits for longer has no time. IntegrityError for a range that is damaged.
    """
    left = _MOST_BYTES
    for one in sorted((one for one in ranges if one.first < end), reverse=True)[:_MOST_RANGES]:
        content = wal.read_range(one)[: end - one.first]
        # Of a segment that was switched away the rest is zeros; a record may end with some of its own.
        written = len(bytes(content).rstrip(b"\0"))
        high = min(len(content), written + _PAGE) if written else 0
        lowest = -int(one.first) % _PAGE
        while high > lowest and left > 0:
            low = max(lowest, lowest + (high - lowest - _WINDOW) // _PAGE * _PAGE)
            found = _latest(content[low : high + _SPILL], Lsn(one.first + low), wal.segment_bytes)
            if found is not None:
                return found
            left -= high - low
            high = low
    return None


def _latest(content: memoryview, start: Lsn, segment_bytes: int) -> datetime | None:
    reader = PlainReader(start, segment_bytes)
    marks = reader.feed(bytes(content))
    times = [one.time for one in marks if one.kind is MarkKind.COMMIT and one.time is not None]
    return times[-1] if times else None
