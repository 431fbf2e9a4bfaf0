"""Files whose bytes nobody has read yet: a sink takes a whole file, and reads it by as many threads as it likes.

An archive stream brings bytes in order, and one thread takes them. Who can read the files of a database gives the sink
the file instead (`TakesFiles.take_file`), and the sink has its workers fetch parts of it into buffers of its own, so
that nothing is copied twice and nobody waits for one reader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from polarvault.pgfiles.tar import Member

_BUFFER_BYTES = 1 << 20


class ContentPart(Protocol):
    """A stretch of a file, read once from its start to its end, by one thread at a time."""

    def read_into(self, buffer: memoryview) -> None:
        """Fill the buffer with the next bytes; raise PolarvaultError. All buffers together are as long as the part."""


class FileContent(Protocol):
    """A file as it was when it was opened: bytes that have gone meanwhile read as zeros, new ones are not seen.

    Every byte is to be read once, or none: then `discard`. is_divisible: several parts may be read at once, else the
    file is one part. Parts begin at multiples of 8 kB.
    """

    size: int
    is_divisible: bool

    def part(self, start: int, size: int) -> ContentPart:
        """Return a stretch; called by the thread that gave the file, which may learn here that it has to stop."""

    def clone_source(self) -> int | None:
        """Return a descriptor from which the file may be cloned instead of read; None if it has to be read."""

    def cloned(self) -> None:
        """It was cloned: nothing is read."""

    def waiting(self) -> None:
        """Called now and then by the thread that gave the file while it waits for it to be read; may raise."""

    def when_read(self, tell: Callable[[str | None], None]) -> None:
        """Have tell told the checksum, as a manifest spells it, when all was read; asked for before anything is."""

    def discard(self) -> None:
        """It will not be read to its end; safe to call at any time."""


@runtime_checkable
class TakesFiles(Protocol):
    """A `member_sinks.MemberSink` that reads files itself."""

    def take_file(self, member: Member, content: FileContent) -> None:
        """Take a file, instead of the events of its member; it is read by the time `finish` returns.

        What goes wrong with it may be raised by a later call.
        """

    def drain(self) -> None:
        """Return when every file that was taken has been read."""


def read_for_its_sum(content: FileContent) -> None:
    """Read a file that is not stored: what describes the backup has its checksum all the same."""
    if not content.size:
        return
    part = content.part(0, content.size)
    buffer = memoryview(bytearray(min(content.size, _BUFFER_BYTES)))
    left = content.size
    while left:
        view = buffer[:left]
        part.read_into(view)
        left -= len(view)
        content.waiting()
