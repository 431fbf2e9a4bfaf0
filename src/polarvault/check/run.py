"""Check a server: start reading here.

Area by area: each has a module that asks (`read_...`) and judges (`judge_...`, pure). An area that cannot be asked
leaves its findings out and is named by the finding "visibility"; nothing but a wrong command line ends the check.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from polarvault.check.connection.node import check_node
from polarvault.check.connection.reach import open_session
from polarvault.check.connection.role import check_role
from polarvault.check.connection.transport import check_transport
from polarvault.check.files.contents import check_contents
from polarvault.check.files.data_directory import check_data_directory
from polarvault.check.files.pages import check_pages
from polarvault.check.files.places import check_files
from polarvault.check.host import check_clock, check_programs
from polarvault.check.polardb.run import check_polardb
from polarvault.check.repository.run import RepositoryCheck, repository_area
from polarvault.check.session import CheckSession
from polarvault.check.target import check_target
from polarvault.check.visibility import judge_visibility
from polarvault.check.wal.archiving import check_archiving
from polarvault.check.wal.slots import check_slots
from polarvault.check.wal.walsenders import check_wal
from polarvault.errors import PolarvaultError
from polarvault.model.finding import Finding, Severity, worst
from polarvault.server.connection import Connector
from polarvault.server.identity import ServerIdentity

# Our commands that connect, where options follow; -h names another server, such as the primary of this one.
_OWN_COMMAND = re.compile(r"(polarvault (?:basebackup|receivewal|check))(?= -(?!h ))")
Area = Callable[[CheckSession], list[Finding]]
# In the order of the report: can it be reached and asked, can a backup begin, is it worth something, what does it lack.
AREAS: tuple[Area, ...] = (
    check_transport,
    check_role,
    check_node,
    check_wal,
    check_slots,
    check_archiving,
    check_pages,
    check_files,
    check_data_directory,
    check_contents,
    check_programs,
    check_clock,
    check_target,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What the check found; identity is None where no replication connection was had."""

    findings: tuple[Finding, ...]
    server: str | None
    identity: ServerIdentity | None

    @property
    def severity(self) -> Severity:
        """The worst of the findings."""
        return worst(list(self.findings))


def run_checks(
    connector: Connector,
    *,
    target: str | None = None,
    connection_words: Sequence[str] = (),
    repositories: Sequence[RepositoryCheck] = (),
) -> CheckReport:
    """Connect, ask, judge. Never raises for what a server refuses: that is what the findings are about.

    target: the absolute path where a backup is to go; its space is looked at. connection_words: the options that lead
    to this server, for the lines that are to be typed. repositories: where backups go, each is looked at as well.
    """
    session, findings = open_session(connector, target)
    try:
        # Where a connection is refused the other answers for what it can; a target is looked at without either.
        for area in AREAS:
            findings += _guarded(area, session)
        if session.is_polardb:
            findings += _guarded(check_polardb, session)
        for asked in repositories:
            findings += _guarded(repository_area(asked), session)
        findings += judge_visibility(session)
        findings = [_with_connection(finding, connection_words) for finding in findings]
        return CheckReport(findings=tuple(findings), server=_server_name(session), identity=session.identity)
    finally:
        session.close()


def _with_connection(finding: Finding, words: Sequence[str]) -> Finding:
    """Complete the lines that a finding gives to type: without the options they would go to another server."""
    if finding.advice is None or not words:
        return finding
    options = shlex.join(words).replace("\\", r"\\")
    return replace(finding, advice=_OWN_COMMAND.sub(rf"\1 {options}", finding.advice))


def _guarded(area: Area, session: CheckSession) -> list[Finding]:
    """Run one area; what stops it must not hide what the others find."""
    try:
        return area(session)
    except PolarvaultError as problem:
        session.miss(area.__name__.removeprefix("check_").replace("_", " "), problem.message)
        return []


def _server_name(session: CheckSession) -> str | None:
    if session.identity is not None:
        return session.identity.product
    if session.sql is not None:
        product = "PolarDB" if session.is_polardb else "PostgreSQL"
        return f"{product} {session.sql.parameter('server_version')}"
    return None
