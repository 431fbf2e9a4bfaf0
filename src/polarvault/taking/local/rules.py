"""What BASE_BACKUP leaves out, and what of it as empty directories, by version. Pure.

Facts: server file backup/basebackup.c (replication/basebackup.c before 15) of each version: excludeFiles,
excludeDirContents, sendDir; PolarDB: facts, section 1.3. Names are matched at any depth, as the server does.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from polarvault.model import versions

CONTROL_FILE = "global/pg_control"
_TEMPORARY_PREFIX = "pgsql_tmp"
_CACHE_PREFIX = "pg_internal.init"
_FILES = frozenset(
    {
        "postgresql.auto.conf.tmp", "current_logfiles.tmp", "backup_label", "tablespace_map", "backup_manifest",
        "postmaster.pid", "postmaster.opts",
    }
)  # fmt: skip
# Of macOS, left out since 15 (measured on 13.23 to 18).
_FINDER_FILE, _KNOWS_FINDER = ".DS_Store", 150000
_POLARDB_FILES = frozenset(
    {"polar_settings.conf.tmp", "recovery.done", "pgss_query_texts.stat", "polar_node_static.conf"}
)
_EMPTIED = frozenset(
    {"pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"}
)
_POLARDB_EMPTIED = frozenset({"pg_logindex"})
_DATABASE_DIRECTORY = re.compile(r"(?:base|(?:pg_tblspc/[0-9]+/)?PG_[^/]+)/[0-9]+\Z", re.ASCII)
# 13 to 19: looks_like_temp_rel_name, parse_filename_for_nontemp_relation.
_TEMPORARY_RELATION = re.compile(r"t[0-9]+_[0-9]+(?:_(?:fsm|vm|init))?(?:\.[0-9]+)?\Z", re.ASCII)
_RELATION = re.compile(r"([0-9]+)(_(?:fsm|vm|init))?(?:\.[0-9]+)?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class SourceRules:
    """What is sent of one tree. statistics_directory: stats_temp_directory of 13 and 14, below the data directory.

    finds_init_forks: False where the server misses them and so sends unlogged relations (PolarDB's shared storage).
    """

    version_num: int
    is_polardb: bool = False
    finds_init_forks: bool = True
    statistics_directory: str | None = None

    def leaves_out(self, directory: str, name: str, siblings: Collection[str]) -> bool:
        """Tell whether a name in a directory is not sent at all; siblings: all names in the directory."""
        if name.startswith((_TEMPORARY_PREFIX, _CACHE_PREFIX)) or name in _FILES:
            return True
        if (self.is_polardb and name in _POLARDB_FILES) or (name == _FINDER_FILE and self.version_num >= _KNOWS_FINDER):
            return True
        if directory == "global" and name == "pg_control":
            return True  # It comes last.
        if _DATABASE_DIRECTORY.match(directory) is None:
            return False
        if _TEMPORARY_RELATION.match(name) is not None:
            return True
        match = _RELATION.match(name)
        return match is not None and match[2] != "_init" and self.finds_init_forks and f"{match[1]}_init" in siblings

    def empties(self, path: str) -> bool:
        """Tell whether a directory is sent without what is in it."""
        name = path.rpartition("/")[2]
        if name in _EMPTIED or path == self.statistics_directory:
            return True
        return self.is_polardb and name in _POLARDB_EMPTIED

    @property
    def wal_directories(self) -> tuple[str, ...]:
        """What is sent, empty, of pg_wal."""
        summaries = ("pg_wal/summaries",) if versions.of_server(self.version_num).makes_incremental_backups else ()
        return ("pg_wal", "pg_wal/archive_status", *summaries)
