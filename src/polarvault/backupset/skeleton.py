"""Directories that a server wants although a backup holds nothing in them, and that copying tools like to drop.

Object stores, version control and `rsync --prune-empty-dirs` know no empty directories, and a manifest lists none.
Sources: initdb (bin/initdb/initdb.c, subdirs) and basebackup.c, which sends most of them empty; PolarDB facts, section
2.1: the local half has an empty directory for each database, and without it that database cannot be opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

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
    if shared is None:
        return _missing(local, (*_ALWAYS_EMPTY, *_OFTEN_EMPTY, *_WITH_DATA))
    databases = os.path.join(shared, "base")
    names = sorted(os.listdir(databases)) if os.path.isdir(databases) else []
    in_shared = missing_in_shared_half(lambda name: os.path.isdir(os.path.join(shared, name)))
    return [*(os.path.join(shared, name) for name in in_shared), *missing_of_local_half(local, names)]


def missing_in_shared_half(is_there: Callable[[str], bool]) -> list[str]:
    """Return the names of those that PolarDB's shared half lacks, wherever that lies."""
    return [name for name in _OF_SHARED_HALF if not is_there(name)]


def missing_of_local_half(local: str, databases: Iterable[str]) -> list[str]:
    """Return the paths of those that PolarDB's local half lacks; databases: the names in base of the shared half."""
    of_databases = (f"base/{name}" for name in databases if name.isdecimal())
    return _missing(local, (*_ALWAYS_EMPTY, *_OFTEN_EMPTY, "global", "base", *of_databases))


def _missing(directory: str, names: Iterable[str]) -> list[str]:
    paths = (os.path.join(directory, name) for name in names)
    return [path for path in paths if not os.path.isdir(path)]
