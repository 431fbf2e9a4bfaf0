"""What recovery does beside the data: directories of new tablespaces, and settings that hot standby demands.

A tablespace that was made after the backup is not in it, so that no -T can move it: replay makes it again at the very
path that the source uses (server: commands/tablespace.c, tblspc_redo).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from polarvault.errors import StorageFailed
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.recovery.wal.chain import BackupSpan
from polarvault.storage.files import storage_failed
from polarvault.wal.marks import HOT_STANDBY_SETTINGS
from polarvault.wal.scan import MarkKind, WalMark

# What a server of 14 and later ends its recovery with; 13 warns that data may be missing, and lets no hot standby be.
REFUSED_WAL_LEVEL = "wal_level was set to minimal there, so that what was written then cannot be replayed"


def check_new_tablespaces(marks: Iterable[WalMark], major_version: int, *, confined: bool = False) -> None:
    """Raise StorageFailed if replay would write over another server's tablespace, or stop for want of a directory.

    marks: those that recovery applies. confined: the copy may write to no directory but its own, not even an empty one.
    """
    for mark in marks:
        # One without a directory of its own lies inside the restored data directory.
        if mark.kind is not MarkKind.TABLESPACE or not mark.name:
            continue
        what = f'recovery makes the tablespace at "{mark.name}" again, which is newer than the backup (LSN {mark.lsn})'
        other_ways = (
            f"stop before it: --target-lsn {mark.lsn} --target-exclusive; or use a backup that holds it, and -T"
        )
        if confined:
            raise StorageFailed(f"{what}, and that lies outside of the copy's own directory", hint=other_ways)
        try:
            names = os.listdir(mark.name)
        except FileNotFoundError:
            raise StorageFailed(
                f"{what}: that directory does not exist here, and the server would stop",
                hint=f"make it, empty, for the server's user: mkdir -p {mark.name}; or {other_ways}",
            ) from None
        except OSError as problem:
            raise storage_failed(problem, "read directory", mark.name) from problem
        used = next((name for name in sorted(names) if name.startswith(f"PG_{major_version}_")), None)
        if used is not None:
            raise StorageFailed(
                f'{what}: a server has its files there already, in "{used}", most likely the source, and the copy '
                "would write over them",
                hint=f"recover on another machine, or in a container, where that directory is empty; or {other_ways}",
            )


def full_page_warnings(marks: Iterable[WalMark], span: BackupSpan, label: BackupLabel | None) -> list[str]:
    """Return a warning for full_page_writes that was off while a standby was backed up; a primary forces them on.

    marks: those that recovery applies. The server refuses to take such a backup, but not to restore one that something
    else took.
    """
    if label is None or not label.is_from_standby:
        return []
    off = [
        mark for mark in marks
        if mark.kind is MarkKind.FULL_PAGE_WRITES_CHANGE and mark.name == "off"
        and (span.end_lsn is None or mark.lsn < span.end_lsn)
    ]  # fmt: skip
    return [
        f"full_page_writes was switched off at LSN {mark.lsn}, while this standby was backed up: pages that were "
        "copied half written stay so; verify the restored data, or use a backup that was taken with it on"
        for mark in off[:1]
    ]


def hot_standby_needs(marks: Iterable[WalMark]) -> dict[str, int]:
    """Return the highest value of each setting that hot standby compares, by name; empty if the WAL changes none.

    Below it the server pauses in the middle of the recovery (14 and later), or ends it (13).
    """
    changes = [mark.hot_standby_values for mark in marks if mark.hot_standby_values]
    if not changes:
        return {}
    return dict(zip(HOT_STANDBY_SETTINGS, map(max, zip(*changes, strict=True)), strict=True))
