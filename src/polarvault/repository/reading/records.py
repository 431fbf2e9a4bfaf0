"""Read the record of a backup, which says that there is one. `list` needs no more: nothing heavy is imported."""

from __future__ import annotations

from polarvault.errors import ObjectDamaged, ObjectMissing, RepositoryNotFound
from polarvault.model import limits
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.frame import Kind
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.format.record import BackupRecord, parse_record
from polarvault.storage.objects.store import ObjectStore


def read_record(store: ObjectStore, codec: Codec, names: ClusterNames, label: str) -> BackupRecord:
    """Return the record of a backup; RepositoryNotFound if there is none: then the backup is not there."""
    name = names.backup(label, "record")
    try:
        content = store.get(name, most_bytes=limits.REPOSITORY_JSON_BYTES)
    except ObjectMissing:
        raise RepositoryNotFound(
            f"there is no backup {label} of {names.cluster} in {store.address}",
            hint=f"polarvault list {names.cluster}",
        ) from None
    document = codec.read_document(Kind.RECORD, name, content)
    record = parse_record(document.clear, document.sealed, f'"{name}"')
    if (record.cluster, record.label) != (names.cluster, label):
        raise ObjectDamaged(f'"{name}" is the record of another backup: {record.cluster}, {record.label}')
    return record
