"""Where a stream of WAL goes in a repository: ranges of at most 16 MiB, durable in order."""

from __future__ import annotations

from polarvault.model.segment import WalSegment
from polarvault.repository.wal.ranges import RepositoryWal, WalWriter


class RepositoryWalSink:
    """A `server.wal_stream.WalSink`; holds at most one range in memory. Used by one thread at a time."""

    def __init__(self, wal: RepositoryWal) -> None:
        self._wal = wal
        self._writer: WalWriter | None = None
        self._timeline_id = 0

    def write(self, segment: WalSegment, offset: int, payload: memoryview) -> None:
        """Take bytes of a segment; they follow those given before."""
        at = int(segment.start) + offset
        writer = self._writer
        if writer is None or self._timeline_id != segment.timeline_id or writer.end != at:
            # Another timeline, or a stream that began anew: what is gathered must not be lost.
            self.flush()
            writer = self._writer = WalWriter(self._wal, segment.timeline_id, at)
            self._timeline_id = segment.timeline_id
        writer.put(payload)

    def segment_done(self, segment: WalSegment) -> None:
        """Make everything durable: a whole segment is acknowledged to the server, which may remove it then."""
        self.flush()

    def add_history(self, file_name: str, content: bytes) -> None:
        """Keep a timeline history file, durable on return."""
        self._wal.put_file(int(file_name[:8], 16), file_name, content)

    def flush(self) -> None:
        """Make everything durable that was taken."""
        if self._writer is not None:
            self._writer.flush()

    def finish(self) -> None:
        """No more WAL will come."""
        self.flush()

    def read(self, segment: WalSegment, offset: int, length: int) -> bytes:
        """Read back what was written; fewer bytes where there are none."""
        self.flush()
        return self._wal.read(segment.timeline_id, int(segment.start) + offset, length)
