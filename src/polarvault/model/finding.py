"""Findings: what `check`, `verifybackup` and `drill` report, each with what it means and the line to type."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad a finding is; the exit status of `check` follows from the worst one."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at, and how it is.

    check: a stable name of the kind of finding, lower case words joined by hyphens. subject: the object, such as a
    file, a slot, a setting. message: what was found, lower case, one line. meaning: what follows for the backup or its
    restore. advice: the line to type, or the next step.
    """

    severity: Severity
    check: str
    subject: str
    message: str
    meaning: str | None = None
    advice: str | None = None

    @property
    def is_ok(self) -> bool:
        """Tell whether there is nothing to do."""
        return self.severity is Severity.OK


def worst(findings: list[Finding]) -> Severity:
    """Return the worst severity; OK for none."""
    order = list(Severity)
    return max((finding.severity for finding in findings), key=order.index, default=Severity.OK)


def ok(check: str, subject: str, message: str, meaning: str | None = None, advice: str | None = None) -> Finding:
    """Return a finding that asks for nothing; advice: how there could be more, for who wants it."""
    return Finding(severity=Severity.OK, check=check, subject=subject, message=message, meaning=meaning, advice=advice)


def warning(check: str, subject: str, message: str, meaning: str, advice: str) -> Finding:
    """Return a finding that a backup survives, but that its owner should know."""
    return Finding(
        severity=Severity.WARNING, check=check, subject=subject, message=message, meaning=meaning, advice=advice
    )


def problem(check: str, subject: str, message: str, meaning: str, advice: str) -> Finding:
    """Return a finding that keeps a backup from being taken, restored, or relied on."""
    return Finding(
        severity=Severity.PROBLEM, check=check, subject=subject, message=message, meaning=meaning, advice=advice
    )
