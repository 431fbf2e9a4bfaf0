"""Findings as JSON: one shape for `check`, `verifybackup` and `drill`."""

from __future__ import annotations

from collections.abc import Iterable

from polarvault.model.finding import Finding


def finding_json(finding: Finding) -> dict[str, str | None]:
    """Return a finding as it stands in --json."""
    return {
        "severity": finding.severity.value,
        "check": finding.check,
        "subject": finding.subject,
        "message": finding.message,
        "meaning": finding.meaning,
        "advice": finding.advice,
    }


def findings_json(findings: Iterable[Finding]) -> list[dict[str, str | None]]:
    """Return findings in their order."""
    return [finding_json(finding) for finding in findings]
