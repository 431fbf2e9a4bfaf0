"""What a repository holds, in a few numbers: clusters, backups, and what commands have said that they do."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.model import limits
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format import names
from polarvault.repository.format.documents import Fields
from polarvault.repository.format.frame import Kind
from polarvault.repository.format.names import ClusterNames

# Each is read by itself; a repository with more of them has other troubles, and says so.
_MOST_INTENTS = 1000


@dataclass(frozen=True, slots=True)
class ClusterSummary:
    """A cluster: labels of its backups, oldest first, and how many others have begun and have no record."""

    name: str
    labels: tuple[str, ...]
    unfinished: int


@dataclass(frozen=True, slots=True)
class Intent:
    """What a command says that it does: it runs, or was killed."""

    id: str
    command: str
    cluster: str
    label: str
    started: str
    host: str
    pid: int


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
    found = [one.name for one in repository.store.list_objects(names.INTENTS)]
    return RepositorySummary(
        repository.codec.repository_id.hex(),
        repository.store.address,
        bool(repository.codec.sealer.epoch),
        tuple(_cluster(repository, name) for name in repository.clusters()),
        tuple(_intent(repository, name) for name in found[:_MOST_INTENTS]),
        max(0, len(found) - _MOST_INTENTS),
    )


def _cluster(repository: Repository, name: str) -> ClusterSummary:
    cluster_names = ClusterNames.of(name)
    labels = repository.labels(name)
    begun = {
        word for folder in (cluster_names.backups, cluster_names.all_packs)
        for word in repository.store.list_folders(folder) if names.is_label(word)
    }  # fmt: skip
    return ClusterSummary(name, tuple(labels), len(begun - set(labels)))


def _intent(repository: Repository, name: str) -> Intent:
    content = repository.store.get(name, most_bytes=limits.REPOSITORY_JSON_BYTES)
    fields = Fields(repository.codec.read_document(Kind.INTENT, name, content).clear, f'"{name}"')
    return Intent(
        name.rpartition("/")[2],
        fields.text("command"),
        fields.text("cluster"),
        fields.text("label"),
        fields.text("started"),
        fields.text("host"),
        fields.number("pid"),
    )
