"""Where each file of a backup goes, and what is left behind. Pure.

What is left behind (PolarDB facts, section 2): PolarDB's caches and logs in the local half, which the server moves
to its trash at the first start; all of polar_fullpage, whose index is not copied atomically; signal files and markers
of the source's role; the backup tools' own files. Directories are always kept: the server wants them, empty or not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from polarvault.backupset.backup import Entry
from polarvault.backupset.model import (
    CONTROL_NAME,
    DESCRIPTION_NAME,
    FULL_PAGE_DIRECTORY,
    Area,
    Inventory,
    area_of,
)
from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.pgconf.configuration import MAIN_FILE
from polarvault.pgfiles.tar import MemberKind, is_safe_name
from polarvault.restore.model import Layout
from polarvault.restore.plan.backup import local_settings
from polarvault.storage.occupants import CONTROL_WAITING_NAME

_NEVER = frozenset(
    {
        "backup_manifest",
        "backup_manifest.tmp",
        DESCRIPTION_NAME,
        MARKER_NAME,
        "polar_replica_booted",
        "polar_non_exclusive_backup_label",
        "polar_non_exclusive_tablespace_map",
        "postmaster.pid",
        "postmaster.opts",
        # Links are made at once and for the new places, so the map would only bring the old ones back.
        "tablespace_map",
        "current_logfiles",
    }
)
# Local file caches of what the shared half holds; in a plain or merged instance these names are the real thing.
_LOCAL_CACHES = frozenset(
    {"pg_xact", "pg_multixact", "pg_commit_ts", "pg_logindex", "polar_rel_size_cache", "polar_cache_trash"}
)


def is_left_behind(area: Area, name: str, kind: MemberKind, *, two_halves: bool, log_directory: str | None) -> bool:
    """Tell whether a member of the backup is not restored; two_halves: the backup has a separate shared half."""
    top, _, rest = name.partition("/")
    if not rest and (top in _NEVER or top.endswith(".signal") or top.startswith("backup_manifest.")):
        return True
    if kind is MemberKind.DIRECTORY:
        return False
    if top == FULL_PAGE_DIRECTORY:
        return True
    if area is Area.SHARED:
        return name in ("backup_label", "postgresql.auto.conf")
    if area is not Area.LOCAL or not two_halves:
        return False
    if log_directory is not None and name.startswith(log_directory + "/"):
        return True
    # A read-only node keeps a pg_control of its own; the shared half's is the one that counts.
    return top in _LOCAL_CACHES or name == CONTROL_NAME


@dataclass(frozen=True, slots=True)
class Router:
    """Map members of the backup to paths in the target."""

    layout: Layout
    two_halves: bool
    log_directory: str | None = None
    """PolarDB's log directory inside the local half: its audit logs hold SQL texts of the source."""

    def path(self, area: Area, name: str, kind: MemberKind, oid: int = 0) -> str | None:
        """Return the target path of a member, or None when it stays behind.

        Names are as in the tar, relative to the area. A name that would leave the target stays behind as well:
        PolarDB names WAL status files ``file-dio:///...``.
        """
        area, name = area_of(area, name)
        if not name:
            return self.layout.data
        if not is_safe_name(name):
            return None
        if area is Area.WAL:
            return os.path.join(self.layout.data, "pg_wal", name)
        if area is Area.TABLESPACE:
            return os.path.join(self.layout.tablespaces[oid], name)
        if is_left_behind(area, name, kind, two_halves=self.two_halves, log_directory=self.log_directory):
            return None
        if name == CONTROL_NAME:
            name = CONTROL_WAITING_NAME
        is_wal = name == "pg_wal" or name.startswith("pg_wal/")
        in_data = area is Area.SHARED or name == CONTROL_WAITING_NAME or (self.two_halves and is_wal)
        return os.path.join(self.layout.data if in_data else self.layout.local, name)


class LocalHalfRouter(Router):
    """Map members of the local half; everything else stays behind, and so does what would make the node a writer."""

    def path(self, area: Area, name: str, kind: MemberKind, oid: int = 0) -> str | None:
        """Return the target path of a member, or None when it stays behind."""
        area, name = area_of(area, name)
        # postgresql.conf is written at the end, edited.
        if area is not Area.LOCAL or name in ("backup_label", MAIN_FILE):
            return None
        # Spelled out: super() without arguments fails in a dataclass with slots.
        return Router.path(self, area, name, kind, oid)


def router_of(layout: Layout, inventory: Inventory) -> Router:
    """Return what maps the members of a backup."""
    is_live = layout.live_datadir is not None
    two_halves = inventory.has_shared_half or is_live
    log_directory = None
    if two_halves:
        value = local_settings(inventory).value("log_directory") or "log"
        log_directory = None if value.startswith("/") else value.strip("/")
    kind = LocalHalfRouter if is_live else Router
    return kind(layout, two_halves, log_directory)


def is_hidden(entry: Entry, layout: Layout, inventory: Inventory) -> bool:
    """Tell whether a file stays behind: merged halves share one name space, and the shared half's is the real one."""
    in_both = entry.area is Area.LOCAL and (Area.SHARED, entry.name) in inventory.names
    return layout.merged and in_both and entry.kind is MemberKind.FILE
