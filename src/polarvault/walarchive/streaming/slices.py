"""What was received and is not in the repository yet: slices of one timeline's WAL, in memory or in a spool.

A slice in memory is durable when the repository has it, one in the spool when its file is synced. A spool file is

    magic "PVSLICE1", system identifier (8), first LSN (8), timeline (4), segment size (4), CRC-32C of these (4)
    then frames: length (4), CRC-32C of the bytes (4), the bytes

all little-endian. What a crash left of the last frame is not there. A file's name begins with a number that rises, so
that names sort as the WAL came.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import google_crc32c

from polarvault.errors import IntegrityError
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.segment import is_segment_size
from polarvault.storage import files
from polarvault.storage.below import Below
from polarvault.wal.names import is_history_name

_MAGIC = b"PVSLICE1"
_HEADER = struct.Struct("<8sQQII")
_CHECKED = struct.Struct("<I")
_FRAME = struct.Struct("<II")
_HEADER_BYTES = _HEADER.size + _CHECKED.size
_SLICE_NAME = re.compile(r"([0-9]{16})-[0-9A-F]{8}-[0-9A-F]{16}\.slice\Z")
_HISTORY_NAME = re.compile(r"([0-9]{16})-([0-9A-F]{8}\.history)\Z")
_MODE = 0o600


class Slice(Protocol):
    """A stretch of one timeline's WAL, within one segment. Methods raise StorageFailed."""

    timeline_id: int
    first: Lsn
    last: Lsn
    """Behind the last byte that was appended."""
    durable: Lsn
    """Behind the last byte that is safe whatever happens to this process, and to this machine's power."""

    def append(self, views: list[memoryview]) -> None:
        """Take the bytes that follow; the views may change afterwards."""

    def sync(self) -> None:
        """Make durable what can be made so here."""

    def content(self, first: int = 0) -> bytes:
        """Return the bytes, from an offset on."""

    def remove(self) -> None:
        """It is in the repository."""


class MemorySlice:
    """A slice that waits in memory: nothing of it is durable."""

    def __init__(self, timeline_id: int, first: Lsn) -> None:
        self.timeline_id = timeline_id
        self.first = self.last = self.durable = first
        self._content = bytearray()

    def append(self, views: list[memoryview]) -> None:
        """Copy the bytes."""
        for view in views:
            self._content += view
        self.last = Lsn(self.first + len(self._content))

    def sync(self) -> None:
        """Do nothing: only the repository makes it durable."""

    def content(self, first: int = 0) -> bytes:
        """Return a copy."""
        return bytes(memoryview(self._content)[first:])

    def remove(self) -> None:
        """Do nothing."""


class SpooledSlice:
    """A slice in a file of the spool."""

    def __init__(self, spool: Spool, name: str, timeline_id: int, first: Lsn, last: Lsn, descriptor: int) -> None:
        self.timeline_id = timeline_id
        self.first = first
        self.last = self.durable = last
        self.name = name
        self._spool = spool
        self._descriptor = descriptor
        self._end = os.fstat(descriptor).st_size if descriptor >= 0 else 0

    def append(self, views: list[memoryview]) -> None:
        """Append one frame."""
        length, checksum = 0, 0
        for view in views:
            length += len(view)
            checksum = google_crc32c.extend(checksum, bytes(view))
        try:
            written = files.write_all(self._descriptor, [_FRAME.pack(length, checksum), *views])
        except OSError as problem:
            # What did not fit is cut off, so that a next frame is not behind half a one.
            os.ftruncate(self._descriptor, self._end)
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            raise self._spool.failed(problem, "write", self.name) from problem
        self._end += written
        self.last = Lsn(self.last + length)

    def sync(self) -> None:
        """Sync the file; its name was made durable when it was made."""
        last = self.last
        if self.durable == last or self._descriptor < 0:
            return
        try:
            os.fdatasync(self._descriptor)
        except OSError as problem:
            raise self._spool.failed(problem, "sync", self.name) from problem
        self.durable = last

    def content(self, first: int = 0) -> bytes:
        """Read the file again."""
        _, content = self._spool.read(self.name)
        return content[first : self.last - self.first]

    def remove(self) -> None:
        """Remove the file."""
        self.close()
        self._spool.remove(self.name)

    def close(self) -> None:
        """Append no more; safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@dataclass(slots=True)
class HistoryItem:
    """A timeline's history that is to be in the repository before the timeline's WAL. name: of its file, if any."""

    timeline_id: int
    content: bytes
    name: str | None = None


@dataclass(frozen=True, slots=True)
class SliceHead:
    """What the first bytes of a spool file say."""

    system_identifier: int
    first: Lsn
    timeline_id: int
    segment_bytes: int


class Spool:
    """A directory for slices of one cluster; made if it is missing. most_bytes: what may wait in it."""

    def __init__(self, directory: str, cluster: str, most_bytes: int) -> None:
        self.path = os.path.join(os.path.abspath(directory), cluster, "stream")
        self.most_bytes = most_bytes
        try:
            files.make_directories(self.path, 0o700, sync=True)
        except FileExistsError:
            pass
        except OSError as problem:
            raise files.storage_failed(problem, "make the directory", self.path) from problem
        try:
            self._below = Below(self.path)
        except OSError as problem:
            raise files.storage_failed(problem, "open", self.path) from problem
        self._next = 1 + max((int(name[:16]) for name in self._names()), default=0)

    def begin(self, system_identifier: int, segment_bytes: int, timeline_id: int, first: Lsn) -> SpooledSlice:
        """Make the file of a new slice; its name is durable on return."""
        name = f"{self._number()}-{timeline_id:08X}-{int(first):016X}.slice"
        head = _HEADER.pack(_MAGIC, system_identifier, first, timeline_id, segment_bytes)
        descriptor = -1
        try:
            descriptor = self._below.create(name, _MODE)
            files.write_all(descriptor, [head, _CHECKED.pack(google_crc32c.value(head))])
            self._below.sync_directory()
        except OSError as problem:
            if descriptor >= 0:
                os.close(descriptor)
            raise self.failed(problem, "make", name) from problem
        return SpooledSlice(self, name, timeline_id, first, first, descriptor)

    def keep_history(self, timeline_id: int, content: bytes) -> HistoryItem:
        """Keep a history until it is in the repository; durable on return."""
        name = f"{self._number()}-{timeline_id:08X}.history"
        try:
            self._below.write(name, content, _MODE, sync=True)
            self._below.sync_directory()
        except OSError as problem:
            raise self.failed(problem, "write", name) from problem
        return HistoryItem(timeline_id, content, name)

    def waiting(self) -> list[tuple[SliceHead | None, SpooledSlice | HistoryItem]]:
        """Return what an earlier run has left, in the order in which it came; slices without a whole frame are removed.

        A file that is damaged before its first frame stays, and IntegrityError names it.
        """
        found: list[tuple[SliceHead | None, SpooledSlice | HistoryItem]] = []
        for name in sorted(self._names()):
            history = _HISTORY_NAME.match(name)
            if history is not None:
                content = self._read(name, limits.HISTORY_BYTES)
                found.append((None, HistoryItem(int(history[2][:8], 16), content, name)))
                continue
            if len(self._read(name, _HEADER_BYTES, cut=True)) < _HEADER_BYTES:
                self.remove(name)  # It was made when the power went; nothing of it was ever acknowledged.
                continue
            head, content = self.read(name)
            if not content:
                self.remove(name)
                continue
            last = Lsn(head.first + len(content))
            found.append((head, SpooledSlice(self, name, head.timeline_id, head.first, last, -1)))
        return found

    def read(self, name: str) -> tuple[SliceHead, bytes]:
        """Return what a file holds, up to its last whole frame; raise IntegrityError for what is no slice."""
        content = memoryview(self._read(name, limits.WAL_RANGE_BYTES * 2))
        if len(content) < _HEADER_BYTES:
            raise IntegrityError(f'"{self._below.path(name)}" ends within its header', hint=_LOOK)
        magic, system_identifier, first, timeline_id, segment_bytes = _HEADER.unpack_from(content)
        (checksum,) = _CHECKED.unpack_from(content, _HEADER.size)
        is_whole = magic == _MAGIC and checksum == google_crc32c.value(bytes(content[: _HEADER.size]))
        if not is_whole or not is_segment_size(segment_bytes) or not timeline_id:
            raise IntegrityError(f'"{self._below.path(name)}" does not begin as a slice of WAL', hint=_LOOK)
        parts, at = bytearray(), _HEADER_BYTES
        while len(content) - at >= _FRAME.size:
            length, checksum = _FRAME.unpack_from(content, at)
            part = content[at + _FRAME.size : at + _FRAME.size + length]
            if len(part) != length or google_crc32c.value(bytes(part)) != checksum:
                break
            parts += part
            at += _FRAME.size + length
        return SliceHead(system_identifier, Lsn(first), timeline_id, segment_bytes), bytes(parts)

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone is no error."""
        try:
            self._below.unlink(name, missing_ok=True)
        except OSError as problem:
            raise self.failed(problem, "remove", name) from problem

    def settle(self) -> None:
        """Make durable what was removed: else a next start uploads it once more."""
        try:
            self._below.sync_directory()
        except OSError as problem:
            raise files.storage_failed(problem, "sync", self.path) from problem

    def failed(self, problem: OSError, what: str, name: str) -> Exception:
        """Return the error for what could not be done with a file."""
        return files.storage_failed(problem, what, self._below.path(name))

    def _read(self, name: str, most_bytes: int, *, cut: bool = False) -> bytes:
        try:
            descriptor = self._below.open_regular(name)
            with open(descriptor, "rb") as stream:
                content = stream.read(most_bytes + 1)
        except OSError as problem:
            raise self.failed(problem, "read", name) from problem
        if len(content) > most_bytes and not cut:
            raise IntegrityError(f'"{self._below.path(name)}" is longer than a file of the spool can be', hint=_LOOK)
        return content[:most_bytes]

    def _names(self) -> list[str]:
        try:
            found = os.listdir(self.path)
        except OSError as problem:
            raise files.storage_failed(problem, "read", self.path) from problem
        return [name for name in found if _SLICE_NAME.match(name) or _is_history(name)]

    def _number(self) -> str:
        number, self._next = self._next, self._next + 1
        return f"{number:016d}"


_LOOK = "see what changed it; move it out of the spool if nothing of it is needed, and take a new backup"


def _is_history(name: str) -> bool:
    match = _HISTORY_NAME.match(name)
    return match is not None and is_history_name(match[2])


SliceMaker = Callable[[int, Lsn], Slice]
