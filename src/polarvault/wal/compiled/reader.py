"""Runs the compiled reader: buffers, and the few bytes that wait for the next call."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from polarvault.machine_code.compiling import KernelSource, MachineCode, load_kernel_code
from polarvault.model.lsn import Lsn
from polarvault.wal.compiled.state import Crc32cMethod, Slot, Status
from polarvault.wal.marks import ENTRY_BYTES, Marks
from polarvault.wal.pages import LONG_HEADER_BYTES, PAGE_BYTES, Ending, WalEnd
from polarvault.wal.records import check_start

# Room for the marks of about 4 MB of short transactions; when it is used up, the reader returns early, no more.
_MARKS = 8192
_BODIES_BYTES = 1 << 20
# The first bytes of a body are looked at in words, also if it is shorter.
_SLACK_BYTES = 32
_MODULES = (
    "machine_code.processor", "model.lsn", "model.segment", "model.versions", "wal.compiled.crc32c",
    "wal.compiled.state", "wal.compiled.walker", "wal.marks", "wal.pages", "wal.records",
)  # fmt: skip

Walk = Callable[[int, int, int], int]


def kernel(method: Crc32cMethod | None) -> KernelSource:
    """Return the reader's source; None is the fastest method that this CPU has."""

    def emit() -> str:
        # Imported here: they need llvmlite, which is expensive and may be absent.
        from polarvault.wal.compiled.crc32c import host_method
        from polarvault.wal.compiled.walker import walker_source

        return walker_source(method or host_method())

    return KernelSource(emit, _MODULES, str(method))


@functools.cache
def _code(method: Crc32cMethod | None) -> MachineCode:
    # Kept as long as the process: the code lives no longer than this object.
    return load_kernel_code(kernel(method))


def load_walk(method: Crc32cMethod | None) -> Walk:
    """Return the reader's code; raise one of `CANNOT_COMPILE` where there can be none."""
    walk: Walk = ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * 3)(_code(method).address("walk"))
    return walk


class CompiledReader:
    """The contract of `polarvault.wal.scan.WalScanner`, which chooses between this and the plain reader."""

    def __init__(
        self,
        start: int,
        segment_size_bytes: int,
        *,
        check_crc: bool = True,
        with_blocks: bool = False,
        method: Crc32cMethod | None = None,
    ) -> None:
        check_start(start, segment_size_bytes)
        self._walk = load_walk(method)
        self._state = (ctypes.c_uint64 * len(Slot))()
        self._state_address = ctypes.addressof(self._state)
        self._entries = bytearray(_MARKS * ENTRY_BYTES)
        self._state[Slot.ENTRIES] = _address(self._entries)
        self._state[Slot.MARKS_CAPACITY] = _MARKS
        self._make_room(_BODIES_BYTES)
        self._state[Slot.AT] = self._state[Slot.NEXT_LSN] = start
        self._state[Slot.PASSING] = start % PAGE_BYTES == 0
        self._state[Slot.SEGMENT_BYTES] = segment_size_bytes
        self._state[Slot.CHECK_CRC] = check_crc
        self._state[Slot.WITH_BLOCKS] = with_blocks
        self._fed = start
        # The beginning of a page or record header, whose other bytes have not come yet.
        self._rest = b""

    @property
    def next_lsn(self) -> Lsn:
        """Just past the last whole valid record."""
        return Lsn(self._state[Slot.NEXT_LSN])

    @property
    def last_lsn(self) -> Lsn | None:
        """Where the last whole valid record begins; None while there is none."""
        return Lsn(self._state[Slot.LAST_LSN]) if self._state[Slot.RECORDS] else None

    @property
    def end(self) -> WalEnd | None:
        """Why valid WAL ended; None while it has not."""
        ending, lsn, found, expected = self._state[Slot.ENDING : Slot.EXPECTED + 1]
        return WalEnd(Ending(ending), Lsn(lsn), found, expected) if ending else None

    @property
    def record_count(self) -> int:
        """How many valid records have been read."""
        return self._state[Slot.RECORDS]

    def feed(self, content: bytes | bytearray | memoryview) -> Marks:
        """Take the bytes that follow those of the last call; return the marks that end in them."""
        view = memoryview(content).cast("B")
        entries, bodies = bytearray(), bytearray()
        if self._state[Slot.ENDING]:
            return Marks(entries, bodies)
        self._state[Slot.BODIES_TAKEN] = 0
        if self._rest:
            # As much as any header needs; after it reading goes on in the view itself, which is not copied.
            some = bytearray(self._rest + view[:LONG_HEADER_BYTES])
            self._read(memoryview(some), self._fed - len(self._rest), entries, bodies)
            if len(view) <= LONG_HEADER_BYTES:
                self._keep_rest(some, self._fed + len(view))
                self._take_marks(entries, bodies)
                return Marks(entries, bodies)
        self._read(view, self._fed, entries, bodies)
        self._keep_rest(view[-LONG_HEADER_BYTES:], self._fed + len(view))
        self._take_marks(entries, bodies)
        return Marks(entries, bodies)

    def _read(self, view: memoryview, first: int, entries: bytearray, bodies: bytearray) -> None:
        """Read what lies in the view from AT on; `first` is the LSN of its first byte."""
        while True:
            offset = self._state[Slot.AT] - first
            if offset >= len(view):
                return
            address = _address(view) + offset
            if self._walk(self._state_address, address, len(view) - offset) != Status.NEEDS_ROOM:
                return
            self._take_marks(entries, bodies)
            self._make_room(self._state[Slot.WANTED])

    def _keep_rest(self, last: memoryview | bytearray, fed: int) -> None:
        """Keep what was not read: fewer bytes than a header has."""
        self._fed = fed
        unread = fed - self._state[Slot.AT]
        self._rest = bytes(last[-unread:]) if unread > 0 and not self._state[Slot.ENDING] else b""

    def _take_marks(self, entries: bytearray, bodies: bytearray) -> None:
        """Move the marks out of the buffers, but for the body of a record that has not ended."""
        entries += memoryview(self._entries)[: self._state[Slot.MARKS] * ENTRY_BYTES]
        start, end = self._state[Slot.BODY_START], self._state[Slot.BODIES_BYTES]
        bodies += memoryview(self._bodies)[:start]
        self._bodies[: end - start] = self._bodies[start:end]
        self._state[Slot.MARKS] = self._state[Slot.BODY_START] = 0
        self._state[Slot.BODIES_BYTES] = end - start
        self._state[Slot.BODIES_TAKEN] = len(bodies)

    def _make_room(self, body_bytes: int) -> None:
        """Have a buffer for bodies that can take one of this size; it must be empty."""
        if body_bytes > self._state[Slot.BODIES_CAPACITY]:
            self._bodies = bytearray(body_bytes + _SLACK_BYTES)
            self._state[Slot.BODIES] = _address(self._bodies)
            self._state[Slot.BODIES_CAPACITY] = body_bytes


def _address(content: bytearray | memoryview) -> int:
    if isinstance(content, memoryview) and content.readonly:
        # ctypes takes the address of writable memory only.
        import numpy

        return int(numpy.frombuffer(content, dtype=numpy.uint8).__array_interface__["data"][0])
    return ctypes.addressof(ctypes.c_char.from_buffer(content))
