"""Expire backups of a cluster: decide, mark, look who uses what, remove. Start reading here.

The order is what keeps data (repository-format.md, "Who uses what"): tombstones are written first, then the intents
are listed, then the records; so a backup that was begun meanwhile is either seen, or has seen the tombstones. What is
removed goes in the order opposite to that in which it was made: a record first, packs last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from polarvault.config.model import Retention
from polarvault.errors import IntegrityError, ObjectMissing, PolarvaultError, UsageError
from polarvault.repository.catalogue.intents import EXPIRE, Intent, refuse_unknown
from polarvault.repository.catalogue.listing import Catalogue, ListedBackup
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format import names
from polarvault.repository.format.names import ClusterNames, pack_number
from polarvault.repository.format.record import IMPORTED_FROM
from polarvault.repository.moves.packs import Moves
from polarvault.repository.moves.reading import FoundMoves, read_moves
from polarvault.repository.reading.refs import Refs, read_refs
from polarvault.repository.states.states import KEPT, TOMBSTONE, StateName, standings
from polarvault.retention.compact import Compacted, Compaction
from polarvault.retention.plan import StoredPack, WalNeed, packs_that_go, replaced_moves, used_packs
from polarvault.retention.policy import Kept, Verdict, judge
from polarvault.retention.wal import Removed, WalKeeper

# A backup's own objects, in the order in which they are removed.
_PARTS = ("record", "refs", "root", "manifest")
SAFETY_S = 86_400
COMPACT_BELOW = 0.5


@dataclass(frozen=True, slots=True)
class ExpireRequest:
    """What is asked for. safety_s: what is younger, by the store's clock, is never removed.

    compact_below: packs of which a smaller part lives are written anew; 0 for none.
    """

    cluster: str
    policy: Retention
    dry_run: bool = False
    safety_s: int = SAFETY_S
    compact_below: float = COMPACT_BELOW


@dataclass(frozen=True, slots=True)
class ExpireReport:
    """What was decided about each backup, oldest first, and what came of it. in_use: who keeps what would go."""

    request: ExpireRequest
    backups: Sequence[tuple[ListedBackup, Verdict]]
    removed: Removed
    in_use: Sequence[Intent]
    compacted: Compacted


def expire(repository: Repository, request: ExpireRequest) -> ExpireReport:
    """Carry a policy out; with dry_run decide only."""
    if request.policy == Retention():
        raise UsageError(
            f"no policy says which backups of {request.cluster} are kept",
            hint=f"write [cluster.{request.cluster}.retention] into the configuration, or --window 14d, --keep 7, ...",
        )
    if not repository.labels(request.cluster):
        raise UsageError(
            f"{repository.store.address} has no backups of {request.cluster}",
            hint="polarvault list shows what is there",
        )
    repository.intents.end_those_that_are_over()
    own = repository.intents.declare(EXPIRE, request.cluster)
    try:
        # What was written a moment ago tells the time of the store.
        now = repository.store.stat(f"{names.INTENTS}/{own}").modified
        return _Expiry(repository, request, now, own).run()
    finally:
        repository.intents.end(own)


class _Expiry:
    def __init__(self, repository: Repository, request: ExpireRequest, now: datetime, own_intent: str) -> None:
        self._repository, self._request = repository, request
        self._store, self._now, self._own = repository.store, now, own_intent
        self._names = ClusterNames.of(request.cluster)
        self._catalogue = Catalogue(repository, request.cluster)
        self._removed = Removed()

    def run(self) -> ExpireReport:
        recorded = self._recorded()
        # Of those that another expire removes at this moment nothing more can be said.
        listed = [one for one in self._catalogue.backups() if one.label in recorded]
        ranks = self._ranks(listed, recorded)
        living = [one for one in listed if not one.standing.expired]
        verdicts = judge([_kept(one, ranks, recorded[one.label]) for one in living], self._request.policy, self._now)
        by_label = {verdict.label: verdict for verdict in verdicts}
        expired = Verdict("", is_kept=False, reasons=("expired before, and not removed yet",))
        judged = [(one, by_label.get(one.label, expired)) for one in listed]
        self._check_readable(one for one, verdict in judged if verdict.is_kept)
        going = {one.label for one, verdict in judged if not verdict.is_kept}
        if not self._request.dry_run:
            going -= self._bury(one for one in living if one.label in going)
        in_use, compacted = self._collect(going, judged, ranks)
        return ExpireReport(self._request, judged, self._removed, in_use, compacted)

    def _collect(
        self, going: Set[str], judged: Sequence[tuple[ListedBackup, Verdict]], ranks: dict[int, int]
    ) -> tuple[list[Intent], Compacted]:
        """Remove what nobody uses; return the intents because of which something stays, and what was compacted."""
        packs = self._packs()
        # Packs of a compaction that runs now have its intent, and one that has ended has its moves.
        orphans = self._orphans(packs) - self._moves().labels
        known_moves = {one.name for one in self._store.list_objects(names.MOVES)}
        if not self._request.dry_run:
            for label in sorted(orphans - self._repository.expired_labels(self._request.cluster)):
                self._tombstone(label, "no record was ever written")
        begun = {one.name.rpartition("/")[2]: one.modified for one in self._repository.intents.stored()}
        intents = [one for one in self._repository.intents.listed() if one.id != self._own]
        intents = [one for one in intents if one.cluster in ("", self._request.cluster)]
        moves = self._moves()
        refuse_unknown(intents, self._store.address)
        used_labels = frozenset(label for one in intents for label in one.labels)
        # After the intents: a backup that has ended meanwhile has its record.
        kept_labels = {label for label in self._repository.labels(self._request.cluster) if label not in going}
        refs = self._refs_of({*kept_labels, *(going & used_labels)})
        own_refs = {label: self._refs_of_going(label) for label in sorted(going - used_labels)}
        removable = {label for label in own_refs if self._remove_backup(label)}
        # Of one whose record stays, because the store does not let go of it, everything stays.
        refs |= {label: used for label, used in own_refs.items() if label not in removable}
        not_after = self._now - timedelta(seconds=self._request.safety_s)
        others = [begun.get(one.id, self._now) for one in intents]

        def is_settled(one: Moves) -> bool:
            # Whoever began before it was written may know only what was true until then.
            was_there = f"{names.MOVES}/{one.id}" in known_moves
            return was_there and one.modified <= not_after and all(one.modified < begin for begin in others)

        used = used_packs(refs, moves, {(pack.label, pack.number) for pack in packs}, is_settled)
        if moves.problems:
            self._removed.refused += moves.problems
        going_packs = [] if moves.problems else packs_that_go(packs, used, used_labels, self._now)
        gone: set[StoredPack] = set()
        for pack in going_packs:
            if pack.modified > not_after:
                self._removed.young += 1
                continue
            if self._delete(self._names.pack(pack.label, pack.number)):
                gone.add(pack)
                self._removed.packs += 1
                self._removed.pack_bytes += pack.size_bytes
        needs = [
            _need(one, ranks, onward=verdict.needs_later_wal or one.label in used_labels)
            for one, verdict in judged
            if one.label not in removable and one.record is not None
        ]
        # What cannot be read needs WAL as well, and nobody knows which; new backups need what they have just written.
        if all(one.record is not None for one, _ in judged if one.label not in removable):
            keeper = WalKeeper(self._repository, self._request.cluster, self._delete, self._removed)
            keeper.remove(needs, ranks, not_after)
            if not self._request.dry_run:
                keeper.merge(ranks)
        if not self._request.dry_run:
            self._forget(not_after)
        for old in replaced_moves(moves.moves, refs, is_settled):
            self._delete(f"{names.MOVES}/{old.id}")
        compacted = Compacted()
        if self._request.compact_below and not self._removed.refused:
            left = [one for one in packs if one not in gone]
            compaction = Compaction(
                self._repository, self._request.cluster, left, refs, moves, used_labels, is_settled,
                self._request.compact_below,
            )  # fmt: skip
            compacted = compaction.run(dry_run=self._request.dry_run)
        return [one for one in intents if one.labels & (going | orphans)], compacted

    # What is there

    def _moves(self) -> FoundMoves:
        return read_moves(self._store, self._repository.codec, self._request.cluster)

    def _ranks(self, listed: Sequence[ListedBackup], recorded: Mapping[str, datetime]) -> dict[int, int]:
        """Return the order in which the repository has met the system identifiers, by the store's clock.

        A generation that was lost and made again is as young as that: the backups of it are older then.
        """
        met = {}
        for one in self._store.list_objects(self._names.generations):
            word = one.name.rpartition("/")[2]
            if word.isascii() and word.isdecimal():
                met[int(word)] = one.modified
        for backup in listed:
            identifier = backup.record.facts.system_identifier if backup.record is not None else None
            if identifier in met:
                met[identifier] = min(met[identifier], recorded[backup.label])
        return {identifier: rank for rank, identifier in enumerate(sorted(met, key=met.__getitem__))}

    def _recorded(self) -> dict[str, datetime]:
        found = {}
        for one in self._store.list_objects(self._names.backups):
            words = one.name.split("/")
            if words[-1] == "record":
                found[words[-2]] = one.modified
        return found

    def _packs(self) -> list[StoredPack]:
        found = []
        for one in self._store.list_objects(self._names.all_packs):
            label, _, word = one.name.removeprefix(f"{self._names.all_packs}/").partition("/")
            number = pack_number(word)
            if number is not None and names.is_label(label):
                found.append(StoredPack(label, number, one.size_bytes, one.modified))
        return found

    def _orphans(self, packs: Iterable[StoredPack]) -> frozenset[str]:
        """Return whose packs have neither a record nor, by now, a writer.

        Intents are listed after the packs, and records after the intents: a writer has an intent before its first pack,
        and a record before its intent ends.
        """
        labels = {pack.label for pack in packs}
        writing = {label for one in self._repository.intents.listed() for label in one.labels}
        return frozenset(labels - writing - set(self._repository.labels(self._request.cluster)))

    def _refs(self, label: str) -> Refs:
        return read_refs(self._store, self._repository.codec, self._names, label)

    def _refs_of(self, labels: Iterable[str]) -> dict[str, Refs]:
        """Return what backups use, but for those that another expire has removed at the same time."""
        found = {}
        for label in labels:
            try:
                found[label] = self._refs(label)
            except ObjectMissing:
                # A record goes before `refs`.
                if label in self._repository.labels(self._request.cluster):
                    raise
        return found

    def _refs_of_going(self, label: str) -> Refs:
        """Return the same of a backup that goes; nothing if that cannot be read."""
        try:
            return self._refs(label)
        except (IntegrityError, ObjectMissing):
            return Refs([])

    def _check_readable(self, kept: Iterable[ListedBackup]) -> None:
        """Raise IntegrityError if it is not known what a backup uses that is kept: then nothing may go."""
        for one in kept:
            try:
                self._refs_of([one.label])
            except PolarvaultError as problem:
                raise IntegrityError(
                    f"what {self._request.cluster}@{one.label} uses cannot be read, so that nothing is removed: "
                    f"{problem.message}",
                    hint="polarvault repo check says what is wrong with it",
                ) from problem

    # What is done

    def _bury(self, going: Iterable[ListedBackup]) -> frozenset[str]:
        """Write tombstones; return the labels that somebody has pinned at the same time, which are taken back."""
        pinned = set()
        for one in going:
            self._tombstone(one.label, "expired")
            if standings(self._catalogue.states.listed(one.label))[one.label].pinned:
                self._catalogue.states.add(one.label, KEPT, now=datetime.now(UTC), text="pinned at the same time")
                pinned.add(one.label)
        return frozenset(pinned)

    def _tombstone(self, label: str, why: str) -> StateName:
        return self._catalogue.states.add(label, TOMBSTONE, now=datetime.now(UTC), text=why, from_reserve=True)

    def _remove_backup(self, label: str) -> bool:
        """Remove the record, then what it made valid; tell whether the record is gone."""
        if not self._delete(self._names.backup(label, _PARTS[0])):
            return False
        for part in _PARTS[1:]:
            self._delete(self._names.backup(label, part))
        self._removed.backups += 1
        return True

    def _forget(self, not_after: datetime) -> None:
        """Remove the states of what is gone, but for tombstones: a copy from another place must not bring it back."""
        left = {pack.label for pack in self._packs()} | set(self._repository.labels(self._request.cluster))
        for one in list(self._store.list_objects(self._names.states)):
            subject, _, word = one.name.removeprefix(f"{self._names.states}/").partition("/")
            is_kept = subject in left or not names.is_label(subject) or word.endswith(f"-{TOMBSTONE}")
            if not is_kept and one.modified <= not_after:
                self._delete(one.name)

    def _delete(self, name: str) -> bool:
        """Remove an object; False if the store does not let us."""
        if self._request.dry_run:
            return True
        try:
            self._store.delete(name)
        except PolarvaultError as problem:
            self._removed.refused.append(problem.message)
            return False
        return True


def _kept(one: ListedBackup, ranks: dict[int, int], recorded: datetime) -> Kept:
    is_good = one.state == "good"
    order: tuple[int, ...] = (-1, 0, 0)
    if one.record is not None:
        facts = one.record.facts
        order = (ranks.get(facts.system_identifier, -1), facts.stop_timeline_id, facts.stop_lsn)
        if facts.details.get(IMPORTED_FROM) is not None:
            # It is older than its record; how much, only whoever took it can say.
            recorded = min(recorded, facts.finished)
    return Kept(
        one.label, order, recorded,
        is_good=is_good, why_not_good="" if is_good else one.state, is_pinned=one.standing.pinned,
    )  # fmt: skip


def _need(one: ListedBackup, ranks: dict[int, int], *, onward: bool) -> WalNeed:
    assert one.record is not None
    facts = one.record.facts
    return WalNeed(
        ranks.get(facts.system_identifier, -1), facts.system_identifier, facts.stop_timeline_id,
        facts.start_lsn, facts.stop_lsn, onward,
    )  # fmt: skip
