"""Hold a backup while it is read: expire leaves it alone, or it says that it is too late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from polarvault.errors import RepositoryNotFound, StorageFailed, StoreForbidden
from polarvault.repository.catalogue.repository import Repository


@contextmanager
def reading(repository: Repository, command: str, cluster: str, *labels: str) -> Iterator[bool]:
    """Say that backups are read, then look for tombstones; RepositoryNotFound if one has expired.

    Yields False where nothing may be written: then nobody knows of the reader, and it only reads.
    """
    store = repository.store
    try:
        number = repository.intents.declare(command, cluster, label=labels[0] if labels else "", adopts=labels[1:])
    except StorageFailed:
        # A reader with rights to read alone, a full disk, a file system that is mounted read-only.
        yield False
        return
    try:
        expired = repository.expired_labels(cluster)
        for label in labels:
            if label in expired:
                raise RepositoryNotFound(
                    f"{cluster}@{label} in {store.address} has expired and is about to be removed",
                    hint=f"polarvault list {cluster}",
                )
        yield True
    finally:
        with suppress(StoreForbidden):
            repository.intents.end(number)
