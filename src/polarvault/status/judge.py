"""What is wrong with a cluster, by its limits. Pure.

More than a limit is a warning, more than twice the limit a problem: what runs every night may be late once.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from polarvault.config.model import Limits
from polarvault.model.finding import Finding, Severity
from polarvault.model.units import format_duration
from polarvault.repository.catalogue.overview import Overview

_CRITICAL_FACTOR = 2
_NAMED = 3


def judge(cluster: str, repository: str, found: Overview | None, limits: Limits, now: datetime) -> list[Finding]:
    """Return what is wrong; repository: its name, or its address, for the lines to type."""
    return list(_Judge(cluster, repository, limits, now).findings(found))


class _Judge:
    def __init__(self, cluster: str, repository: str, limits: Limits, now: datetime) -> None:
        self._cluster, self._limits, self._now = cluster, limits, now
        self._subject = f"{cluster} in {repository}"
        self._repo = f" --repo {repository}"

    def findings(self, found: Overview | None) -> Iterator[Finding]:
        if found is None or not found.backups:
            yield self._finding(
                Severity.PROBLEM, "no-backup", "there is no backup",
                "nothing can be restored", f"polarvault backup {self._cluster}{self._repo}",
            )  # fmt: skip
            return
        yield from self._backups(found)
        yield from self._wal(found)
        yield from self._verified(found)
        yield from self._drilled(found)
        for problem in found.problems:
            yield self._finding(
                Severity.WARNING, "unreadable", problem, "a part of the repository could not be read",
                f"polarvault repo check{self._repo}",
            )  # fmt: skip

    def _finding(self, severity: Severity, check: str, message: str, meaning: str, advice: str) -> Finding:
        return Finding(
            severity=severity, check=check, subject=self._subject, message=message, meaning=meaning, advice=advice
        )  # fmt: skip

    def _late(self, age_s: float, limit_s: int) -> Severity | None:
        if not limit_s or age_s <= limit_s:
            return None
        return Severity.PROBLEM if age_s > _CRITICAL_FACTOR * limit_s else Severity.WARNING

    def _backups(self, found: Overview) -> Iterator[Finding]:
        if found.last is None:
            label, why = found.newer[0]
            yield self._finding(
                Severity.PROBLEM, "no-backup", f"none of the last {len(found.newer)} backups is good; {label}: {why}",
                "nothing can be relied on", f"polarvault backup {self._cluster}{self._repo}",
            )  # fmt: skip
            return
        age_s = (self._now - found.last.facts.finished).total_seconds()
        severity = self._late(age_s, self._limits.max_backup_age_s)
        if severity is not None:
            yield self._finding(
                severity, "backup-age",
                f"the last good backup is {format_duration(age_s)} old, and max_backup_age is "
                f"{format_duration(self._limits.max_backup_age_s)}",
                "a restore replays all WAL since then; see why no newer one was taken",
                f"polarvault backup {self._cluster}{self._repo}",
            )  # fmt: skip
        for label, why in found.newer[:1]:
            yield self._finding(
                Severity.PROBLEM, "backup-damaged", f"the newest backup {label} is not good: {why}",
                f"what counts is an older one, {found.last.label}",
                f"polarvault show {self._cluster}@{label}{self._repo}",
            )  # fmt: skip
        newer = {label for label, _ in found.newer[:1]}
        older = [label for label in found.damaged if label not in newer]
        if older:
            more = f" and {len(older) - _NAMED} more" if len(older) > _NAMED else ""
            yield self._finding(
                Severity.WARNING, "backup-damaged",
                f"a verification found damage in {', '.join(older[-_NAMED:])}{more}",
                "these backups do not restore as they are, or not all of their files do",
                f"polarvault verify {self._cluster}@{older[-1]}{self._repo}",
            )  # fmt: skip

    def _wal(self, found: Overview) -> Iterator[Finding]:
        reach = found.reach
        if reach is None:
            return
        status = f"polarvault wal status {self._cluster}{self._repo}"
        if reach.gap is not None and reach.acknowledged is None:
            gap = f"{reach.gap.start} to {reach.gap.end}"
            yield self._finding(
                Severity.PROBLEM, "wal-gap",
                f"WAL from {gap} on timeline {reach.timeline_id} is missing behind the last good backup",
                "what was written since then cannot be restored, until a new backup is taken",
                f"polarvault backup {self._cluster}{self._repo}\n"
                f"polarvault wal gap acknowledge {self._cluster} {reach.gap.start}-{reach.gap.end}{self._repo}",
            )  # fmt: skip
        age_s = (self._now - reach.time).total_seconds()
        severity = self._late(age_s, self._limits.max_wal_lag_s)
        if severity is not None:
            yield self._finding(
                severity, "wal-lag",
                f"the last moment that can be restored was {format_duration(age_s)} ago, and max_wal_lag is "
                f"{format_duration(self._limits.max_wal_lag_s)}",
                "so much would be lost with the server, if anything was written since then: see whether it archives",
                f"{status}\npolarvault check {self._cluster}",
            )  # fmt: skip

    def _verified(self, found: Overview) -> Iterator[Finding]:
        limit_s = self._limits.max_verify_age_s
        # Of one that was never verified the first backup is as old as the neglect.
        since = found.verified.time if found.verified is not None else found.first
        if not limit_s or since is None or (self._now - since).total_seconds() <= limit_s:
            return
        age = format_duration((self._now - since).total_seconds())
        yield self._finding(
            Severity.WARNING, "verify-age",
            (f"the last verification was {age} ago" if found.verified else f"nothing was verified in {age}")
            + f", and max_verify_age is {format_duration(limit_s)}",
            "whether the stored bytes are still right is not known",
            f"polarvault verify {self._cluster}{self._repo}",
        )  # fmt: skip

    def _drilled(self, found: Overview) -> Iterator[Finding]:
        advice = f"polarvault drill {self._cluster}{self._repo}"
        if found.drilled is not None and not found.drilled.held:
            yield self._finding(
                Severity.PROBLEM, "drill-failed",
                f"the last drill ({found.drilled.label or self._cluster}) did not hold: {found.drilled.verdict}",
                "it is not proved that the backups restore", advice,
            )  # fmt: skip
        limit_s = self._limits.max_drill_age_s
        since = found.drilled.time if found.drilled is not None else found.first
        if not limit_s or since is None or (self._now - since).total_seconds() <= limit_s:
            return
        age = format_duration((self._now - since).total_seconds())
        yield self._finding(
            Severity.WARNING, "drill-age",
            (f"the last drill was {age} ago" if found.drilled else f"there was no drill in {age}")
            + f", and max_drill_age is {format_duration(limit_s)}",
            "it is long ago that a backup was proved to restore", advice,
        )  # fmt: skip
