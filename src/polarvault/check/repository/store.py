"""What the configured role may do in the store, whether the store can be relied on, its clock, and room.

A probe of a few bytes is written and removed again, by a name that `repo check` knows to be none of the repository's.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from polarvault.errors import ObjectDiffers, PolarvaultError, StoreForbidden
from polarvault.instance.host import Host
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.units import format_bytes
from polarvault.storage.objects.address import Scheme, parse_address
from polarvault.storage.objects.store import ObjectStore

_CLOCKS_DIFFER_S = 5.0
# Buckets tell whole seconds.
_COARSE_S = 1.0
_FIRST, _SECOND = b"polarvault check", b"polarvault check again"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """What a probe has shown. refusal: why it could not be written or read, None if it could.

    replaces: whether the store takes a second object of a name. difference_s: the store's clock minus ours, known as
    exactly as uncertainty_s. may_delete: whether it could be removed; left: its name, if it is still there.
    """

    refusal: PolarvaultError | None = None
    replaces: bool = False
    may_delete: bool = False
    left: str | None = None
    difference_s: float | None = None
    uncertainty_s: float = 0.0


def read_store(store: ObjectStore) -> StoreFacts:
    """Write a probe, try to replace it, read it, look at its time, and remove it."""
    name = f"probe-{os.urandom(8).hex()}"
    try:
        began = time.time()
        store.put_new(name, [_FIRST])
        ended = time.time()
    except PolarvaultError as refused:
        return StoreFacts(refusal=refused)
    refusal, replaces, modified = None, False, None
    try:
        replaces = _is_replaced(store, name)
        store.get(name, most_bytes=len(_SECOND))
        modified = store.stat(name).modified.timestamp()
    except PolarvaultError as refused:
        refusal = refused
    may_delete, left = True, None
    try:
        store.delete(name)
    except StoreForbidden:
        may_delete, left = False, name
    except PolarvaultError as refused:
        refusal, may_delete, left = refusal or refused, False, name
    return StoreFacts(
        refusal=refusal, replaces=replaces, may_delete=may_delete, left=left,
        difference_s=None if modified is None else modified - (began + ended) / 2,
        uncertainty_s=(ended - began) / 2 + _COARSE_S,
    )  # fmt: skip


def _is_replaced(store: ObjectStore, name: str) -> bool:
    try:
        store.put_new(name, [_SECOND])
    except ObjectDiffers:
        return store.get(name, most_bytes=len(_SECOND)) != _FIRST
    return True


def judge_store(facts: StoreFacts, place: str) -> list[Finding]:
    """Return the findings about rights, conditional writes and the clock."""
    return [_rights(facts, place), *_conditional(facts, place), *_clock(facts, place)]


def _rights(facts: StoreFacts, place: str) -> Finding:
    if facts.refusal is not None:
        return problem(
            "repository-rights", place, facts.refusal.message,
            meaning="no backup can be taken into it, and no WAL archived",
            advice=facts.refusal.hint or "see the rights of the role: it has to list, get and put",
        )  # fmt: skip
    if facts.may_delete:
        return ok("repository-rights", place, "objects can be listed, written, read and removed")
    return ok(
        "repository-rights", place,
        f"objects can be listed, written and read, and not removed: expire has to run elsewhere; {facts.left} stays",
    )  # fmt: skip


def _conditional(facts: StoreFacts, place: str) -> list[Finding]:
    if not facts.replaces:
        return []
    return [
        problem(
            "repository-write-once", place, "the store replaces objects that are there already",
            meaning="two commands that write at the same time lose data",
            advice="use a store, or a release of it, that has conditional writes (If-None-Match); polarvault repo sync "
            "copies the repository there",
        )
    ]  # fmt: skip


def _clock(facts: StoreFacts, place: str) -> list[Finding]:
    difference_s = facts.difference_s
    if difference_s is None:
        return []
    amount = f"{abs(difference_s):.1f} s"
    if abs(difference_s) <= _CLOCKS_DIFFER_S + facts.uncertainty_s:
        return [ok("repository-clock", place, f"the store's clock agrees with this machine's within {amount}")]
    direction = "ahead of" if difference_s > 0 else "behind"
    return [
        warning(
            "repository-clock", place, f"the store's clock is {amount} {direction} this machine's",
            meaning="expire goes by the store's clock, and status by this machine's: ages differ by as much; signed "
            "requests are refused when it is too much",
            advice="look at this machine's: timedatectl status, chronyc tracking; synchronise it with NTP",
        )
    ]  # fmt: skip


def read_room(address: str) -> int | None:
    """Return the bytes that can still be written to a directory; None for a bucket, which has no end."""
    parsed = parse_address(address)
    return Host().available_bytes(parsed.place)[1] if parsed.scheme is Scheme.FILE else None


def judge_room(place: str, available: int, *, week_bytes: int | None, cluster_bytes: int | None) -> list[Finding]:
    """Return the finding about room. week_bytes: what a week has added, None without a backup that tells.

    cluster_bytes: what a first backup would take at most, None where it could not be asked.
    """
    there = f"{format_bytes(available)} available"
    advice = "free space, or keep less: polarvault expire --dry-run shows what a policy would remove"
    if week_bytes is None:
        if cluster_bytes is None:
            return [ok("repository-room", place, there)]
        need = f"{there}; a first backup takes {format_bytes(cluster_bytes)} before compression"
        if available >= cluster_bytes:
            return [ok("repository-room", place, need)]
        return [warning("repository-room", place, need, "it may not fit; usual data take a third of it", advice)]
    need = f"{there}; backups of the last seven days have added {format_bytes(week_bytes)}"
    if available >= 2 * week_bytes:
        return [ok("repository-room", place, need)]
    if available >= week_bytes:
        return [warning("repository-room", place, need, "it is full within two weeks, WAL apart", advice)]
    return [problem("repository-room", place, need, "it is full within a week, WAL apart", advice)]
