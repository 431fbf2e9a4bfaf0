"""Make `refs` objects again from the index: which packs a backup uses, and of its own sizes and hashes."""

from __future__ import annotations

from collections.abc import Iterator

from polarvault.errors import IntegrityError, ObjectMissing, RepositoryNewer
from polarvault.model import limits
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.frame import DIGEST_BYTES, Kind, parse_header
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.reading.backup_reader import BackupReader
from polarvault.repository.reading.refs import read_refs
from polarvault.repository.writing.usage import Usage


def rebuild_refs(repository: Repository) -> Iterator[str]:
    """Yield the names of the objects that were made again; a damaged one is removed first."""
    for cluster in repository.clusters():
        cluster_names = ClusterNames.of(cluster)
        for label in repository.labels(cluster):
            name = cluster_names.backup(label, "refs")
            try:
                read_refs(repository.store, repository.codec, cluster_names, label)
                continue
            except ObjectMissing:
                pass
            except (IntegrityError, RepositoryNewer):
                repository.store.delete(name)
            rows = _refs(repository, cluster_names, label)
            document = repository.codec.document(
                Kind.REFS, name, {"cluster": cluster, "label": label, "packs": rows}
            )  # fmt: skip
            repository.store.put_new(name, [memoryview(part) for part in document])
            yield name


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
