"""Where the WAL in a backup ends, read from the WAL itself: how far a segment is filled no listing tells."""

from __future__ import annotations

from polarvault.backupset.backup import Backup
from polarvault.backupset.model import Area, Inventory
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.scan import WalScanner


def end_of_held_wal(source: Backup, inventory: Inventory, segment: WalSegment) -> Lsn | None:
    """Return the LSN behind the last record of a segment in the backup; None when its bytes are not easy to get at.

    After a switch that is the start of the next segment.
    """
    if source.parts and all(part.is_tar for part in source.parts) and not source.parts_of(Area.WAL):
        return None  # WAL at the end of a tar with the whole database is not looked for.
    copies = source.wal(inventory).copies(segment.file_name)
    if not copies:
        return None
    scanner = WalScanner(segment.start, segment.size_bytes)
    for piece in copies[0].views():
        scanner.feed(piece)
    return scanner.next_lsn
