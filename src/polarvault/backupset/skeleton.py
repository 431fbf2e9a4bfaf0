"""Directories that a server wants although a backup holds nothing in them, and that copying tools like to drop.

Object stores, version control and `rsync --prune-empty-dirs` know no empty directories, and a manifest lists none.
Sources: initdb (bin/initdb/initdb.c, subdirs) and basebackup.c, which sends most of them empty; PolarDB facts, section
2.1: the local half has an empty directory for each database, and without it that database cannot be opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

# Without data in them in every base backup: the server fills them anew.
_ALWAYS_EMPTY = (
    "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans",
)  # fmt: skip
# Mostly empty; what was in them is in the manifest, or (pg_wal) looked for before a restore is started.
_OFTEN_EMPTY = ("pg_logical/mappings", "pg_logical/snapshots", "pg_stat", "pg_tblspc")
_WITH_DATA = ("pg_commit_ts", "pg_twophase", "pg_wal")
_OF_SHARED_HALF = (*_WITH_DATA, "pg_logindex", "pg_replslot", "pg_tblspc")


def missing_directories(local: str, shared: str | None) -> list[str]:
    """Return the paths of such directories that are not there; shared is None for what lies in one directory."""
    return [path for path in _wanted(local, shared) if not os.path.isdir(path)]


def _wanted(local: str, shared: str | None) -> Iterator[str]:
    names = (*_ALWAYS_EMPTY, *_OFTEN_EMPTY, *(() if shared else _WITH_DATA))
    yield from (os.path.join(local, name) for name in names)
    if shared is None:
        return
    yield from (os.path.join(shared, name) for name in _OF_SHARED_HALF)
    yield from (os.path.join(local, name) for name in ("global", "base"))
    databases = os.path.join(shared, "base")
    for name in sorted(os.listdir(databases)) if os.path.isdir(databases) else ():
        if name.isdecimal():
            yield os.path.join(local, "base", name)
