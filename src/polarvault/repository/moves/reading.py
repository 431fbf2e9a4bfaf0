"""Find and read the objects of moves of a cluster. No numpy here, but for chunks, and only where some were moved.

Whoever reads a backup has said so before (its intent), and looks here afterwards: a pack that it finds by what was true
before a move stays until it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polarvault.errors import IntegrityError, ObjectMissing, RepositoryNewer
from polarvault.model import limits
from polarvault.repository.format import names
from polarvault.repository.format.codec import Codec, Document
from polarvault.repository.format.documents import Fields
from polarvault.repository.format.frame import Kind
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.moves.packs import Followed, Moves, PackName, parse_moves
from polarvault.storage.objects.store import ObjectStore

if TYPE_CHECKING:
    from polarvault.repository.moves.chunks import MovedChunks

_WRONG = (IntegrityError, RepositoryNewer)


@dataclass(slots=True)
class FoundMoves:
    """The moves of a cluster; problems: objects that cannot be read, by name and why."""

    moves: list[Moves] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)

    @property
    def labels(self) -> frozenset[str]:
        """The labels of the packs that compaction wrote: they are nobody's leftovers."""
        return frozenset(one.label for one in self.moves)

    def understood_by(self, label: str, known: frozenset[str]) -> set[str]:
        """Return the ids of the objects that a backup understands, and what builds on it; known: what `refs` says."""
        return {one.id for one in self.moves if label in one.considered or one.id in known}

    def assumed_by(self, label: str) -> frozenset[str]:
        """Return what a backup understands of which nobody can say it any more, because its `refs` is lost.

        What is moved is the same wherever it is read, so that following too much does no harm. Not assumed is that an
        object has all of those that it replaces, as long as these are there.
        """
        there = {one.id for one in self.moves}
        return frozenset(one.id for one in self.moves if label in one.considered or not one.replaces & there)

    def followed_by(self, label: str, known: frozenset[str], exists: Callable[[PackName], bool]) -> Followed:
        """Return the moves as a backup follows them."""
        return Followed(label, known, self.moves, exists)

    def sizes(self) -> Iterator[tuple[tuple[str, int], tuple[int, bytes]]]:
        """Yield the packs that compaction wrote, with size and hash."""
        for one in self.moves:
            yield from one.written.items()


def read_moves(store: ObjectStore, codec: Codec, cluster: str) -> FoundMoves:
    """Return the moves of a cluster, in the order of their ids; one that was replaced meanwhile is left out."""
    found = FoundMoves()
    for stored in sorted(store.list_objects(names.MOVES), key=lambda one: one.name):
        number = stored.name.rpartition("/")[2]
        try:
            content = store.get(stored.name, most_bytes=limits.ROOT_BYTES)
            document = codec.read_document(Kind.MOVES, stored.name, content, most_bytes=limits.ROOT_BYTES)
            what = f'"{stored.name}"'
            moves = parse_moves(number, stored.modified, Fields(document.clear, what), what)
        except ObjectMissing:
            continue
        except _WRONG as problem:
            found.problems.append(problem.message)
            continue
        if moves.cluster == cluster:
            found.moves.append(moves)
            found.documents.append(document)
    return found


def moved_chunks(found: FoundMoves, followed: Followed) -> MovedChunks:
    """Return where the chunks of a backup are; raise ObjectDamaged for an object that says what cannot be."""
    return _chunks(found, lambda moves: {pack for pack in moves.packs if not followed.leads(moves, pack)})


def _chunks(found: FoundMoves, blocked: Callable[[Moves], Set[PackName]]) -> MovedChunks:
    from polarvault.repository.moves.chunks import MovedChunks

    replaced = frozenset[str]().union(*(one.replaces for one in found.moves))
    # What replaces others counts for more than they do: it names the last place of each chunk.
    named = sorted(zip(found.moves, found.documents, strict=True), key=lambda one: one[0].id not in replaced)
    return MovedChunks([(document.sealed, f'"{names.MOVES}/{moves.id}"', blocked(moves)) for moves, document in named])


def all_moved_chunks(found: FoundMoves) -> MovedChunks:
    """Return where chunks are by all moves, whoever follows them."""
    return _chunks(found, lambda moves: frozenset())


def existing(store: ObjectStore, cluster: ClusterNames) -> Callable[[PackName], bool]:
    """Return what tells whether a pack is there; a label's packs are listed when it is first asked about one."""
    there: dict[str, set[str]] = {}

    def exists(pack: PackName) -> bool:
        if pack[0] not in there:
            there[pack[0]] = {one.name for one in store.list_objects(cluster.packs(pack[0]))}
        return cluster.pack(*pack) in there[pack[0]]

    return exists
