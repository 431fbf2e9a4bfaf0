"""Backups made of whole cloth, in repositories: for tests of what a restore does with them, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import PurePosixPath

from polarvault.backupset.backup import Backup
from polarvault.errors import IntegrityError
from polarvault.model.lsn import Lsn
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.format.record import RecordFacts
from polarvault.repository.index.files import FileKind
from polarvault.repository.index.root import Part, PartArea
from polarvault.repository.reading.as_backup import BackupInRepository
from polarvault.repository.wal.source import RepositoryWalSource
from polarvault.repository.writing.backup_writer import Member
from support.made_backups import SEGMENT_BYTES, SYSTEM_IDENTIFIER, MadeBackup
from support.repositories import NOW


def back_up_made(
    repository: Repository, made: MadeBackup, *, minutes: int = 0, parent: str | None = None
) -> BackupInRepository:
    """Back the files up, and the segment of WAL that belongs to them."""
    at, start = NOW + timedelta(minutes=minutes), Lsn(made.start)
    repository.ensure_generation("shop", Generation(SYSTEM_IDENTIFIER, 150000, False, SEGMENT_BYTES, 1 << 30, False))
    writer = repository.begin_backup("shop", started=at, parts=[Part(PartArea.LOCAL)], parent=parent)
    for directory in sorted({str(above) for name in made.content for above in PurePosixPath(name).parents} - {"."}):
        writer.begin(Member(0, directory.encode(), FileKind.DIRECTORY, mode=0o700))
        writer.end()
    for name, content in made.content.items():
        writer.begin(Member(0, name.encode(), FileKind.FILE, len(content)))
        writer.data([content])
        writer.end()
    writer.attach("polarvault_backup.json", [b"{}"])
    label = writer.commit(RecordFacts(at, at, SYSTEM_IDENTIFIER, 1, start, Lsn(start + 0x100), 1, 150000)).label
    repository.end_intents()
    wal = repository.wal("shop", SYSTEM_IDENTIFIER, SEGMENT_BYTES)
    first = start // SEGMENT_BYTES * SEGMENT_BYTES
    for offset in range(0, SEGMENT_BYTES, 5_000_000):
        wal.put_range(1, Lsn(first + offset), made.wal[offset : offset + 5_000_000])
    source = RepositoryWalSource(wal, place="WAL of shop")
    reader = repository.open_backup("shop", label)
    return BackupInRepository(reader, source, name=f"shop@{label}", page_key=repository.page_key)


class ShelfOfOne:
    """Has one backup, whatever it is asked for."""

    def __init__(self, backup: Backup) -> None:
        self._backup = backup

    def find(self, word: str, **how: object) -> Backup:
        """Return it."""
        return self._backup

    def concerned(self, problem: IntegrityError, word: str) -> None:
        """Know of no other one."""

    def several(self, word: str) -> Sequence[str]:
        """Return nothing: it is one itself."""
        return ()
