"""A WAL directory as a store: a `wal.store.WalStore`, in files that pg_receivewal and every restore_command know."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from polarvault.errors import TimelineDiverged
from polarvault.model import limits
from polarvault.model.compression import Compression
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.storage.below import Below
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.history import history_file_name
from polarvault.wal.names import is_written
from polarvault.wal.store import Cluster, StartPoint
from polarvault.walarchive.store.resume import after_kept_wal
from polarvault.walarchive.store.space import has_space, space_warning
from polarvault.walarchive.store.status_file import DirectoryLock, note_failed_start
from polarvault.walarchive.store.writer import DirectoryWriter


class DirectoryStore:
    """Keeps WAL in a directory; `wal.store` says what its methods promise.

    synchronous: every write is made durable at once, by the thread that writes. sync False: nothing is ever synced.
    """

    gap_hint = (
        "copy the missing segments from another WAL archive into the directory; or take a new base backup and receive "
        "into an empty directory, with a slot (-S) so that it does not happen again"
    )
    lost_slot_hint = (
        "make it again (--create-slot --reserve-wal), receive into an empty directory, and take a new base backup; "
        "keep this directory: with the older backups it restores up to the gap"
    )
    diverged_hint = (
        "the server was put back to an older state, or two servers were promoted at one place: connect to the one "
        "whose WAL is here; or receive into another directory and take a new base backup"
    )

    def __init__(self, path: str, *, compression: Compression, sync: bool = True, synchronous: bool = False) -> None:
        self.path = path
        self._compression = compression
        self._sync = sync
        self._synchronous = synchronous
        # New files get the modes of the server's data directory, once that is known.
        self._mode = 0o600

    def lock(self) -> DirectoryLock:
        """Take the lock file."""
        return DirectoryLock(self.path, mode=lambda: self._mode)

    def note_failed_start(self, status: dict[str, Any]) -> None:
        """Change the status file, if there is one."""
        note_failed_start(self.path, status)

    def resume_point(
        self,
        cluster: Cluster,
        warn: Callable[[str], None],
        *,
        counts: Callable[[WalSegment], bool] = lambda segment: True,
        held_from: Lsn | None = None,
    ) -> StartPoint | None:
        """Look at the segment files, as `after_kept_wal` does: the newest one counts."""
        return after_kept_wal(self.path, cluster, warn, counts=counts)

    def history(self, timeline_id: int) -> bytes | None:
        """Read a history file."""
        path = os.path.join(self.path, history_file_name(timeline_id))
        try:
            with open_regular(path) as source:
                content = source.read(limits.HISTORY_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise storage_failed(problem, "read", path) from problem
        return content if is_written(content) else None

    def add_history(self, timeline_id: int, content: bytes) -> None:
        """Write a history file under a temporary name, and give it its own when it is durable."""
        file_name = history_file_name(timeline_id)
        path = os.path.join(self.path, file_name)
        try:
            with Below(self.path) as below:
                kept = below.read(file_name, limits.HISTORY_BYTES) if below.exists(file_name) else b""
                # What a crash of a careless archive_command has left, nothing or zeros, is replaced.
                if is_written(kept):
                    if kept != content:
                        raise _another_history(path)
                    return
                below.write(f"{file_name}.tmp", content, self._mode, sync=self._sync, replace=True)
                below.rename(f"{file_name}.tmp", file_name)
                if self._sync:
                    below.sync_directory()
        except OSError as problem:
            raise storage_failed(problem, "write", path) from problem

    def open(
        self,
        *,
        segment_size_bytes: int,
        group_access: bool,
        wake: Callable[[], None],
        on_segment: Callable[[WalSegment], None],
    ) -> DirectoryWriter:
        """Return a writer of segment files."""
        self._mode = 0o640 if group_access else 0o600
        return DirectoryWriter(
            self.path, segment_size_bytes=segment_size_bytes, compression=self._compression, mode=self._mode,
            sync=self._sync, synchronous=self._synchronous, wake=wake, on_segment=on_segment,
        )  # fmt: skip

    def has_space(self, size_bytes: int) -> bool:
        """Ask the file system."""
        return has_space(self.path, size_bytes)

    def space_warning(self, segment_size_bytes: int) -> str | None:
        """Say that the disk is nearly full."""
        return space_warning(self.path, segment_size_bytes, "remove WAL that no backup needs, or add space")


def _another_history(path: str) -> TimelineDiverged:
    return TimelineDiverged(
        f'"{path}" holds another history of its timeline than the server',
        hint="two servers were promoted to the same timeline: receive from this one into another directory; "
        "the file that is here belongs to the WAL that is here",
    )
