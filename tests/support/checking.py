"""Checks of real servers, run in this process: the report, and ways to look into it."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.check.run import CheckReport, run_checks
from polarvault.model.finding import Finding, Severity
from polarvault.server.connection import ConnectionSettings, Connector, PasswordPolicy


@dataclass(frozen=True, slots=True)
class Checked:
    """A report, looked at by the names of checks."""

    report: CheckReport

    def all(self, check: str) -> list[Finding]:
        """Return every finding of a check."""
        return [finding for finding in self.report.findings if finding.check == check]

    def one(self, check: str, subject: str | None = None) -> Finding:
        """Return the only finding of a check, or of a check and a subject."""
        found = [finding for finding in self.all(check) if subject in (None, finding.subject)]
        assert len(found) == 1, f"{check} {subject}: {found or self.names()}"
        return found[0]

    def names(self) -> list[str]:
        """Return what is not OK, for messages."""
        return [f"{finding.check}: {finding.message}" for finding in self.report.findings if not finding.is_ok]

    def of(self, severity: Severity) -> set[str]:
        """Return the checks that have a finding of a severity."""
        return {finding.check for finding in self.report.findings if finding.severity is severity}


def check_server(conninfo: str, *, target: str | None = None) -> Checked:
    """Check a server; nobody is asked for a password."""
    connector = Connector(ConnectionSettings(conninfo, password_policy=PasswordPolicy.NEVER))
    return Checked(run_checks(connector, target=target))
