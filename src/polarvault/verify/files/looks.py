"""Look at small files many at a time: are they exactly as the manifest says, and all their pages right?

A cluster with a hundred thousand relations is mostly files of one page or none, and Python takes longer to hand them
round than to read them. So a compiled loop opens, reads and compares those of one directory, without the interpreter's
lock. It says yes or no, never why: what is not as it should be is read again by `reading`, which finds out, and so is
everything where no code can be made.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from polarvault.machine_code.compiling import CANNOT_COMPILE, KernelSource, MachineCode, load_kernel_code
from polarvault.pgfiles.pages import CONSTANTS, PAGE_BYTES
from polarvault.storage.below import Below
from polarvault.verify.files.look_rows import NOT_WANTED, ROW_BYTES

MOST_BYTES = 64 << 10
"""Larger files are not small."""
_BATCH_FILES = 512
_ROW = struct.Struct("<QQQQ")

Look = Callable[[int, int, int, int, int], int]


def _emit() -> str:
    # Imported here: it needs llvmlite, which is expensive and may be absent.
    from polarvault.verify.files.look_kernel import look_source

    return look_source()


KERNEL = KernelSource(
    _emit,
    (
        "machine_code.processor", "pgfiles.page_kernel", "pgfiles.pages", "verify.files.look_kernel",
        "verify.files.look_rows", "wal.compiled.crc32c", "wal.compiled.state",
    ),
    f"{CONSTANTS} {MOST_BYTES}",
)  # fmt: skip


@functools.cache
def _code() -> MachineCode:
    # Kept as long as the process: the code lives no longer than this object.
    return load_kernel_code(KERNEL)


@functools.cache
def load_look() -> Look | None:
    """Return the loop; None where no code can be made."""
    try:
        look: Look = ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * 5)(_code().address("look"))
    except CANNOT_COMPILE:
        return None
    return look


@dataclass(frozen=True, slots=True)
class Looked:
    """What came of some files of one directory: how many are right, their bytes and pages; the paths of all others."""

    count: int
    size_bytes: int
    pages: int
    others: Sequence[str]


class SmallFilesOf:
    """The small files of one directory of a tree; paths below the tree's root."""

    def __init__(self, tree: Below, directory: str) -> None:
        self._tree = tree
        self._directory = directory
        self._names = bytearray()
        self._rows = bytearray()
        self._bytes = self._pages = 0

    def __len__(self) -> int:
        return len(self._rows) // ROW_BYTES

    def add(self, name: str, size: int, crc: int | None, first_block: int | None) -> None:
        """Take a file of at most MOST_BYTES, whole pages if they are to be checked; None: not to be compared."""
        self._rows += _ROW.pack(
            len(self._names),
            size,
            NOT_WANTED if crc is None else crc,
            NOT_WANTED if first_block is None else first_block,
        )
        self._names += os.fsencode(name) + b"\0"
        self._bytes += size
        if first_block is not None:
            self._pages += size // PAGE_BYTES

    def look(self, look: Look | None) -> Looked:
        """Look at all of them, once; where they cannot be looked at, all are others."""
        if look is None:
            return Looked(0, 0, 0, self._paths(range(len(self))))
        try:
            descriptor = self._tree.open_directory(self._directory)
        except OSError:
            return Looked(0, 0, 0, self._paths(range(len(self))))
        buffer = ctypes.create_string_buffer(MOST_BYTES + 1)
        try:
            wrong = look(descriptor, _address(self._names), _address(self._rows), len(self), ctypes.addressof(buffer))
        finally:
            os.close(descriptor)
        if not wrong:
            return Looked(len(self), self._bytes, self._pages, ())
        rows = list(_ROW.iter_unpack(self._rows))
        numbers = [number for number, row in enumerate(rows) if row[0] == NOT_WANTED]
        of_wrong = [rows[number] for number in numbers]
        return Looked(
            len(self) - len(numbers),
            self._bytes - sum(row[1] for row in of_wrong),
            self._pages - sum(row[1] // PAGE_BYTES for row in of_wrong if row[3] != NOT_WANTED),
            self._paths(numbers),
        )

    def _paths(self, numbers: Sequence[int]) -> list[str]:
        names = bytes(self._names).split(b"\0")
        prefix = self._directory + "/" if self._directory else ""
        return [prefix + os.fsdecode(names[number]) for number in numbers]


class SmallFiles:
    """The small files of one tree, in batches of one directory each."""

    def __init__(self, tree: Below) -> None:
        self._tree = tree
        self._filling: dict[str, SmallFilesOf] = {}
        self._full: list[SmallFilesOf] = []

    def add(self, directory: str, name: str, size: int, crc: int | None, first_block: int | None) -> None:
        """Take a file; see `SmallFilesOf.add`."""
        batch = self._filling.get(directory)
        if batch is None:
            batch = self._filling[directory] = SmallFilesOf(self._tree, directory)
        batch.add(name, size, crc, first_block)
        if len(batch) >= _BATCH_FILES:
            self._full.append(self._filling.pop(directory))

    def batches(self) -> list[SmallFilesOf]:
        """Return all batches."""
        return [*self._full, *self._filling.values()]


def look_at(batches: Sequence[SmallFilesOf], *, jobs: int, kernel_loaded: threading.Event) -> Iterator[Looked]:
    """Look at batches in several threads; kernel_loaded: set once the loop may be used, as for `reading.read_files`."""
    if not batches:
        return
    kernel_loaded.wait()
    look = load_look()
    with ThreadPoolExecutor(jobs, thread_name_prefix="look") as pool:
        try:
            yield from pool.map(lambda batch: batch.look(look), batches)
        finally:
            pool.shutdown(cancel_futures=True)


def _address(content: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(content))
