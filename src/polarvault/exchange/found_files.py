"""The files of a backup that lies in directories or tars, as events of a tar whatever its form."""

from __future__ import annotations

import os
from collections.abc import Iterator

from polarvault.backupset.model import Area, Inventory, area_of
from polarvault.backupset.on_disk import BackupOnDisk
from polarvault.backupset.reading.plain_tree import PlainTree, TreeEntry
from polarvault.backupset.reading.tarstream import read_tar
from polarvault.errors import BackupUnusable
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, MemberKind, TarEvent
from polarvault.storage.files import storage_failed

_READ_BYTES = 1 << 20
# Area, oid of the tablespace, and what comes: the name in the event is that in the area.
Found = tuple[Area, int, TarEvent]


def found_files(backup: BackupOnDisk, inventory: Inventory) -> Iterator[Found]:
    """Yield every member, but those of a tar that holds WAL alone; links come without where they lead."""
    for part in backup.parts:
        if part.area is Area.WAL:
            continue
        if part.is_tar:
            for event in read_tar(part):
                yield _placed(part.area, part.tablespace_oid, event)
            continue
        skip = backup.inside_local if part.area is Area.LOCAL else frozenset[str]()
        with PlainTree(part.path, skip=skip, tablespace=part.area is Area.TABLESPACE) as tree:
            yield from _of_tree(tree, part.area, part.tablespace_oid)
    for space in inventory.tablespaces:
        if space.copy is not None:
            with PlainTree(space.copy, tablespace=True) as tree:
                yield from _of_tree(tree, Area.TABLESPACE, space.oid)


def _placed(area: Area, oid: int, event: TarEvent) -> Found:
    if isinstance(event, MemberData):
        return area, oid, event
    member = event.member
    area, name = area_of(area, member.name)
    moved = Member(name, member.kind, member.size, member.mode, member.link, member.mtime, member.header)
    return area, oid, MemberBegins(moved) if isinstance(event, MemberBegins) else MemberEnds(moved)


def _of_tree(tree: PlainTree, area: Area, oid: int) -> Iterator[Found]:
    for entry in tree.walk():
        status = entry.status
        size = status.st_size if entry.kind is MemberKind.FILE else 0
        member = Member(entry.name, entry.kind, size, status.st_mode & 0o7777, "", int(status.st_mtime), b"")
        yield area, oid, MemberBegins(member)
        if entry.kind is MemberKind.FILE:
            for event in _content(tree, entry, size):
                yield area, oid, event
        yield area, oid, MemberEnds(member)


def _content(tree: PlainTree, entry: TreeEntry, size: int) -> Iterator[MemberData]:
    path = os.path.join(tree.root, entry.name)
    view = memoryview(bytearray(_READ_BYTES))
    offset = 0
    try:
        with open(tree.open(entry), "rb", buffering=0) as source:
            while offset < size:
                count = source.readinto(view[: size - offset]) or 0
                if not count:
                    break
                yield MemberData([view[:count]], count, offset)
                offset += count
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
    if offset < size:
        raise BackupUnusable(
            f'"{path}" became shorter while it was read',
            hint="import a backup that nobody changes, not a running server",
        )
