"""A drill for people and for programs: what is said on its way, the result in words, the report as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from polarvault.model.finding import Severity
from polarvault.report.findings import findings_json
from polarvault.report.json_document import envelope, error_fields, iso
from polarvault.report.recovery import ReplayPrinter, outcome_json
from polarvault.report.units import format_bytes

if TYPE_CHECKING:
    from polarvault.drill.model import BackupFacts, DrillReport, Part, PartTime, RelationRead
    from polarvault.recovery.watch import ReplayState

_LINE_EVERY_S = 5.0
_MARKS = {Severity.OK: "ok", Severity.WARNING: "warning", Severity.PROBLEM: "PROBLEM"}


class DrillPrinter:
    """Says what a drill does, a line for each part and every few seconds of a long one."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._said = clock()
        self._replay = ReplayPrinter(say)

    def begins(self, part: Part, what: str) -> None:
        """Say that a part begins."""
        self._say(f"polarvault: {part.value}: {what}")

    def warn(self, message: str) -> None:
        """Say what does not stop the drill."""
        self._say(f"polarvault: warning: {message}")

    def scanned(self, done: int, total: int) -> None:
        """Say how much WAL was read for the plan."""
        self._now_and_then(f"read {format_bytes(done)} of at most {format_bytes(total)} of WAL for the plan")

    def copied(self, done: int, total: int) -> None:
        """Say how much of the backup was laid out."""
        self._now_and_then(f"restored {format_bytes(done)} of {format_bytes(total)}")

    def replayed(self, state: ReplayState) -> None:
        """Say how far replay has come."""
        self._replay(state)

    def _now_and_then(self, words: str) -> None:
        if self._clock() - self._said >= _LINE_EVERY_S:
            self._said = self._clock()
            self._say(f"polarvault: {words}")


def format_seconds(seconds: float) -> str:
    """Return a duration as people read it: 0.4 s, 12 s, 1:02:33."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return str(timedelta(seconds=round(seconds)))


def rate(time: PartTime) -> str | None:
    """Return the throughput of a part, where it went through bytes."""
    if not time.size_bytes or time.seconds <= 0:
        return None
    return f"{format_bytes(time.size_bytes)}, {format_bytes(int(time.size_bytes / time.seconds))}/s"


def verdict(report: DrillReport) -> str:
    """Return the one sentence that matters."""
    if report.held:
        return "the backup restores: everything that was looked at held"
    if report.failure is not None:
        return f'the backup did not prove to restore: the drill ended in the part "{report.failure.part.value}"'
    problems = sum(finding.severity is Severity.PROBLEM for finding in report.findings)
    return f"the backup restores, but {problems} thing{'s' if problems > 1 else ''} did not hold"


def expectation(report: DrillReport) -> str | None:
    """Return the recovery time that an operator should expect, and what it is based on; None if it was not measured."""
    from polarvault.drill.model import Part

    total, copy, recovery = report.recovery_time_s, report.seconds(Part.COPY), report.seconds(Part.RECOVERY)
    if total is None or copy is None or recovery is None:
        return None
    return (
        f"{format_seconds(total)}: {format_seconds(copy)} to lay the files out and {format_seconds(recovery)} until "
        "the server took connections, as measured here; another disk, another machine or more WAL gives another time"
    )


def drill_text(report: DrillReport, files: list[str]) -> Iterator[str]:
    """Yield the result for people; files: the paths of the reports that were written."""
    for finding in report.findings:
        yield f"{_MARKS[finding.severity]:<8} {finding.check}: {finding.subject}: {finding.message}"
        if finding.severity is not Severity.OK:
            yield from (f"         {word}: {text}" for word, text in
                        (("means", finding.meaning), ("next", finding.advice)) if text)  # fmt: skip
    if report.failure is not None and report.failure.detail:
        yield from (f"         | {line}" for line in report.failure.detail.splitlines())
    yield "not proved:"
    yield from (f"  {line}" for line in report.not_proved)
    yield "times:"
    for part in report.times:
        through = rate(part)
        yield f"  {part.part.value:<19}{format_seconds(part.seconds):>8}" + (f"  ({through})" if through else "")
    if (expected := expectation(report)) is not None:
        yield f"recovery time to expect: {expected}"
    if report.kept is not None:
        yield f"the copy is kept in {report.kept.directory}, stopped:"
        yield f"  to start it       {report.kept.start}"
        yield f"  to look into it   {report.kept.connect}"
        yield f"  to stop it        {report.kept.stop}"
        yield f"  to remove it      {report.kept.remove}"
    for path in files:
        yield f"report: {path}"
    if report.log_copy:
        yield f"server log: {report.log_copy}"
    yield verdict(report)


def report_json(report: DrillReport) -> dict[str, Any]:
    """Return the report as PREFIX.json holds it: what --json prints, with the times of the drill alone."""
    return envelope(
        "drill", drill_json(report), began=report.began, ended=report.ended,
        duration_s=(report.ended - report.began).total_seconds(), exit_status=report.exit_status,
        error=failure_json(report),
    )  # fmt: skip


def failure_json(report: DrillReport) -> dict[str, str | None] | None:
    """Return what ended a drill before its end as the error that it was."""
    failed = report.failure
    return None if failed is None else error_fields(failed.error_id, failed.message, failed.detail, failed.hint)


def drill_json(report: DrillReport) -> dict[str, Any]:
    """Return what --json adds to what every command has."""
    failure, kept = report.failure, report.kept
    return {
        "backup": report.backup,
        "held": report.held,
        "verdict": verdict(report),
        "findings": findings_json(report.findings),
        "not_proved": list(report.not_proved),
        "facts": _facts_json(report.facts),
        "server": {"version": report.server_version, "programs": report.programs},
        "recovery": outcome_json(report.recovery),
        "parts": [
            {"part": one.part.value, "seconds": round(one.seconds, 3), "bytes": one.size_bytes,
             "bytes_per_s": round(one.size_bytes / one.seconds) if one.size_bytes and one.seconds > 0 else None}
            for one in report.times
        ],
        "recovery_time": {
            "seconds": None if report.recovery_time_s is None else round(report.recovery_time_s, 3),
            "based_on": "copy and start and recovery, as measured on this machine and its disks",
        },
        "relations": [_relation_json(one) for one in report.relations],
        "failure": None if failure is None else {
            "part": failure.part.value, "error": failure.error_id, "message": failure.message, "hint": failure.hint,
            "detail": failure.detail, "exit_status": failure.exit_status,
        },
        "log": report.log_copy,
        "log_end": report.log_end,
        "kept": None if kept is None else {
            "directory": kept.directory, "start": kept.start, "connect": kept.connect, "stop": kept.stop,
            "remove": kept.remove,
        },
    }  # fmt: skip


def _facts_json(facts: BackupFacts | None) -> dict[str, Any] | None:
    if facts is None:
        return None
    return {
        "path": facts.path,
        "form": facts.form,
        "label": facts.label,
        "start_lsn": facts.start_lsn,
        "stop_lsn": facts.stop_lsn,
        "start_time": iso(facts.start_time),
        "stop_time": iso(facts.stop_time),
        "timeline": facts.timeline_id,
        "bytes": facts.size_bytes,
        "files": facts.file_count,
        "system_identifier": facts.system_identifier,
        "major_version": facts.major_version,
        "polardb": facts.is_polardb,
        "data_checksums": facts.has_data_checksums,
    }


def _relation_json(relation: RelationRead) -> dict[str, Any]:
    return {
        "database": relation.database,
        "schema": relation.schema,
        "name": relation.name,
        "kind": relation.kind,
        "belongs_to": relation.belongs_to,
        "pages": relation.pages,
        "rows": relation.rows,
        "problems": [{"block": block, "message": words} for block, words in relation.problems],
        "map_problems": [
            {"fork": fork, "block": block, "message": words} for fork, block, words in relation.map_problems
        ],
        "skipped": relation.skipped,
    }
