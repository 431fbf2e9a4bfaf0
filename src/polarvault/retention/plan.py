"""What goes when some backups are kept: packs, WAL, and what is left of earlier removals. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from polarvault.model.lsn import Lsn
from polarvault.repository.moves.packs import Moves, PackName
from polarvault.repository.moves.reading import FoundMoves
from polarvault.repository.reading.refs import Refs
from polarvault.repository.wal.ranges import StoredRange


@dataclass(frozen=True, slots=True)
class StoredPack:
    """A pack as the store lists it."""

    label: str
    number: int
    size_bytes: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class WalNeed:
    """WAL that makes one backup consistent; with `onward` all from its start on. rank: of its system identifier."""

    rank: int
    system_identifier: int
    timeline_id: int
    start_lsn: Lsn
    stop_lsn: Lsn
    onward: bool


def packs_that_go(
    packs: Iterable[StoredPack], used: Set[PackName], labels_in_use: Set[str], not_after: datetime
) -> list[StoredPack]:
    """Return the packs that nobody refers to, and that are old enough for nobody to be about to.

    labels_in_use: of backups that are written now or whose leftovers are adopted: all of their packs count as used.
    """
    return [
        pack
        for pack in packs
        if (pack.label, pack.number) not in used and pack.label not in labels_in_use and pack.modified <= not_after
    ]


def is_wal_needed(one: StoredRange, system_identifier: int, rank: int, needs: Sequence[WalNeed]) -> bool:
    """Tell whether a range of WAL, of a system identifier, belongs to what is kept; without needs everything does."""
    if not needs:
        return True
    size = one.segment.size_bytes
    for need in needs:
        begin = need.start_lsn - need.start_lsn % size
        if need.onward and rank > need.rank:
            return True
        if system_identifier != need.system_identifier:
            continue
        if need.onward and one.last > begin:
            # On whatever timeline: which of them leads on is not to be decided here.
            return True
        if one.segment.timeline_id == need.timeline_id and one.last > begin and one.first < need.stop_lsn:
            return True
    return False


def used_packs(
    refs: Mapping[str, Refs], moves: FoundMoves, there: Set[PackName], is_settled: Callable[[Moves], bool]
) -> frozenset[PackName]:
    """Return all packs that backups need; there: those that exist."""
    found: set[PackName] = set()
    for label, of in refs.items():
        found |= moves.followed_by(label, of.moves, there.__contains__).needed(of.named, is_settled=is_settled)
    return frozenset(found)


def replaced_moves(
    moves: Sequence[Moves], refs: Mapping[str, Refs], is_settled: Callable[[Moves], bool]
) -> list[Moves]:
    """Return the objects of moves of which another one has all that any of the recorded backups may need."""
    replaced = {
        number
        for one in moves
        if one.replaces and is_settled(one)
        and all(label in one.considered or one.id in of.moves for label, of in refs.items())
        for number in one.replaces
    }  # fmt: skip
    return [one for one in moves if one.id in replaced]
