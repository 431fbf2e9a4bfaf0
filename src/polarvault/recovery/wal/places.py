"""Where a recovery looks for the WAL that its backup does not bring along."""

from __future__ import annotations

from polarvault.backupset.backup import Backup
from polarvault.recovery.target import RecoveryRequest
from polarvault.walfiles.directory import wal_sources
from polarvault.walfiles.search_list import SearchList


def places_of(recovery: RecoveryRequest, backup: Backup) -> SearchList:
    """Return the directories that were named, then the archive of the backup's cluster, if the request uses it."""
    archives = backup.archives if recovery.uses_archive else ()
    return SearchList([*wal_sources(recovery.wal_directories), *archives])
