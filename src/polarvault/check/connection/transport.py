"""Whether what is sent can be read on the way: TLS, GSS, or a local socket that nobody else sees."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.check.session import CheckSession
from polarvault.model.finding import Finding, ok, warning
from polarvault.server.connection import Connection, is_on_this_machine

_CHECKED_MODES = ("verify-ca", "verify-full")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportFacts:
    """How we are connected; server_ssl is the server's setting, protocol its words such as "TLSv1.3, ..."."""

    where: str
    local_socket: bool
    same_machine: bool
    encrypted: bool
    protocol: str | None
    sslmode: str
    server_ssl: str | None


def check_transport(session: CheckSession) -> list[Finding]:
    """Return the finding about encryption."""
    facts = read_transport(session)
    return judge_transport(facts) if facts else []


def read_transport(session: CheckSession) -> TransportFacts | None:
    """Look at the connection that a backup would use; None without any."""
    connection = session.replication or session.sql
    if connection is None:
        return None
    host = connection.pgconn.host.decode()
    row = session.row("SELECT version, cipher FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()")
    protocol = ", ".join(value for value in (row or {}).values() if value) or None
    return TransportFacts(
        where=host,
        local_socket=host.startswith(("/", "@")),
        same_machine=is_on_this_machine(connection),
        encrypted=connection.is_encrypted,
        protocol=protocol,
        sslmode=_sslmode(connection),
        server_ssl=session.setting("ssl"),
    )


def judge_transport(facts: TransportFacts) -> list[Finding]:
    """Return the finding about encryption: a warning only where the network can read along."""
    at_server = f"ssl is {facts.server_ssl} at the server" if facts.server_ssl else "ssl at the server is unknown"
    if facts.local_socket:
        return [ok("tls", facts.where, f"local socket, which needs no TLS ({at_server})")]
    if facts.encrypted:
        how = facts.protocol or "encrypted"
        checked = "" if facts.sslmode in _CHECKED_MODES else f"; sslmode={facts.sslmode} does not check the certificate"
        return [ok("tls", facts.where, f"encrypted connection: {how}{checked}")]
    if facts.same_machine:
        return [ok("tls", facts.where, f"not encrypted, but within this machine ({at_server})")]
    if facts.server_ssl == "on":
        advice = "use TLS: add sslmode=require (or verify-full) to the connection string, or export PGSSLMODE=require"
    else:
        advice = (
            "give the server a certificate (ssl_cert_file, ssl_key_file), then:\n"
            "ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf();"
        )
    return [
        warning(
            "tls",
            facts.where,
            f"the connection to {facts.where} is not encrypted, and crosses a network ({at_server})",
            meaning="everybody on the way can read the whole database while it is backed up",
            advice=advice,
        )
    ]


def _sslmode(connection: Connection) -> str:
    for option in connection.pgconn.info:
        if option.keyword == b"sslmode" and option.val:
            return option.val.decode()
    return "prefer"
