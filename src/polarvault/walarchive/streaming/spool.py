"""A spool: a directory in which slices of WAL wait for the repositories of a cluster.

A slice is durable when its file is synced. A file is

    magic "PVSLICE1", system identifier (8), first LSN (8), timeline (4), segment size (4), CRC-32C of these (4)
    then frames: length (4), CRC-32C of the bytes (4), the bytes

all little-endian. What a crash left of the last frame is not there. A file's name begins with a number that rises, so
that names sort as the WAL came. Only the newest file may be cut: the others were synced before it was begun.

Everything in a spool counts as received, so only one program may use it: another one would upload, and remove, what
this one is still writing to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import struct
from dataclasses import dataclass

import google_crc32c

from polarvault.errors import IntegrityError, UsageError
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.ownership import others_may_change
from polarvault.model.segment import is_segment_size
from polarvault.storage import files
from polarvault.storage.below import Below
from polarvault.wal.names import is_history_name
from polarvault.walarchive.streaming.slices import HistoryItem

_MAGIC = b"PVSLICE1"
_HEADER = struct.Struct("<8sQQII")
_CHECKED = struct.Struct("<I")
_FRAME = struct.Struct("<II")
_HEADER_BYTES = _HEADER.size + _CHECKED.size
_SLICE_NAME = re.compile(r"([0-9]{16})-[0-9A-F]{8}-[0-9A-F]{16}\.slice\Z")
_HISTORY_NAME = re.compile(r"([0-9]{16})-([0-9A-F]{8}\.history)\Z")
_MODE = 0o600
_LOCK_NAME = ".lock"
# What has not got its name yet: no slice and no history by its name, so a crash leaves nothing that is taken for one.
_NEW = ".new"
_MOST_NUMBER = 10**16 - 1


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
        """Read the file again; IntegrityError if it does not hold all that was written."""
        _, content, _ = self._spool.read(self.name)
        if len(content) < self.last - self.first:
            raise self._spool.damaged(
                self.name, f"has good WAL up to {Lsn(self.first + len(content))} only, and had it up to {self.last}"
            )
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


@dataclass(frozen=True, slots=True)
class SliceHead:
    """What the first bytes of a spool file say."""

    system_identifier: int
    first: Lsn
    timeline_id: int
    segment_bytes: int


class Spool:
    """A directory for slices of one cluster; made if it is missing. most_bytes: what may wait in it.

    It is locked until `close`, or the end of the process; UsageError if another program uses it, or if other accounts
    may write into it: what lies there is uploaded as WAL of the cluster.
    """

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
        if others_may_change(self._below.status("")):
            raise UsageError(
                f'the spool "{self.path}" belongs to another account, or others may write into it',
                hint=f"see what is in it, then: chown -R $(id -un) {shlex.quote(self.path)} && "
                f"chmod 700 {shlex.quote(self.path)}",
            )
        self._lock = self._locked()
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
                # Nothing is in it, and on a disk that is full there is one try after the other.
                with contextlib.suppress(OSError):
                    self._below.unlink(name)
            raise self.failed(problem, "make", name) from problem
        return SpooledSlice(self, name, timeline_id, first, first, descriptor)

    def keep_history(self, timeline_id: int, content: bytes) -> HistoryItem:
        """Keep a history until it is in the repository; durable on return."""
        name = f"{self._number()}-{timeline_id:08X}.history"
        try:
            # Half a history is one as well, and would be in the repository for good.
            self._below.write(name + _NEW, content, _MODE, sync=True, replace=True)
            self._below.rename(name + _NEW, name)
            self._below.sync_directory()
        except OSError as problem:
            raise self.failed(problem, "write", name) from problem
        return HistoryItem(timeline_id, content, name)

    def waiting(self) -> list[tuple[SliceHead | None, SpooledSlice | HistoryItem]]:
        """Return what an earlier run has left, in the order in which it came; all of it is durable on return.

        Of the newest slice what a crash has cut is left out, and the file removed if nothing of it is whole. Any other
        one was whole: IntegrityError names a file that is not, and everything stays as it is.
        """
        found: list[tuple[SliceHead | None, SpooledSlice | HistoryItem]] = []
        names = sorted(self._names())
        newest = next((name for name in reversed(names) if _SLICE_NAME.match(name)), None)
        for name in names:
            history = _HISTORY_NAME.match(name)
            if history is not None:
                content = self._read(name, limits.HISTORY_BYTES)
                found.append((None, HistoryItem(int(history[2][:8], 16), content, name)))
                continue
            if name == newest and len(self._read(name, _HEADER_BYTES, cut=True)) < _HEADER_BYTES:
                self.remove(name)  # It was made when the power went; nothing of it was ever acknowledged.
                continue
            head, content, is_cut = self.read(name)
            if is_cut and name != newest:
                raise self.damaged(name, f"has good WAL up to {Lsn(head.first + len(content))} only, and holds more")
            if not content:
                self.remove(name)
                continue
            # A receiver that was killed has written it, and perhaps not synced it.
            self._sync(name)
            last = Lsn(head.first + len(content))
            found.append((head, SpooledSlice(self, name, head.timeline_id, head.first, last, -1)))
        return found

    def read(self, name: str) -> tuple[SliceHead, bytes, bool]:
        """Return what a file holds, up to its last whole frame, and whether anything follows that is none.

        Raises IntegrityError for what is no slice.
        """
        content = memoryview(self._read(name, limits.WAL_RANGE_BYTES * 2))
        if len(content) < _HEADER_BYTES:
            raise self.damaged(name, "ends within its header")
        magic, system_identifier, first, timeline_id, segment_bytes = _HEADER.unpack_from(content)
        (checksum,) = _CHECKED.unpack_from(content, _HEADER.size)
        is_whole = magic == _MAGIC and checksum == google_crc32c.value(bytes(content[: _HEADER.size]))
        if not is_whole or not is_segment_size(segment_bytes) or not timeline_id:
            raise self.damaged(name, "does not begin as a slice of WAL")
        parts, at = bytearray(), _HEADER_BYTES
        while len(content) - at >= _FRAME.size:
            length, checksum = _FRAME.unpack_from(content, at)
            part = content[at + _FRAME.size : at + _FRAME.size + length]
            if len(part) != length or google_crc32c.value(bytes(part)) != checksum:
                break
            parts += part
            at += _FRAME.size + length
        if first % segment_bytes + len(parts) > segment_bytes:
            raise self.damaged(name, "holds more than its segment has")
        return SliceHead(system_identifier, Lsn(first), timeline_id, segment_bytes), bytes(parts), at < len(content)

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

    def close(self) -> None:
        """Let another program use it; nothing may be asked of it any more. Safe to call twice."""
        descriptor, self._lock = self._lock, -1
        if descriptor >= 0:
            os.close(descriptor)

    def damaged(self, name: str, how: str) -> IntegrityError:
        """Return the error for a file that is not what was written."""
        return IntegrityError(f'"{self._below.path(name)}" {how}', hint=_LOOK)

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
            raise self.damaged(name, "is longer than a file of the spool can be")
        return content[:most_bytes]

    def _sync(self, name: str) -> None:
        try:
            self._below.sync_file(name)
        except OSError as problem:
            raise self.failed(problem, "sync", name) from problem

    def _locked(self) -> int:
        try:
            with contextlib.suppress(FileExistsError):
                os.close(self._below.create(_LOCK_NAME, _MODE))
            descriptor = self._below.open_for_writing(_LOCK_NAME)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(descriptor)
                raise
        except BlockingIOError:
            raise UsageError(
                f'another program uses the spool "{self.path}"',
                hint="a receiver that runs uploads it by itself; one that streams elsewhere needs a --spool of its own",
            ) from None
        except OSError as problem:
            raise self.failed(problem, "lock", _LOCK_NAME) from problem
        return descriptor

    def _names(self) -> list[str]:
        try:
            found = os.listdir(self.path)
        except OSError as problem:
            raise files.storage_failed(problem, "read", self.path) from problem
        return [name for name in found if _SLICE_NAME.match(name) or _is_history(name)]

    def _number(self) -> str:
        if self._next > _MOST_NUMBER:
            # A longer one would neither sort behind the others nor be found again.
            raise IntegrityError(f'a file in "{self.path}" has the highest number that there is', hint=_LOOK)
        number, self._next = self._next, self._next + 1
        return f"{number:016d}"


_LOOK = "see what has changed it; move it out of the spool, start again, and take a new backup: its WAL is a gap"


def _is_history(name: str) -> bool:
    match = _HISTORY_NAME.match(name)
    return match is not None and is_history_name(match[2])
