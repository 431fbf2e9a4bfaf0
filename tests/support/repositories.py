"""Repositories in memory, and trees of files that are backed up into them and read back."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from polarvault.model.lsn import Lsn
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.record import RecordFacts
from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.index.root import Part, PartArea
from polarvault.repository.keys.sealing import DataKey
from polarvault.repository.keys.wrapped import Secret, WrappedKey, unlock, wrap_for_file
from polarvault.repository.writing.backup_writer import BackupWriter, Member, Outcome, WriterSettings
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.write_once import WriteOnce

NOW = datetime(2026, 11, 25, 22, 44, 1, tzinfo=UTC)
PARTS = [Part(PartArea.LOCAL), Part(PartArea.TABLESPACE, 16385, "/srv/ts")]
PAGE = 8192
FILE_KEY = bytes(range(32))
Tree = dict[tuple[int, bytes], bytes]


def two_trees() -> tuple[Tree, Tree]:
    """Return a small tree, and what it has become a minute later."""
    first = {(0, b"base/5/%d" % number): bytes([number]) * 300_000 for number in range(1, 5)}
    return first, first | {(0, b"base/5/1"): bytes(300_000), (0, b"base/5/9"): b"new" * 9000}


def seeded(seed: int) -> Callable[[int], bytes]:
    """Return a source of randomness that is the same every time."""
    return random.Random(seed).randbytes


def new_repository(store: ObjectStore | None = None, *, seed: int = 1, encrypted: bool = False) -> Repository:
    """Make a repository, in memory if nothing else is said."""
    store = store or WriteOnce(MemoryStore())
    if not encrypted:
        return Repository.create(store, now=NOW, random=seeded(seed))
    key = DataKey(1, seeded(seed + 1)(32))

    def wrapped(repository_id: bytes) -> list[WrappedKey]:
        return [wrap_for_file(key, FILE_KEY, repository_id=repository_id, recipient="test", random=seeded(seed + 2))]

    return Repository.create(store, now=NOW, data_key=key, keys=wrapped, random=seeded(seed))


def reopened(repository: Repository) -> Repository:
    """Open a repository again from its store, with nothing but the key file."""

    def opened(repository_id: bytes, keys: list[WrappedKey]) -> Mapping[int, DataKey]:
        secret = Secret(file_key=FILE_KEY, origin="the key file of the test")
        return unlock(keys, secret, repository_id=repository_id, address="memory:")

    return Repository.open(repository.store, unlock=opened)


def facts(minutes: int = 0) -> RecordFacts:
    """Return what a command would say of a backup."""
    at = NOW + timedelta(minutes=minutes)
    return RecordFacts(at, at, 7_000_000_000_000_000_001, 1, Lsn(0x1000000), Lsn(0x2000000), 1, 180000)


def feed(writer: BackupWriter, tree: Tree, *, cut: int = 50_000) -> None:
    """Give a writer every file of a tree, in views of odd sizes that are overwritten afterwards."""
    writer.begin(Member(0, b"base", FileKind.DIRECTORY, mode=0o700))
    writer.end()
    writer.begin(Member(0, b"pg_tblspc", FileKind.DIRECTORY, mode=0o700))
    writer.end()
    writer.begin(Member(0, b"pg_tblspc/16385", FileKind.SYMLINK, mode=0o777, link=b"/srv/ts"))
    writer.end()
    for (part, path), content in tree.items():
        writer.begin(Member(part, path, FileKind.FILE, len(content), 0o600, 1_700_000_000))
        for at in range(0, len(content), cut):
            view = bytearray(content[at : at + cut])
            writer.data([memoryview(view)])
            view[:] = bytes(len(view))
        writer.end()


def back_up(
    repository: Repository, tree: Tree, *, parent: str | None = None, minutes: int = 0, threads: int = 2
) -> Outcome:
    """Back a tree up; return what it cost."""
    writer = repository.begin_backup(
        "shop",
        started=NOW + timedelta(minutes=minutes),
        parts=PARTS,
        parent=parent,
        settings=WriterSettings(threads=threads),
    )
    try:
        feed(writer, tree)
        writer.attach("backup_manifest", [b'{"PostgreSQL-Backup-Manifest-Version": 2}'])
        outcome = writer.commit(facts(minutes))
    except BaseException:
        writer.abandon()
        raise
    repository.end_intents()
    return outcome


def restore(repository: Repository, label: str) -> Tree:
    """Return all files of a backup, through its shares; each byte must come exactly once."""
    reader = repository.open_backup("shop", label)
    found: dict[tuple[int, bytes], bytearray] = {}
    seen: dict[tuple[int, bytes], int] = {}
    for row in reader.rows():
        if row.kind is FileKind.FILE:
            found[row.part, row.path] = bytearray(row.size)
            seen[row.part, row.path] = 0

    def deliver(row: FileRow, offset: int, view: memoryview) -> None:
        assert offset + len(view) <= row.size
        found[row.part, row.path][offset : offset + len(view)] = view
        seen[row.part, row.path] += len(view)

    for share in reader.shares():
        share.deliver(deliver)
    for row in reader.rows():
        if row.kind is FileKind.FILE:
            assert b"".join(reader.stream(row)) == found[row.part, row.path]
    assert seen == {key: len(content) for key, content in found.items()}
    return {key: bytes(content) for key, content in found.items()}
