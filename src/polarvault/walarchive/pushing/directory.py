"""Archive into a plain directory: the files that receivewal writes there, by a push.

Theory. A file gets its name when it is durable: temporary file, fsync, rename, fsync of the directory. A lock keeps
two pushes apart, so that nobody renames what the other has begun, and what a killed one has left is written anew. What
has the name already, plain or compressed, is compared and never replaced; but for a partial segment, which grows: it is
replaced by one that agrees and goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from contextlib import contextmanager

from polarvault.errors import IntegrityError, UsageError
from polarvault.storage.below import Below
from polarvault.storage.copying import copy_content
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.names import is_history_name
from polarvault.walarchive.pushing.files import PARTIAL, is_segment, look_at_segment, read_small
from polarvault.walfiles.choice import valid_end
from polarvault.walfiles.files import forms_of, is_pg_wal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from polarvault.wal.segment_header import SegmentHeader
    from polarvault.wal.source import WalCopy

_LOCK_NAME = ".polarvault-push.lock"
_OTHER_DIRECTORY = (
    "see which of them is the cluster (a restored copy, an old primary that still runs?); let the other one archive "
    "into another directory; nothing was overwritten"
)


class DirectoryPusher:
    """Pushes files into a directory, which must exist."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def push(self, path: str) -> int:
        """Push a segment, a partial one, a history or a backup history file; return how many bytes were new.

        Durable on return, also what was there. Raises UsageError, IntegrityError, StorageFailed.
        """
        name = os.path.basename(path)
        if is_pg_wal(self.path):
            raise UsageError(
                f'"{self.path}" is the pg_wal of a server, not an archive', hint="name another directory with --to"
            )
        with self._locked() as below:
            return self._push_segment(below, path, name) if is_segment(name) else self._push_small(below, path, name)

    def _push_small(self, below: Below, path: str, name: str) -> int:
        content = read_small(path)
        if is_history_name(name):
            from polarvault.wal.history import TimelineHistory

            TimelineHistory.parse(content, int(name[:8], 16))
        for copy in forms_of(self.path, name):
            if b"".join(map(bytes, copy.views())) != content:
                raise IntegrityError(
                    f'"{copy.where}" is another file than "{path}": two servers write timeline {int(name[:8], 16)}',
                    hint=_OTHER_DIRECTORY,
                )
            self._settle(below)
            return 0
        try:
            below.write(f"{name}.tmp", content, 0o600, sync=True, replace=True)
            below.rename(f"{name}.tmp", name)
        except OSError as problem:
            raise storage_failed(problem, "write", below.path(name)) from problem
        self._settle(below)
        return len(content)

    def _push_segment(self, below: Below, path: str, name: str) -> int:
        try:
            with open_regular(path) as stream:
                header, end = look_at_segment(stream, path)
                if end < header.segment_size_bytes and not name.endswith(PARTIAL):
                    # A promoted server has left it.
                    name += PARTIAL
                if self._is_there(stream, header, path, name, end):
                    self._settle(below)
                    return 0
                self._write(below, stream, header, name, end)
                return end
        except OSError as problem:
            raise storage_failed(problem, f'copy "{path}" to', self.path) from problem

    def _is_there(self, stream: BinaryIO, header: SegmentHeader, path: str, name: str, end: int) -> bool:
        """Tell whether the directory holds as much; IntegrityError if it holds something else."""
        is_partial = name.endswith(PARTIAL)
        is_there = False
        for copy in forms_of(self.path, name.removesuffix(PARTIAL)):
            # One that was not finished ends in zeros, or in WAL of an older life.
            length = valid_end(copy) if copy.partial else header.segment_size_bytes
            self._compare(stream, header, path, copy, min(length, end))
            is_there |= not copy.partial or (is_partial and length >= end)
        return is_there

    def _compare(self, stream: BinaryIO, header: SegmentHeader, path: str, copy: WalCopy, length: int) -> None:
        at = 0
        for view in copy.views():
            here = os.pread(stream.fileno(), min(len(view), length - at), at)
            if here != view[: len(here)]:
                at += next(n for n, (mine, other) in enumerate(zip(here, view, strict=False)) if mine != other)
                break
            at += len(here)
            if at >= length:
                return
        if at >= length:
            return
        other = copy.look_at_start().header
        whose = "no WAL page" if other is None else f"system identifier {other.system_identifier}"
        raise IntegrityError(
            f'"{path}" (system identifier {header.system_identifier}, timeline {int(os.path.basename(path)[:8], 16)}) '
            f'and "{copy.where}" ({whose}) differ from byte {at} on: two servers write the same timeline',
            hint=_OTHER_DIRECTORY,
        )

    def _write(self, below: Below, stream: BinaryIO, header: SegmentHeader, name: str, end: int) -> None:
        mode = 0o640 if os.fstat(stream.fileno()).st_mode & 0o040 else 0o600
        try:
            target = below.create(f"{name}.tmp", mode, replace=True)
            try:
                copy_content(stream.fileno(), target, end)
                # A partial one has its full length as well, and its tail is a hole.
                os.ftruncate(target, header.segment_size_bytes)
                os.fsync(target)
            finally:
                os.close(target)
            below.rename(f"{name}.tmp", name)
        except OSError:
            below.unlink(f"{name}.tmp", missing_ok=True)
            raise
        self._settle(below)

    def _settle(self, below: Below) -> None:
        """Make the names durable: also of what another push has renamed and not yet synced."""
        try:
            below.sync_directory()
        except OSError as problem:
            raise storage_failed(problem, "fsync", self.path) from problem

    @contextmanager
    def _locked(self) -> Iterator[Below]:
        try:
            with Below(self.path) as below:
                # Another push may make it at the same time.
                with contextlib.suppress(FileExistsError):
                    os.close(below.create(_LOCK_NAME, 0o600))
                descriptor = below.open_for_writing(_LOCK_NAME)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    yield below
                finally:
                    os.close(descriptor)
        except OSError as problem:
            raise storage_failed(problem, "archive into", self.path) from problem
