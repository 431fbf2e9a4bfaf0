"""Where the WAL of a backup lies: in pg_wal directories, in pg_wal.tar, or below pg_wal/ in a half's own tar."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from polarvault.backupset.model import Area, BackupSource, Inventory, Part, wal_name_of
from polarvault.backupset.wal.streamed import StreamedTar
from polarvault.backupset.wal.tars import SeekableTar, TarWal
from polarvault.wal.names import is_history_name
from polarvault.wal.source import WalSource
from polarvault.walfiles.directory import WalDirectory
from polarvault.walfiles.search_list import SearchList


def wal_of(backup: BackupSource, inventory: Inventory) -> SearchList:
    """Return the WAL that comes with a backup that was looked through: pg_wal directories, or tars that hold it."""
    directories = [os.path.join(part.path, "pg_wal") for part in backup.parts if not part.is_tar]
    sources: list[WalSource] = [WalDirectory(path) for path in directories if os.path.isdir(path)]
    # The inventory has the histories already, and the names: a compressed tar is not read again for them.
    small = {name.rpartition("/")[2]: content for (_, name), content in inventory.files.items()}
    histories = {name: content for name, content in small.items() if is_history_name(name)}
    tars = _tars_with_wal(backup)
    for part in tars:
        names = [wal_name_of(area, name) for area, name in inventory.names if len(tars) == 1 or area is part.area]
        sources.append(tar_wal(part, known=(list(filter(None, names)), histories)))
    return SearchList(sources)


def _tars_with_wal(backup: BackupSource) -> list[Part]:
    """Return the tar files that can hold the backup's own WAL; a pg_wal.tar of its own holds all of it."""
    tars = [part for part in backup.parts if part.is_tar and part.area is not Area.TABLESPACE]
    return [part for part in tars if part.area is Area.WAL] or tars


def tar_wal(part: Part, *, known: tuple[Collection[str], Mapping[str, bytes]] | None = None) -> TarWal:
    """Return the WAL in a tar file; known: the names of its files in pg_wal, and its histories."""
    if part.compression is None:
        return SeekableTar(part)
    return StreamedTar(part, *known) if known is not None else StreamedTar(part)
