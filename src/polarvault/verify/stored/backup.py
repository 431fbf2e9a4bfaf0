"""Verify one backup of a repository: its objects, every chunk, the WAL that it needs; and remember what was found."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from polarvault.errors import IntegrityError, ObjectMissing, PolarvaultError, RepositoryNewer
from polarvault.model.finding import Finding, Severity
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.reading.uses import backups_with
from polarvault.repository.reading.verify import FoundDamage, verify_backup, verify_objects
from polarvault.repository.states.states import DAMAGED, VERIFIED, States, standings
from polarvault.repository.wal.of_backup import BackupWal
from polarvault.repository.wal.source import RepositoryWalSource
from polarvault.verify.facts.backup import WalRange
from polarvault.verify.wal.check import check_wal
from polarvault.wal.source import joined

# What a state keeps of a long list that only people read.
_REMEMBERED = 100


@dataclass(frozen=True, slots=True)
class VerifiedBackup:
    """What is wrong with a backup. concerned: other backups that use a damaged chunk; they are marked as well.

    sampled: which part of the content was read, 1 for all; wal: what is wrong with the WAL, or leads no further.
    """

    cluster: str
    label: str
    sampled: float
    damage: Sequence[FoundDamage]
    wal: Sequence[Finding]
    concerned: Sequence[str]

    @property
    def is_good(self) -> bool:
        """Tell whether the backup restores."""
        return not self.damage and all(one.severity is not Severity.PROBLEM for one in self.wal)


def verify_stored(
    repository: Repository, cluster: str, label: str, *, sample: float = 1.0, jobs: int = 2
) -> VerifiedBackup:
    """Verify a backup and write down the verdict; a read-only store only lacks the note.

    sample: how much of the content is read, of parts that are drawn anew each time.
    """
    names = ClusterNames.of(cluster)
    damage: list[FoundDamage] = []
    wal: list[Finding] = []
    with ThreadPoolExecutor(jobs, thread_name_prefix="verify") as pool:
        try:
            reader = repository.open_backup(cluster, label)
        except (IntegrityError, ObjectMissing, RepositoryNewer) as problem:
            damage.append(FoundDamage(problem.message))
        else:
            draw = None if sample >= 1 else random.SystemRandom().random
            damage += verify_objects(
                repository.store, repository.codec, names, label,
                is_drawn=None if draw is None else lambda: draw() < sample,
            )  # fmt: skip
            damage += verify_backup(
                reader, repository.page_key, pool, is_drawn=None if draw is None else lambda: draw() < sample
            )
            wal += verify_wal(repository, cluster, label)
    lost = {one.chunk for one in damage if one.chunk is not None}
    concerned = backups_with(repository, cluster, lost, but=label) if lost else []
    found = VerifiedBackup(cluster, label, min(1.0, sample), damage, wal, concerned)
    remember(repository, found)
    return found


def verify_wal(repository: Repository, cluster: str, label: str) -> Iterator[Finding]:
    """Read every record from the start of a backup to its end, and say how far WAL goes on without a gap."""
    facts = repository.record(cluster, label).facts
    try:
        wal = repository.wal_of(cluster, facts.system_identifier)
        archive = RepositoryWalSource(wal, place=f"the WAL of {cluster}")
        timeline_id = facts.stop_timeline_id
        own = BackupWal(archive, start=facts.start_lsn, stop=facts.stop_lsn, timeline_id=timeline_id)
        verdict = check_wal(
            [WalRange(timeline_id, facts.start_lsn, facts.stop_lsn)], own,
            segment_size_bytes=wal.segment_bytes, system_identifier=facts.system_identifier,
        )  # fmt: skip
        # A range ends where somebody stopped to write: that a segment is not whole is no fault here.
        yield from (one for one in verdict.findings if one.severity is Severity.PROBLEM)
        held = joined(archive.ranges(timeline_id, wal.segment_bytes))
    except PolarvaultError as problem:
        yield Finding(
            severity=Severity.PROBLEM, check="wal-unreadable", subject=f"{cluster}@{label}", message=problem.message
        )
        return
    own_range = next((one for one in held if one.start <= facts.start_lsn < one.end), None)
    if own_range is not None and held[-1].end > own_range.end:
        yield Finding(
            severity=Severity.WARNING,
            check="wal-gap",
            subject=f"timeline {timeline_id}",
            message=f"the WAL behind the backup ends at {own_range.end}, and goes on later",
            meaning="with this backup nothing behind that place can be restored",
            advice="archive WAL continuously; a later backup closes the gap for what comes after it",
        )  # fmt: skip


def remember(repository: Repository, found: VerifiedBackup) -> None:
    """Write the verdict down, for the backup and for those that the damage concerns as well."""
    lost = {one.chunk for one in found.damage if one.chunk is not None}
    states, now = States(repository, found.cluster), datetime.now(UTC)
    standing = standings(states.listed(found.label)).get(found.label)
    if found.is_good and found.sampled < 1 and standing is not None and standing.is_damaged:
        # It has read other parts than those that are damaged: only reading everything can take that back.
        return
    details = {
        "sampled": found.sampled,
        "problems": [*(one.message for one in found.damage), *(one.message for one in found.wal)][:_REMEMBERED],
        # All of them: what is not listed here is evidence for the next backup.
        "chunks": sorted([one.label, one.pack, one.number] for one in lost),
        "files": sorted({f"{one.path} block {one.block}" for one in found.damage if one.path})[:_REMEMBERED],
    }
    try:
        states.add(found.label, VERIFIED if found.is_good else DAMAGED, now=now, finding=details)
        for other in found.concerned:
            states.add(other, DAMAGED, now=now, text=f"found with {found.label}", finding=details)
    except PolarvaultError:
        # A place that may only be read can be verified all the same; list then does not know of it.
        return
