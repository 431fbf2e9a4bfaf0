"""What a repository holds, in a few numbers: clusters, backups, and what commands have said that they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from polarvault.errors import RepositoryNotFound
from polarvault.repository.catalogue.intents import Intent
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format import names
from polarvault.repository.format.names import ClusterNames
from polarvault.storage.objects.model import StoredObject

# Each is read by itself; a repository with more of them has other troubles, and says so.
_MOST_INTENTS = 1000


@dataclass(frozen=True, slots=True)
class ClusterSummary:
    """A cluster: labels of its backups, oldest first, and how many others have begun and have no record."""

    name: str
    labels: tuple[str, ...]
    unfinished: int


@dataclass(frozen=True, slots=True)
class RepositorySummary:
    """A repository; intents_left_out: how many more there are."""

    id: str
    address: str
    encrypted: bool
    clusters: tuple[ClusterSummary, ...]
    intents: tuple[Intent, ...]
    intents_left_out: int


def read_summary(repository: Repository) -> RepositorySummary:
    """Look at names, and at the intents; no backup is read."""
    found = repository.intents.stored()
    return RepositorySummary(
        repository.codec.repository_id.hex(),
        repository.store.address,
        bool(repository.codec.sealer.epoch),
        tuple(_cluster(repository, name) for name in repository.clusters()),
        tuple(_read(repository, found[:_MOST_INTENTS])),
        max(0, len(found) - _MOST_INTENTS),
    )


def _cluster(repository: Repository, name: str) -> ClusterSummary:
    cluster_names = ClusterNames.of(name)
    labels = repository.labels(name)
    begun = {
        word for folder in (cluster_names.backups, cluster_names.all_packs)
        for word in repository.store.list_folders(folder) if names.is_label(word)
    }  # fmt: skip
    # What has expired was finished, and only its packs are left.
    return ClusterSummary(name, tuple(labels), len(begun - set(labels) - repository.expired_labels(name)))


def _read(repository: Repository, stored: Sequence[StoredObject]) -> Iterator[Intent]:
    for one in stored:
        # One that has ended since it was listed is left out.
        with suppress(RepositoryNotFound):
            yield repository.intents.read(one.name.rpartition("/")[2])
