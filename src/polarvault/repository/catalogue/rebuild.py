"""Make objects again that say what others hold: `refs` from the index, `generations` from records, maps from WAL.

Those are what can be made again. A record, a root and the chunks are the backup: get them from another copy. A damaged
object is removed only when what takes its place is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from polarvault.errors import IntegrityError, ObjectMissing, PolarvaultError, RepositoryNewer, RepositoryNotFound
from polarvault.model import limits
from polarvault.model.segment import WalSegment, is_segment_size
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.format.frame import DIGEST_BYTES, Kind, parse_header
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.format.record import BackupRecord
from polarvault.repository.moves.reading import read_moves
from polarvault.repository.reading.backup_reader import BackupReader
from polarvault.repository.reading.refs import read_refs
from polarvault.repository.writing.usage import Usage

if TYPE_CHECKING:
    from polarvault.repository.maps.stored import RepositoryMaps
    from polarvault.repository.wal.ranges import RepositoryWal

# A flipped bit can make an object look newer than the program.
_WRONG = (IntegrityError, RepositoryNewer)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """An object that was missing or damaged; problem: why it could not be made again, "" if it was."""

    name: str
    problem: str = ""


def rebuild(repository: Repository) -> Iterator[Rebuilt]:
    """Make again what is missing or damaged, and yield what came of each."""
    for cluster in repository.clusters():
        cluster_names = ClusterNames.of(cluster)
        wanted: dict[int, BackupRecord] = {}
        for label in repository.labels(cluster):
            try:
                record = repository.record(cluster, label)
            except (*_WRONG, ObjectMissing, RepositoryNotFound):
                pass  # `repo check` says it; refs may be had all the same.
            else:
                wanted[record.facts.system_identifier] = record
            name = cluster_names.backup(label, "refs")
            read = partial(read_refs, repository.store, repository.codec, cluster_names, label)
            yield from _made_again(repository, name, read, partial(_refs_object, repository, cluster_names, label))
        for system_identifier, record in wanted.items():
            name = cluster_names.generation(system_identifier)
            look = partial(repository.generation, cluster, system_identifier)
            yield from _made_again(repository, name, look, partial(_generation_object, repository, cluster, record))
        yield from _maps(repository, cluster)


def _maps(repository: Repository, cluster: str) -> Iterator[Rebuilt]:
    """Make maps again that are damaged; those that are missing are made by `wal map`."""
    # What WAL is decoded with takes a moment to import.
    from polarvault.repository.maps.making import make_map
    from polarvault.repository.maps.stored import maps_beside

    for system_identifier in repository.generations(cluster):
        try:
            wal = repository.wal_of(cluster, system_identifier)
        except (*_WRONG, ObjectMissing, RepositoryNotFound):
            continue  # `repo check` says it.
        maps = maps_beside(wal, repository, cluster)

        def made(segment: WalSegment, wal: RepositoryWal = wal, maps: RepositoryMaps = maps) -> Callable[[], None]:
            return partial(maps.put, segment, make_map(wal, segment))

        for timeline_id in maps.timelines():
            for segment, there in list(maps.stored(timeline_id)):
                yield from _made_again(repository, there.name, partial(maps.read, segment), partial(made, segment))


def _made_again(
    repository: Repository, name: str, read: Callable[[], object], make: Callable[[], Callable[[], None]]
) -> Iterator[Rebuilt]:
    """Call read; where that fails call make, remove the damaged object, and call what make has returned."""
    try:
        read()
    except (ObjectMissing, RepositoryNotFound, *_WRONG):
        pass
    else:
        return
    try:
        put = make()
        repository.store.delete(name)
        put()
    except PolarvaultError as problem:
        yield Rebuilt(name, problem.message)
    else:
        yield Rebuilt(name)


def _refs_object(repository: Repository, names: ClusterNames, label: str) -> Callable[[], None]:
    name = names.backup(label, "refs")
    rows = _refs(repository, names, label)
    moves = sorted(read_moves(repository.store, repository.codec, names.cluster).assumed_by(label))
    clear = {"cluster": names.cluster, "label": label, "packs": rows, "moves": moves}
    document = repository.codec.document(Kind.REFS, name, clear)
    return lambda: repository.store.put_new(name, [memoryview(part) for part in document])


def _generation_object(repository: Repository, cluster: str, record: BackupRecord) -> Callable[[], None]:
    facts, details = record.facts, record.facts.details
    wal, relation = details.get("wal_segment_bytes"), details.get("relation_segment_bytes")
    if type(wal) is not int or not is_segment_size(wal) or type(relation) is not int:
        raise IntegrityError(f"the record of {cluster}@{record.label} does not say how large segments are")
    shared, checksums = details.get("shared_storage") is True, details.get("data_checksums") is True
    generation = Generation(facts.system_identifier, facts.server_version, shared, wal, relation, checksums)
    return lambda: repository.ensure_generation(cluster, generation)


def _refs(repository: Repository, names: ClusterNames, label: str) -> list[list[object]]:
    usage = usage_of(repository.open_backup(names.cluster, label))
    rows: list[list[object]] = []
    for (owner, number), live in sorted(usage.live.items()):
        if owner != label:
            rows.append([owner, number, live])
            continue
        name = names.pack(owner, number)
        content = repository.store.get(name, most_bytes=limits.PARSED_MANIFEST_BYTES)
        repository.codec.open(name, [Kind.DATA_PACK, Kind.INDEX_PACK], content)
        end = len(content) - parse_header(name, content).trailer_bytes
        rows.append([owner, number, live, len(content), content[end : end + DIGEST_BYTES].hex()])
    # A writer puts its own first.
    return sorted(rows, key=lambda row: row[0] != label)


def usage_of(reader: BackupReader) -> Usage:
    """Add up which packs a backup uses, from its index."""
    usage = Usage()
    for chunk in reader.root.files:
        usage.add(chunk.ref)
    for row in reader.rows():
        if row.bundle is not None:
            usage.add(row.bundle, used=row.size, of=row.bundle.raw)
        for ref in row.tables:
            usage.add(ref)
            usage.add_table(reader.index.table(ref).table)
    return usage
