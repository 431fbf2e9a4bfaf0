"""Whether the server can be reached, by SQL and as a walsender, and what is missing where it cannot."""

from __future__ import annotations

from polarvault.check.session import CheckSession, prepared
from polarvault.errors import PolarvaultError
from polarvault.model.finding import Finding, Severity
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity, read_identity


def open_session(connector: Connector, target: str | None) -> tuple[CheckSession, list[Finding]]:
    """Connect both ways, as far as the server lets us, and say how that went."""
    sql = replication = None
    identity: ServerIdentity | None = None
    findings = []
    try:
        sql = prepared(connector.sql())
        findings.append(_reached("connection", sql, "SQL"))
    except PolarvaultError as problem:
        findings.append(_refused("connection", problem))
    try:
        replication = connector.replication()
        identity = read_identity(replication)
        findings.append(_reached("replication", replication, "replication"))
    except PolarvaultError as problem:
        findings.append(_refused("replication", problem))
    return CheckSession(connector, sql, replication, identity, target), findings


def _reached(check: str, connection: Connection, kind: str) -> Finding:
    pgconn = connection.pgconn
    where = f"{pgconn.host.decode()}:{pgconn.port.decode()}"
    message = f'{kind} connection as role "{pgconn.user.decode()}"'
    return Finding(severity=Severity.OK, check=check, subject=where, message=message)


def _refused(check: str, problem: PolarvaultError) -> Finding:
    return Finding(
        severity=Severity.PROBLEM, check=check, subject="server", message=problem.message, advice=problem.hint
    )
