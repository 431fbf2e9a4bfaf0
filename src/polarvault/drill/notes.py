"""What a drill has found so far, written down as it goes, so that a drill that fails still leaves a whole report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from polarvault.drill.facts import facts_of, facts_without_plan
from polarvault.drill.model import (
    DrillReport,
    DrillRequest,
    Failure,
    KeptCopy,
    Part,
    PartTime,
    Reading,
    RelationRead,
)
from polarvault.drill.reporter import DrillReporter
from polarvault.errors import IntegrityError, PolarvaultError, StartFailed
from polarvault.model.finding import Finding, Severity

if TYPE_CHECKING:
    from polarvault.drill.place.server import DrillServer
    from polarvault.recovery.watch import RecoveryOutcome
    from polarvault.restore.model import RestorePlan

Clock = Callable[[], datetime]

_MEANINGS = {
    Part.PLAN: "the backup cannot be restored like this; nothing was written",
    Part.COPY: "the backup's files could not be laid out",
    Part.RECOVERY: "the restored server did not get to where it takes connections",
    Part.STOP: "the server could not write everything out and end",
}


class Notes:
    """Collects findings and times; `report` makes the report of them."""

    def __init__(self, request: DrillRequest, reporter: DrillReporter, clock: Clock) -> None:
        self.findings: list[Finding] = []
        self.not_proved: list[str] = []
        self.relations: list[RelationRead] = []
        self.recovery: RecoveryOutcome | None = None
        self.log_copy: str | None = None
        self.log_end: str | None = None
        self.kept: KeptCopy | None = None
        self.failure: Failure | None = None
        self._request = request
        self._reporter = reporter
        self._clock = clock
        self._began = clock()
        self._times: list[PartTime] = []
        self._part = Part.PLAN
        self._plan: RestorePlan | None = None
        self._server_version: str | None = None

    @contextmanager
    def part(self, part: Part, what: str, size_bytes: Callable[[], int] | None = None) -> Iterator[None]:
        """Time a part, whether or not it succeeds; size_bytes tells at its end what it went through."""
        self._part = part
        self._reporter.begins(part, what)
        began = time.monotonic()
        try:
            yield
        finally:
            size = size_bytes() if size_bytes is not None else None
            self._times.append(PartTime(part, time.monotonic() - began, size))

    def add(self, severity: Severity, check: str, subject: str, message: str, **more: str | None) -> None:
        """Add a finding; more: meaning and advice."""
        self.findings.append(
            Finding(severity=severity, check=check, subject=subject, message=message,
                    meaning=more.get("meaning"), advice=more.get("advice"))
        )  # fmt: skip

    def know_plan(self, plan: RestorePlan) -> None:
        """Remember the plan, later also the settled one; the backup's facts come from it."""
        self._plan = plan

    def know_server(self, server: DrillServer) -> None:
        """Remember what the started server is."""
        self._server_version = server.version

    def fail(self, problem: PolarvaultError) -> None:
        """Note the error that ended the drill, as a finding and with its exit status."""
        hint = problem.hint
        if self._part is Part.RECOVERY and isinstance(problem, StartFailed) and problem.detail is not None:
            # Its own hints speak of files that are left in place; the scratch place goes away, only the log stays.
            is_late = "was not ready after" in problem.message
            hint = ("give --timeout a larger number; " if is_late else "") + f"read {self._request.log_copy}"
        self.failure = Failure(self._part, problem.id, problem.message, hint, problem.detail, problem.exit_code)
        meaning = _MEANINGS.get(self._part, "the drill could not be finished")
        if isinstance(problem, IntegrityError):
            meaning = "stored bytes are wrong"
        check = self._part.value.replace(" ", "-")
        self.add(Severity.PROBLEM, check, self._request.backup, problem.message, meaning=meaning, advice=hint)

    @property
    def has_problem(self) -> bool:
        """Tell whether anything was found that makes the drill fail."""
        return any(finding.severity is Severity.PROBLEM for finding in self.findings)

    def report(self) -> DrillReport:
        """Return the report."""
        plan = self._plan
        return DrillReport(
            backup=self._request.backup,
            began=self._began,
            ended=self._clock(),
            findings=tuple(self.findings),
            not_proved=(*self.not_proved, *self._never_proved()),
            times=tuple(self._times),
            relations=tuple(self.relations),
            facts=facts_of(plan) if plan else facts_without_plan(self._request),
            server_version=self._server_version,
            programs=plan.binaries.directory if plan and plan.binaries else None,
            recovery=self.recovery,
            failure=self.failure,
            log_copy=self.log_copy,
            log_end=self.log_end,
            kept=self.kept,
        )

    def _never_proved(self) -> Iterator[str]:
        request = self._request
        if self.failure is not None:
            yield f'everything after the part "{self.failure.part.value}", in which the drill ended'
            return
        if request.reading is Reading.NONE:
            yield "that tables can be read: --read none"
        elif request.reading is Reading.SAMPLE:
            yield f"that every page can be read: --read sample took {request.sample_percent:g} % of the pages"
        if request.reading is not Reading.NONE:
            yield "that every value can be decoded: pages are read and rows are counted, values are not looked at"
            control = self._plan.inventory.control if self._plan else None
            if control is not None and not control.has_data_checksums:
                yield "that no bit in a page is wrong: the cluster has no data checksums, only page headers are checked"
        if not request.amcheck:
            yield "that indexes agree with their tables: --amcheck was not given"
        if not request.assertions:
            yield "that the data is what you expect: no --sql file was given"
        stopped = f"LSN {self.recovery.lsn}" if self.recovery and self.recovery.lsn else "where recovery stopped"
        yield f"that WAL beyond {stopped} is there and can be replayed"
