"""Facts about backups that come after them: pinned, noted, verified, damaged, expired. Each is an object of its own.

They are numbered, for each subject from 000000 on, by creating the next number that is free: so their order rests on
no clock. What the name says (subject, number, kind) is enough to list backups; the rest is read where it is asked for.
Of a kind that is not known nothing is concluded, but it is there, and a number is taken by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from polarvault.errors import ObjectDamaged, ObjectDiffers, ObjectMissing
from polarvault.model import limits
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.documents import Fields, encode_json, parse_json
from polarvault.repository.format.frame import Kind
from polarvault.repository.format.names import ClusterNames, is_label
from polarvault.repository.format.record import TIME

PIN, UNPIN, NOTE, VERIFIED, DAMAGED = "pin", "unpin", "note", "verified", "damaged"
TOMBSTONE, KEPT = "tombstone", "kept"
"""Expired, and about to be removed; taken back, because it was pinned at the same time."""
DRILLED, GAP_ACKNOWLEDGED = "drilled", "gap-acknowledged"
"""Of the cluster: how a drill ended; WAL that is known to be missing."""
CLUSTER = "cluster"
"""The subject of what concerns no single backup."""
_WORD = re.compile(r"(\d{6})-([a-z][a-z-]{0,31})\Z", re.ASCII)
# Two writers at one number is a coincidence; more often than this something else is wrong.
_MOST_TRIES = 100


@dataclass(frozen=True, slots=True, order=True)
class StateName:
    """What the name of a state says; states of one subject are in the order in which they were written."""

    subject: str
    number: int
    kind: str


def state_name(words: str) -> StateName | None:
    """Return what SUBJECT/NNNNNN-KIND says; None for what is no state of ours."""
    subject, _, word = words.partition("/")
    match = _WORD.match(word)
    if match is None or not (subject == CLUSTER or is_label(subject)):
        return None
    return StateName(subject, int(match[1]), match[2])


@dataclass(frozen=True, slots=True)
class State:
    """A state that was read. time: of the writer's clock, for people; finding: details for programs."""

    name: StateName
    time: datetime
    text: str
    finding: Mapping[str, Any] = field(default_factory=dict)


class States:
    """The states of one cluster."""

    def __init__(self, repository: Repository, cluster: str) -> None:
        self._repository = repository
        self._names = ClusterNames.of(cluster)

    def listed(self, subject: str | None = None) -> list[StateName]:
        """Return the names of all states, or of one subject's, in order; nothing is read."""
        folder = self._names.states
        below = folder if subject is None else f"{folder}/{subject}"
        found = (
            state_name(one.name.removeprefix(f"{folder}/")) for one in self._repository.store.list_objects(below)
        )  # fmt: skip
        return sorted(one for one in found if one is not None)

    def add(
        self,
        subject: str,
        kind: str,
        *,
        now: datetime,
        text: str = "",
        finding: Mapping[str, Any] | None = None,
        from_reserve: bool = False,
    ) -> StateName:
        """Write a state behind all others of its subject, durable on return. from_reserve: as in `ObjectStore`."""
        for _ in range(_MOST_TRIES):
            there = self.listed(subject)
            written = StateName(subject, there[-1].number + 1 if there else 0, kind)
            clear = {"kind": kind, "time": now.astimezone(UTC).strftime(TIME), "sequence": written.number}
            name = self._object(written)
            content = self._repository.codec.document(
                Kind.STATE, name, clear, encode_json({"text": text, "finding": dict(finding or {})})
            )
            try:
                self._repository.store.put_new(name, [memoryview(part) for part in content], from_reserve=from_reserve)
            except ObjectDiffers:
                continue  # Somebody else was faster.
            # The number of another kind is another name: of two that have met, one goes behind the other.
            if not any(one.number == written.number and one.kind < kind for one in self.listed(subject)):
                return written
        raise ObjectDamaged(f"no number of a state of {subject} could be had in {_MOST_TRIES} tries")

    def remove(self, name: StateName) -> None:
        """Remove a state that nobody needs any more; a success if it is gone."""
        self._repository.store.delete(self._object(name))

    def read(self, name: StateName) -> State | None:
        """Return a state; None if it is gone."""
        object_name = self._object(name)
        try:
            content = self._repository.store.get(object_name, most_bytes=limits.REPOSITORY_JSON_BYTES)
        except ObjectMissing:
            return None
        what = f'"{object_name}"'
        document = self._repository.codec.read_document(Kind.STATE, object_name, content)
        clear, sealed = Fields(document.clear, what), Fields(parse_json(document.sealed, what), what)
        if (clear.text("kind"), clear.number("sequence")) != (name.kind, name.number):
            raise ObjectDamaged(f"{what} says that it is another state")
        try:
            time = datetime.strptime(clear.text("time"), TIME).replace(tzinfo=UTC)
        except ValueError:
            raise ObjectDamaged(f'{what}: "time" is no time') from None
        return State(name, time, sealed.text("text"), sealed.mapping("finding"))

    def _object(self, name: StateName) -> str:
        return f"{self._names.states}/{name.subject}/{name.number:06}-{name.kind}"


@dataclass(frozen=True, slots=True)
class Standing:
    """What all states of one backup come to. note, verdict: the states that say more."""

    pinned: bool = False
    expired: bool = False
    note: StateName | None = None
    verdict: StateName | None = None
    """The last of verified and damaged."""

    @property
    def is_damaged(self) -> bool:
        """Tell whether the last verification found damage."""
        return self.verdict is not None and self.verdict.kind == DAMAGED


def standings(names: Iterable[StateName]) -> dict[str, Standing]:
    """Return what holds for each subject; names: in order."""
    by_subject: dict[str, dict[str, StateName]] = {}
    for name in names:
        by_subject.setdefault(name.subject, {})[name.kind] = name
    found = {}
    for subject, last in by_subject.items():
        pinned, unpinned = last.get(PIN), last.get(UNPIN)
        verdicts = [last[kind] for kind in (VERIFIED, DAMAGED) if kind in last]
        found[subject] = Standing(
            # At one number a pin counts: what is kept once too often can still be removed.
            pinned=pinned is not None and (unpinned is None or pinned.number >= unpinned.number),
            expired=TOMBSTONE in last and (KEPT not in last or last[KEPT].number < last[TOMBSTONE].number),
            note=last.get(NOTE),
            verdict=max(verdicts, key=lambda one: one.number, default=None),
        )
    return found
