"""Compaction: what lives in packs that are mostly dead is written anew, so that they may go.

Expiring removes whole packs; one of which the last ten backups use a twentieth stays whole. Here such packs are found
from `refs`, what lives in them from the indexes of all backups that use them, and their living chunks are moved. Old
packs are removed by a later run, when the move is older than the safety time and whoever began before it has ended.

Moves that gather are merged into one object, so that a reader has few to read; an entry is dropped when no index names
its old place any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from polarvault.errors import PolarvaultError
from polarvault.repository.catalogue.intents import EXPIRE
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.moves.packs import Moves, PackName
from polarvault.repository.moves.reading import FoundMoves, all_moved_chunks
from polarvault.repository.reading.refs import Refs
from polarvault.retention.plan import StoredPack

if TYPE_CHECKING:
    from polarvault.repository.compaction.live import LiveChunks
    from polarvault.repository.format.chunks import ChunkRef
    from polarvault.repository.moves.chunks import Place

# What one run moves at most: 64 GiB of packs, of which living chunks are known in memory, some 300 bytes each.
_MOST_PACKS = 4096
_MERGED_MOVES = 16


@dataclass(slots=True)
class Compacted:
    """What was moved, or would be: packs whose living bytes are elsewhere now, so that a later run removes them.

    left: packs that another run has to move; problem: why nothing or not everything was moved.
    """

    packs: int = 0
    pack_bytes: int = 0
    moved_bytes: int = 0
    left: int = 0
    problem: str = ""

    @property
    def freed_bytes(self) -> int:
        """How much less the repository takes when the old packs are gone."""
        return self.pack_bytes - self.moved_bytes


@dataclass(frozen=True, slots=True)
class Compaction:
    """One run. refs: of all backups that are kept or used; below: the part of a pack that lives, under which it goes.

    packs: those that are there; used_labels: of commands that run, whose packs nobody else understands yet.
    """

    repository: Repository
    cluster: str
    packs: Sequence[StoredPack]
    refs: Mapping[str, Refs]
    moves: FoundMoves
    used_labels: Set[str]
    is_settled: Callable[[Moves], bool]
    below: float

    def run(self, *, dry_run: bool) -> Compacted:
        """Move what is worth it; what goes wrong is said and harms nothing."""
        result = Compacted()
        if self.moves.problems:
            result.problem = self.moves.problems[0]
            return result
        candidates = self._candidates()
        result.left = max(0, len(candidates) - _MOST_PACKS)
        candidates = candidates[:_MOST_PACKS]
        if not candidates:
            return result
        try:
            self._compact({(pack.label, pack.number): pack for pack in candidates}, result, dry_run=dry_run)
        except PolarvaultError as problem:
            result.problem = problem.message
        return result

    def _users(self) -> dict[PackName, set[str]]:
        there = {(pack.label, pack.number) for pack in self.packs}
        users: dict[PackName, set[str]] = {}
        for label, refs in self.refs.items():
            for pack in self.moves.followed_by(label, refs.moves, there.__contains__).needed(refs.named):
                users.setdefault(pack, set()).add(label)
        return users

    def _candidates(self) -> list[StoredPack]:
        """Return packs that may be mostly dead, the most promising first.

        `refs` tells how much one backup uses; all together use at least as much as the one that uses most.
        """
        least: dict[PackName, int] = {}
        for refs in self.refs.values():
            for one in refs.packs:
                pack = one.label, one.number
                least[pack] = max(least.get(pack, 0), one.live_bytes)
        considered: dict[PackName, set[str]] = {}
        for moves in self.moves.moves:
            for targets in moves.packs.values():
                for target in targets:
                    considered.setdefault(target, set()).update(moves.considered)
        users = self._users()
        found = []
        for stored in self.packs:
            pack = stored.label, stored.number
            if pack not in users or stored.label in self.used_labels:
                continue
            # Of what was moved no `refs` tells how much lives: it is looked at when a backup that used it is gone.
            if pack in considered and considered[pack] <= self.refs.keys():
                continue
            if least.get(pack, 0) < self.below * stored.size_bytes:
                found.append(stored)
        return sorted(found, key=lambda one: least.get((one.label, one.number), 0) / one.size_bytes)

    def _compact(self, candidates: Mapping[PackName, StoredPack], result: Compacted, *, dry_run: bool) -> None:
        # What finds chunks takes numpy.
        from polarvault.repository.compaction.live import LiveChunks

        users = self._users()
        settled = [one for one in self.moves.moves if self.is_settled(one)]
        merged = settled if len(settled) >= _MERGED_MOVES else []
        there = {(pack.label, pack.number): pack for pack in self.packs}
        old_packs = {pack for one in merged for pack in one.packs}
        live = LiveChunks(candidates.keys() | old_packs, old_packs=old_packs)
        labels = set(self.refs) if merged else {label for pack in candidates for label in users[pack]}
        for label in sorted(labels):
            live.add_backup(self.repository, self.cluster, label)
        # Chunks that a backup has in an old pack although others of it were moved: now all backups are to find them.
        stay = {place[:2] for place, ref in live.named.items() if ref.place == place}
        going = {}
        for pack in candidates.keys() | stay:
            living = sum(ref.stored for ref in live.chunks[pack].values())
            if pack in there and (pack in stay or living < self.below * there[pack].size_bytes):
                going[pack] = there[pack]
                result.packs += 1
                result.pack_bytes += there[pack].size_bytes
                result.moved_bytes += living
        if going and not dry_run:
            self._move(going, live, merged, stay, result)

    def _move(
        self, going: Mapping[PackName, StoredPack], live: LiveChunks, merged: Sequence[Moves], stay: Set[PackName],
        result: Compacted,
    ) -> None:  # fmt: skip
        from polarvault.repository.compaction.mover import UNREADABLE, Mover

        label = self.repository.new_label(datetime.now(UTC))
        # Who expires at the same time finds packs without a record: the intent says whose they are.
        intent = self.repository.intents.declare(EXPIRE, self.cluster, label=label)
        mover = Mover(self.repository, self.cluster, label)
        try:
            for pack, stored in sorted(going.items()):
                chunks = live.chunks[pack]
                try:
                    mover.move(pack, stored.size_bytes, chunks.values())
                except UNREADABLE as problem:
                    # It stays where it is, for the verification that says whose it is.
                    result.problem = problem.message
                    result.packs -= 1
                    result.pack_bytes -= stored.size_bytes
                    result.moved_bytes -= sum(ref.stored for ref in chunks.values())
            if not stay <= mover.packs.keys():
                merged = []
            if mover.packs:
                entries = self._entries(live) if merged else {}
                entries = {old: mover.moved.get(ref.place, ref) for old, ref in entries.items()}
                mover.finish(frozenset(self.refs), merged=merged, entries=entries)
        finally:
            mover.abandon()
            self.repository.intents.end(intent)

    def _entries(self, live: LiveChunks) -> dict[Place, ChunkRef]:
        """Return the moves out of all old packs of which anything is named: whole, because other moves lead there."""
        there = {(pack.label, pack.number) for pack in self.packs}
        named = {pack for refs in self.refs.values() for pack in refs.named}
        packs = {place[:2] for place in live.named} | named
        entries = {
            old: ref
            for old, ref in all_moved_chunks(self.moves).entries(packs)
            if (ref.label, ref.pack) in there and ref.place != old
        }
        return entries | {old: ref for old, ref in live.named.items() if ref.place != old}
