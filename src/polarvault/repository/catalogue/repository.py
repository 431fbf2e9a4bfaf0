"""Make and open repositories; find clusters and backups; begin a backup."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from polarvault.errors import (
    ObjectDamaged,
    ObjectDiffers,
    ObjectMissing,
    RepositoryMismatch,
    RepositoryNewer,
    RepositoryNotFound,
    TargetNotEmpty,
    UsageError,
)
from polarvault.model import limits
from polarvault.model.dataclass import dataclass
from polarvault.model.names import shown_name
from polarvault.model.segment import is_segment_size
from polarvault.repository.catalogue.intents import Intents
from polarvault.repository.catalogue.stored_keys import StoredKeys
from polarvault.repository.format import names
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.documents import Fields, encode_json, parse_json
from polarvault.repository.format.frame import Header, Kind, parse_header
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.format.sealing import Plain, Sealer
from polarvault.repository.wal.ranges import RepositoryWal
from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.write_once import prove_write_once

if TYPE_CHECKING:
    from datetime import datetime

    # What reads and writes backups takes numpy, and keys take cryptography: `list`, `wal fetch` and `wal push` must not
    # wait for them where they are not needed.
    from polarvault.repository.format.record import BackupRecord
    from polarvault.repository.index.root import Part
    from polarvault.repository.keys.sealing import DataKey
    from polarvault.repository.keys.wrapped import WrappedKey
    from polarvault.repository.reading.backup_reader import BackupReader, Watch
    from polarvault.repository.writing.backup_writer import BackupWriter, WriterSettings

    # Given the repository's id and its wrapped keys, returns the data keys by epoch.
    Unlock = Callable[[bytes, Sequence[WrappedKey]], Mapping[int, DataKey]]

_CIPHER = "AES-256-GCM"
PAGE_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Generation:
    """A cluster under one system identifier: pg_upgrade and initdb begin a new one."""

    system_identifier: int
    server_version: int
    shared_storage: bool
    wal_segment_bytes: int
    relation_segment_bytes: int
    data_checksums: bool


class Repository:
    """An open repository."""

    def __init__(self, store: ObjectStore, codec: Codec, page_key: bytes, random: Callable[[int], bytes]) -> None:
        self.store = store
        self.codec = codec
        self.page_key = page_key
        self._random = random
        self.intents = Intents(store, codec, random)
        self.begun_intents: list[str] = []
        """Of backups that were begun here and have not ended."""
        self.lock_s: int | None = None
        """For how long what a new backup is made of must not be removable, by the store's object lock."""

    # Making and opening

    @classmethod
    def create(
        cls,
        store: ObjectStore,
        *,
        now: datetime,
        data_key: DataKey | None = None,
        keys: Callable[[bytes], Iterable[WrappedKey]] = lambda repository_id: (),
        random: Callable[[int], bytes] = os.urandom,
    ) -> Repository:
        """Make a repository in an empty store, which must refuse to replace objects. `polarvault.json` comes last.

        Encrypted: data_key, and keys, which wraps it for each recipient.
        """
        from datetime import UTC

        from polarvault.repository.format.record import TIME

        if _is_there(store):
            raise TargetNotEmpty(f"{store.address} holds a repository already", hint="polarvault repo info")
        prove_write_once(store, f"probe-{random(8).hex()}")
        repository_id = random(16)
        sealer: Sealer = Plain()
        if data_key is not None:
            from polarvault.repository.format.sealed import Sealed

            sealer = Sealed({data_key.epoch: data_key}, repository_id=repository_id, random=random)
        codec = Codec(repository_id, sealer)
        page_key = random(PAGE_KEY_BYTES)
        stored = StoredKeys(store, repository_id, codec)
        for key in keys(repository_id):
            stored.write(key.key_id, key.document())
        clear: dict[str, object] = {"created": now.astimezone(UTC).strftime(TIME)}
        secret = {"page_key": page_key.hex()}
        if data_key is None:
            content = codec.document(Kind.REPOSITORY, names.REPOSITORY, {**clear, "cipher": None, **secret})
        else:
            content = codec.document(
                Kind.REPOSITORY, names.REPOSITORY, {**clear, "cipher": _CIPHER}, encode_json(secret)
            )
        try:
            _put(store, names.REPOSITORY, content)
        except ObjectDiffers as problem:
            raise TargetNotEmpty(
                f"{store.address} became a repository at the same time", hint="polarvault repo info"
            ) from problem
        return cls(store, codec, page_key, random)

    @classmethod
    def open(
        cls,
        store: ObjectStore,
        *,
        expected_id: bytes | None = None,
        encrypted: bool | None = None,
        unlock: Unlock | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> Repository:
        """Open a repository; refuse another one than is expected, and a plain one where encryption is."""
        header, content = read_identity(store, expected_id=expected_id, encrypted=encrypted)
        sealer: Sealer = Plain()
        if header.epoch:
            if unlock is None:
                raise UsageError(f"{store.address} is encrypted, and no key was given", hint="name its key")
            from polarvault.repository.format.sealed import Sealed
            from polarvault.repository.keys.ring import KeyRing

            ring = KeyRing(StoredKeys(store, header.repository_id), header.repository_id, store.address)
            opener = partial(unlock, header.repository_id)
            keys = ring.unlock_with(opener)
            sealer = Sealed(keys, repository_id=header.repository_id, random=random)
        codec = Codec(header.repository_id, sealer)
        document = codec.read_document(Kind.REPOSITORY, names.REPOSITORY, content)
        what = f'"{names.REPOSITORY}"'
        secret = parse_json(document.sealed, what) if header.epoch else document.clear
        features = sorted(one.name for one in store.list_objects(names.FEATURES))
        if features:
            raise RepositoryNewer(f"{store.address} needs {features[0]}, which this program does not know")
        return cls(store, codec, Fields(secret, what).hexadecimal("page_key", PAGE_KEY_BYTES), random)

    def damaged_keys(self) -> list[str]:
        """Say what is wrong with the objects that hold keys; one that is damaged keeps nobody out who has another."""
        if not self.codec.sealer.epoch:
            return []
        return list(StoredKeys(self.store, self.codec.repository_id, self.codec).damaged())

    # What is there

    def clusters(self) -> list[str]:
        """Return the names of the clusters."""
        return [word for word in self.store.list_folders(names.CLUSTERS) if names.is_word(word)]

    def labels(self, cluster: str) -> list[str]:
        """Return the labels of the backups that have a record, oldest start first."""
        return sorted(self._recorded(cluster))

    def _recorded(self, cluster: str) -> dict[str, datetime]:
        """Return the labels with a record, and when the store got it, by its own clock."""
        folder = ClusterNames.of(cluster).backups
        found = {}
        for one in self.store.list_objects(folder):
            label, *rest = one.name.removeprefix(f"{folder}/").split("/")
            if rest == ["record"] and names.is_label(label):
                found[label] = one.modified
        return found

    def expired_labels(self, cluster: str) -> frozenset[str]:
        """Return the labels that have a tombstone: no parents any more, and about to be removed."""
        from polarvault.repository.states.states import States, standings

        found = standings(States(self, cluster).listed())
        return frozenset(label for label, standing in found.items() if standing.expired)

    def living_labels(self, cluster: str) -> list[str]:
        """Return the labels of the backups that have a record and no tombstone, oldest start first."""
        labels = self.labels(cluster)
        expired = self.expired_labels(cluster) if labels else frozenset()
        return [label for label in labels if label not in expired]

    def records(self, cluster: str) -> list[BackupRecord]:
        """Return the records of all backups that are not expired, oldest start first."""
        return [self.record(cluster, label) for label in self.living_labels(cluster)]

    def record(self, cluster: str, label: str) -> BackupRecord:
        """Return the record of a backup by its whole label."""
        from polarvault.repository.reading.records import read_record

        return read_record(self.store, self.codec, ClusterNames.of(cluster), names.check_label(label))

    def find_label(self, cluster: str, word: str) -> str:
        """Return the label that a user means: one itself, the beginning of just one, ``latest``, or a time.

        A time (20261125, 20261125T22) is the beginning of labels; if several begin so, the word must be longer.
        """
        recorded = self._recorded(cluster)
        expired = self.expired_labels(cluster) if recorded else frozenset()
        labels = sorted(recorded.keys() - expired)
        if not labels:
            others = [name for name in self.clusters() if name != cluster]
            raise RepositoryNotFound(
                f"there is no backup of {cluster} in {self.store.address}",
                hint=f"it has backups of: {', '.join(others[:5])}"
                if others
                else f"take one: polarvault backup {cluster}",
            )
        if word == "latest":
            from polarvault.repository.catalogue.latest import latest_label

            living = {label: recorded[label] for label in labels}
            return latest_label(living, lambda label: self.record(cluster, label))
        found = [label for label in labels if label.startswith(word)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(
                f"{len(found)} backups of {cluster} begin with {shown_name(word)}: {', '.join(found[:3])} ...",
                hint=f"write more of the label: polarvault list {cluster}",
            )
        raise RepositoryNotFound(
            f"no backup of {cluster} begins with {shown_name(word)}; it has {len(labels)}",
            hint=f"polarvault list {cluster}",
        )

    def open_backup(self, cluster: str, label: str, *, watch: Watch | None = None) -> BackupReader:
        """Open a backup by its whole label. watch: see BackupReader.open."""
        from polarvault.repository.reading.backup_reader import BackupReader

        return BackupReader.open(
            self.store, self.codec, ClusterNames.of(cluster), names.check_label(label), watch=watch
        )

    def ensure_generation(self, cluster: str, generation: Generation) -> None:
        """Note the cluster's system identifier and what does not change with it; RepositoryMismatch if it did."""
        name = ClusterNames.of(cluster).generation(generation.system_identifier)
        clear = {
            "system_identifier": str(generation.system_identifier),
            "server_version": generation.server_version,
            "shared_storage": generation.shared_storage,
            "page_bytes": 8192,
            "wal_segment_bytes": generation.wal_segment_bytes,
            "relation_segment_bytes": generation.relation_segment_bytes,
            "data_checksums": generation.data_checksums,
        }
        try:
            there = self.store.get(name, most_bytes=limits.REPOSITORY_JSON_BYTES)
        except ObjectMissing:
            try:
                _put(self.store, name, self.codec.document(Kind.GENERATION, name, clear))
                return
            except ObjectDiffers:
                # Another writer began the cluster at the same moment; sealed, the same is never the same bytes.
                there = self.store.get(name, most_bytes=limits.REPOSITORY_JSON_BYTES)
        known = self.codec.read_document(Kind.GENERATION, name, there).clear
        for fixed in ("wal_segment_bytes", "relation_segment_bytes", "shared_storage"):
            if known.get(fixed) != clear[fixed]:
                raise RepositoryMismatch(
                    f"{cluster} has {fixed} {clear[fixed]}, and {name} in {self.store.address} says {known.get(fixed)}",
                    hint="two clusters with one name? give this one another name in the repository",
                )

    def generations(self, cluster: str) -> list[int]:
        """Return the system identifiers that a cluster has had."""
        folder = ClusterNames.of(cluster).generations
        words = [one.name.removeprefix(f"{folder}/") for one in self.store.list_objects(folder)]
        return sorted(int(word) for word in words if word.isascii() and word.isdecimal() and len(word) <= 20)

    def generation(self, cluster: str, system_identifier: int) -> Generation:
        """Return what does not change with a system identifier; RepositoryNotFound if nothing of it is here."""
        name = ClusterNames.of(cluster).generation(system_identifier)
        try:
            content = self.store.get(name, most_bytes=limits.REPOSITORY_JSON_BYTES)
        except ObjectMissing:
            known = ", ".join(map(str, self.generations(cluster)))
            raise RepositoryNotFound(
                f"{self.store.address} holds nothing of {cluster} with the system identifier {system_identifier}",
                hint=f"it knows: {known}" if known else "nothing of that cluster is there",
            ) from None
        fields = Fields(self.codec.read_document(Kind.GENERATION, name, content).clear, f'"{name}"')
        return Generation(
            system_identifier,
            fields.number("server_version"),
            fields.flag("shared_storage"),
            fields.number("wal_segment_bytes"),
            fields.number("relation_segment_bytes"),
            fields.flag("data_checksums"),
        )

    def wal_of(self, cluster: str, system_identifier: int | None = None) -> RepositoryWal:
        """Return the WAL of a cluster that is here; None: of the only system identifier that there is."""
        if system_identifier is None:
            known = self.generations(cluster)
            if not known:
                raise RepositoryNotFound(
                    f"{self.store.address} holds nothing of a cluster {cluster}",
                    hint="polarvault list shows what is there",
                )
            if len(known) > 1:
                raise UsageError(
                    f"{cluster} has had {len(known)} system identifiers: {', '.join(map(str, known))}",
                    hint="name one: --system-identifier N",
                )
            system_identifier = known[0]
        found = self.generation(cluster, system_identifier)
        if not is_segment_size(found.wal_segment_bytes):
            raise ObjectDamaged(f"{found.wal_segment_bytes} is no size of WAL segments, as {cluster} is said to have")
        return self.wal(cluster, system_identifier, found.wal_segment_bytes)

    def wal(self, cluster: str, system_identifier: int, segment_bytes: int) -> RepositoryWal:
        """Return the WAL of a cluster under one system identifier."""
        return RepositoryWal(
            self.store,
            self.codec,
            ClusterNames.of(cluster),
            system_identifier=system_identifier,
            segment_bytes=segment_bytes,
        )

    # A new backup

    def new_label(self, started: datetime) -> str:
        """Return a label for a backup that begins."""
        return names.make_label(started, self._random)

    def begin_backup(
        self,
        cluster: str,
        *,
        started: datetime,
        parts: Sequence[Part],
        parent: str | None = None,
        settings: WriterSettings | None = None,
        label: str | None = None,
    ) -> BackupWriter:
        """Say what is about to be done, take stock of what killed backups left, and return what writes the backup.

        What a verification has found to be damaged is no evidence: it is stored anew. label: the one that the backup
        has in other places, None for a new one.
        """
        from polarvault.repository.catalogue.beginning import begin_backup

        return begin_backup(self, cluster, started=started, parts=parts, parent=parent, settings=settings, label=label)

    def end_intents(self) -> None:
        """Take back what this object declared; a store that forbids removing keeps it."""
        for number in self.begun_intents:
            self.intents.end(number)
        self.begun_intents = []


def read_identity(store: ObjectStore, *, expected_id: bytes | None, encrypted: bool | None) -> tuple[Header, bytes]:
    """Return header and content of `polarvault.json`; refuse another repository than is expected."""
    try:
        content = store.get(names.REPOSITORY, most_bytes=limits.REPOSITORY_JSON_BYTES)
    except ObjectMissing:
        raise RepositoryNotFound(
            f"there is no repository in {store.address}", hint="check the address; `polarvault repo init` makes one"
        ) from None
    header = parse_header(names.REPOSITORY, content)
    if expected_id is not None and header.repository_id != expected_id:
        raise RepositoryMismatch(
            f"{store.address} is the repository {header.repository_id.hex()}, and {expected_id.hex()} is expected",
            hint="check the address and the id in the configuration; find out who put another one there",
        )
    if encrypted is not None and encrypted != bool(header.epoch):
        raise RepositoryMismatch(
            f"{store.address} is {'not ' * (not header.epoch)}encrypted, and the opposite is expected",
            hint="find out who put it there; say in the configuration what it must be",
        )
    return header, content


def _is_there(store: ObjectStore) -> bool:
    try:
        store.stat(names.REPOSITORY)
    except ObjectMissing:
        return False
    return True


def _put(store: ObjectStore, name: str, parts: Sequence[bytes | bytearray | memoryview]) -> None:
    store.put_new(name, [memoryview(part) for part in parts])
