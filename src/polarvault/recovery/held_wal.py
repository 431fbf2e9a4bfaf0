"""Where the WAL in a backup ends, read from the WAL itself: how far a segment is filled no listing tells."""

from __future__ import annotations

import os
from collections.abc import Iterator

from polarvault.backupset.model import Area, BackupSource, Part
from polarvault.backupset.tarstream import read_tar
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.tar import MemberBegins, MemberData
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.scan import WalScanner

_READ_BYTES = 1 << 20


def end_of_held_wal(source: BackupSource, segment: WalSegment) -> Lsn | None:
    """Return the LSN behind the last record of a segment in the backup; None when its bytes are not easy to get at.

    After a switch that is the start of the next segment.
    """
    pieces = _plain(source, segment.file_name) or _in_wal_tar(source, segment.file_name)
    if pieces is None:
        return None
    scanner = WalScanner(segment.start, segment.size_bytes)
    for piece in pieces:
        scanner.feed(piece)
    return scanner.next_lsn


def _plain(source: BackupSource, name: str) -> Iterator[memoryview] | None:
    for part in source.parts:
        path = os.path.join(part.path, "pg_wal", name)
        if not part.is_tar and os.path.isfile(path):
            return _file(path)
    return None


def _file(path: str) -> Iterator[memoryview]:
    try:
        with open_regular(path) as stream:
            while piece := stream.read(_READ_BYTES):
                yield memoryview(piece)
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem


def _in_wal_tar(source: BackupSource, name: str) -> Iterator[memoryview] | None:
    """Read pg_wal.tar; WAL at the end of a tar with the whole database is not looked for."""
    parts = source.parts_of(Area.WAL)
    return _tar(parts[0], name) if parts else None


def _tar(part: Part, name: str) -> Iterator[memoryview]:
    wanted = False
    try:
        for event in read_tar(part):
            if isinstance(event, MemberBegins):
                wanted = event.member.name == name
            elif isinstance(event, MemberData) and wanted:
                yield from event.views
    except OSError as problem:
        raise storage_failed(problem, "read", part.path) from problem
