"""Give members to a sink: to one that reads files itself as they are, to any other as a stream that is read ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, TarEvent
from polarvault.pipeline.contents import ContentPart, FileContent, TakesFiles
from polarvault.taking.archive import MemberInput

_BUFFER_BYTES = 1 << 20
_BUFFERS_PER_THREAD = 3

Take = Callable[[TarEvent], None]


class Feeder(Protocol):
    """Takes the members of one archive, in order."""

    def take(self, event: TarEvent) -> None:
        """Take an event of a member whose bytes are at hand."""

    def take_file(self, member: Member, content: FileContent) -> None:
        """Take a file that nobody has read yet."""

    def drain(self) -> None:
        """Return when every file that was taken has been read, and the sink has it."""

    def close(self) -> None:
        """End the threads; safe to call at any time."""


class ReadAheadFeeder:
    """Reads what comes next while the sink takes what came before; buffers are reused.

    A file whose checksum has to see its bytes in order is read by one thread, one buffer after the other.
    """

    def __init__(self, take: Take, *, threads: int | None = None) -> None:
        self._take = take
        count = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="read")
        self._free = [memoryview(bytearray(_BUFFER_BYTES)) for _ in range(count * _BUFFERS_PER_THREAD)]
        self._waiting: deque[TarEvent | tuple[Future[None], memoryview, memoryview, int]] = deque()
        self._last: Future[None] | None = None

    def take(self, event: TarEvent) -> None:
        """Take an event, in its turn."""
        self._waiting.append(event)
        self._deliver_ready()

    def take_file(self, member: Member, content: FileContent) -> None:
        """Have a file read, a buffer at a time."""
        self._waiting.append(MemberBegins(member))
        whole = None if content.is_divisible or not content.size else content.part(0, content.size)
        for start in range(0, content.size, _BUFFER_BYTES):
            size = min(_BUFFER_BYTES, content.size - start)
            while not self._free:
                self._deliver_first()
            buffer = self._free.pop()
            view = buffer[:size]
            if whole is None:
                future = self._pool.submit(content.part(start, size).read_into, view)
            else:
                future = self._last = self._pool.submit(_after, self._last, whole, view)
            self._waiting.append((future, buffer, view, start))
        self._waiting.append(MemberEnds(member))
        self._deliver_ready()

    def drain(self) -> None:
        """Wait for everything."""
        while self._waiting:
            self._deliver_first()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._waiting.clear()

    def _deliver_ready(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            if isinstance(first, tuple) and not first[0].done():
                return
            self._deliver_first()

    def _deliver_first(self) -> None:
        first = self._waiting.popleft()
        if not isinstance(first, tuple):
            self._take(first)
            return
        future, buffer, view, offset = first
        future.result()
        self._take(MemberData([view], len(view), offset))
        self._free.append(buffer)


def _after(before: Future[None] | None, part: ContentPart, view: memoryview) -> None:
    """Read once the buffer before is full."""
    if before is not None:
        before.result()
    part.read_into(view)


class DirectFeeder:
    """For a sink that reads files itself."""

    def __init__(self, members: MemberInput, sink: TakesFiles) -> None:
        self.take = members.take
        self.take_file = members.take_file
        self.drain = sink.drain

    def close(self) -> None:
        """There is nothing of its own."""


def feeder_for(members: MemberInput) -> Feeder:
    """Return what feeds the members of an archive to its sink."""
    if members.reads_files is not None:
        return DirectFeeder(members, members.reads_files)
    return ReadAheadFeeder(members.take)
