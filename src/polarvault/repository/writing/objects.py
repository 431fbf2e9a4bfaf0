"""The objects of a backup itself, beside its packs: manifest, root, refs, and last the record that makes it valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from polarvault.errors import IntegrityError
from polarvault.repository.chunks.writer import WrittenPack
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.frame import Buffer, Kind
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.format.record import RecordFacts, record_document
from polarvault.repository.writing.attachments import Attachments
from polarvault.storage.objects.store import ObjectStore

# A request for each pack: one after the other they would take as long as the backup.
_LOCKED_AT_ONCE = 8

# Label and number of a pack, and the bytes of it that are used.
LivePacks = Mapping[tuple[str, int], int]


class BackupObjects:
    """Writes them; the methods are called in their order. lock_s: how long the store is to keep everything, in seconds.

    moves: ids of the moves of chunks that the backup understands.
    """

    def __init__(
        self,
        store: ObjectStore,
        codec: Codec,
        names: ClusterNames,
        label: str,
        *,
        moves: Sequence[str],
        lock_s: int | None,
    ) -> None:
        self._store, self._codec, self._names, self._label = store, codec, names, label
        self._moves, self._lock_s = list(moves), lock_s
        self._identity = {"cluster": names.cluster, "label": label}

    def check_packs(self, written: Sequence[WrittenPack], live: LivePacks) -> None:
        """See that every pack that is used is there: one may have gone since the parent was read."""
        there = {(self._label, pack.number) for pack in written}
        for label in {label for label, _ in live} - {self._label}:
            names = {one.name for one in self._store.list_objects(self._names.packs(label))}
            there |= {place for place in live if place[0] == label and self._names.pack(*place) in names}
        missing = sorted(set(live) - there)
        if missing:
            raise IntegrityError(
                f'the pack "{self._names.pack(*missing[0])}", which this backup would build on, is missing',
                hint="see who removed it; take a full backup with --full",
            )

    def put_attachments(self, attachments: Attachments) -> None:
        """Write what was attached."""
        self._put("manifest", attachments.seal(self._codec, self._names.backup(self._label, "manifest")))

    def put_root(self, raw: bytes) -> None:
        """Write the root of the index."""
        self._put("root", self._document(Kind.ROOT, "root", self._identity, raw))

    def put_refs(self, written: Sequence[WrittenPack], live: LivePacks) -> None:
        """Write which packs the backup uses: its own with size and digest, and those that it builds on."""
        own = [
            [self._label, pack.number, live[self._label, pack.number], pack.size_bytes, pack.digest.hex()]
            for pack in written
        ]
        others = [[label, number, count] for (label, number), count in sorted(live.items()) if label != self._label]
        clear = {**self._identity, "packs": own + others, "moves": self._moves}
        self._put("refs", self._document(Kind.REFS, "refs", clear))

    def lock(self, live: LivePacks) -> None:
        """Have the store keep all that the backup is made of, what it builds on as well, before it is valid."""
        if self._lock_s is None:
            return
        until = datetime.now(UTC) + timedelta(seconds=self._lock_s)
        names = [self._names.pack(*place) for place in sorted(live)]
        names += [self._names.backup(self._label, part) for part in ("manifest", "root", "refs")]
        with ThreadPoolExecutor(_LOCKED_AT_ONCE, thread_name_prefix="lock") as pool:
            for _ in pool.map(lambda name: self._store.extend_retention(name, until), names):
                pass

    def put_record(
        self, facts: RecordFacts, root_hash: bytes, parent_label: str | None, counts: Mapping[str, int]
    ) -> None:
        """Make the backup valid; durable on return."""
        clear, sealed = record_document(self._identity, facts, root_hash, parent_label, counts)
        self._put("record", self._document(Kind.RECORD, "record", clear, sealed))

    def _document(self, kind: Kind, part: str, clear: Mapping[str, object], sealed: bytes = b"") -> list[Buffer]:
        return self._codec.document(kind, self._names.backup(self._label, part), clear, sealed)

    def _put(self, part: str, content: list[Buffer]) -> None:
        self._store.put_new(self._names.backup(self._label, part), [memoryview(one) for one in content])
