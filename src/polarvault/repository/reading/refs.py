"""Which packs a backup uses, as `refs` says: enough to expire, copy and count, without the index and without a key."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.errors import IntegrityError, ObjectMissing, RepositoryNewer
from polarvault.model import limits
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.documents import Fields
from polarvault.repository.format.frame import DIGEST_BYTES, Kind
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.moves.packs import PackName, known_moves
from polarvault.repository.moves.reading import FoundMoves
from polarvault.storage.objects.store import ObjectStore


@dataclass(frozen=True, slots=True)
class UsedPack:
    """A pack that a backup uses; size and digest only of those that it wrote."""

    label: str
    number: int
    live_bytes: int
    size_bytes: int | None
    digest: bytes | None


@dataclass(frozen=True, slots=True)
class Refs:
    """What `refs` says. moves: ids of objects of moves that the backup understands since it was written."""

    packs: list[UsedPack]
    moves: frozenset[str] = frozenset()

    @property
    def named(self) -> list[PackName]:
        """The packs as they are called."""
        return [(one.label, one.number) for one in self.packs]


def understood_moves(
    store: ObjectStore, codec: Codec, names: ClusterNames, label: str, moves: FoundMoves
) -> frozenset[str]:
    """Return the ids of the moves that a backup understands since it was written, also where its `refs` is lost."""
    if not moves.moves:
        return frozenset()
    try:
        return read_refs(store, codec, names, label).moves
    except (IntegrityError, ObjectMissing, RepositoryNewer):
        return moves.assumed_by(label)


def read_refs(store: ObjectStore, codec: Codec, names: ClusterNames, label: str) -> Refs:
    """Return which packs a backup uses; no key is needed."""
    name = names.backup(label, "refs")
    document = codec.read_document(Kind.REFS, name, store.get(name, most_bytes=limits.REPOSITORY_JSON_BYTES))
    found = []
    clear = Fields(document.clear, f'"{name}"')
    for row in clear.items("packs"):
        values = row if isinstance(row, list) else []
        keys = ("label", "number", "live", "size", "digest")
        fields = Fields(dict(zip(keys, values, strict=False)), f'a pack in "{name}"')
        own = len(values) == len(keys)
        found.append(
            UsedPack(
                fields.text("label"),
                fields.number("number", most=999_999),
                fields.number("live"),
                fields.number("size") if own else None,
                fields.hexadecimal("digest", DIGEST_BYTES) if own else None,
            )
        )
    return Refs(found, known_moves(clear))
