"""A check for people and for programs: the table of findings, each that is not OK with its meaning and advice."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import click

from polarvault.check.run import CheckReport
from polarvault.model.finding import Finding, Severity
from polarvault.report.findings import findings_json
from polarvault.report.units import printable

_WORDS = {Severity.OK: ("OK", "green"), Severity.WARNING: ("warning", "yellow"), Severity.PROBLEM: ("PROBLEM", "red")}
_STATUS_WIDTH = 9
_LABEL_WIDTH = 7


def check_text(report: CheckReport, *, width: int | None = None) -> Iterator[str]:
    """Yield the lines of the report; width wraps prose for a terminal, None leaves lines as long as they are.

    What is to be typed or pasted is never wrapped.
    """
    if report.server:
        yield f"{report.server}{_identity_words(report)}"
    name_width = max((len(finding.check) for finding in report.findings), default=0)
    for finding in report.findings:
        yield from _finding_text(finding, name_width, width)
    yield _summary(report)


def check_json(report: CheckReport) -> dict[str, Any]:
    """Return the report as --json prints it."""
    identity = report.identity
    server: dict[str, Any] | None = None
    if identity is not None:
        server = {
            "product": identity.product,
            "version_num": identity.version_num,
            "system_identifier": identity.system_identifier,
            "timeline": identity.timeline_id,
            "lsn": str(identity.flush_lsn),
            "in_recovery": identity.in_recovery,
            "wal_segment_bytes": identity.segment_size_bytes,
            "data_checksums": identity.data_checksums,
            "full_page_writes": identity.full_page_writes,
            "polar_version": identity.polar_version,
            "shared_data_directory": identity.shared_data_directory,
        }
    return {
        "status": report.severity.value,
        "server": server,
        "findings": findings_json(report.findings),
    }


def _identity_words(report: CheckReport) -> str:
    identity = report.identity
    if identity is None:
        return ""
    return f", system identifier {identity.system_identifier}, timeline {identity.timeline_id}"


def _finding_text(finding: Finding, name_width: int, width: int | None) -> Iterator[str]:
    word, colour = _WORDS[finding.severity]
    status = click.style(f"{word:<{_STATUS_WIDTH}}", fg=colour, bold=not finding.is_ok)
    margin = _STATUS_WIDTH + name_width + 2
    first, *rest = _wrapped(finding.message, width, margin)
    yield f"{status}{finding.check:<{name_width}}  {first}"
    for line in rest:
        yield " " * margin + line
    if finding.is_ok and not finding.advice:
        return
    indent = " " * _STATUS_WIDTH
    if finding.meaning:
        for number, line in enumerate(_wrapped(finding.meaning, width, _STATUS_WIDTH + _LABEL_WIDTH)):
            yield f"{indent}{'means:' if number == 0 else '':<{_LABEL_WIDTH}}{line}"
    for number, line in enumerate((finding.advice or "").splitlines()):
        yield f"{indent}{'do:' if number == 0 else '':<{_LABEL_WIDTH}}{printable(line)}"


def _wrapped(text: str, width: int | None, margin: int) -> list[str]:
    flat = printable(" ".join(text.split()))
    if width is None:
        return [flat]
    # Very narrow terminals get long lines rather than a column of single words.
    return textwrap.wrap(flat, max(width - margin, 40), break_long_words=False, break_on_hyphens=False) or [""]


def _summary(report: CheckReport) -> str:
    counts = {severity: sum(f.severity is severity for f in report.findings) for severity in Severity}
    said = f"{counts[Severity.OK]} ok, {_count(counts[Severity.WARNING], 'warning')}"
    said += f", {_count(counts[Severity.PROBLEM], 'problem')}"
    verdict = {
        Severity.OK: "nothing keeps this server from being backed up and restored",
        Severity.WARNING: "a backup can be taken; read the warnings before you rely on it",
        Severity.PROBLEM: "a backup cannot be taken, or not be relied on, before the problems are solved",
    }[report.severity]
    return f"{said}: {verdict}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
