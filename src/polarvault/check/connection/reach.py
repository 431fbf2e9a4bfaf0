"""Whether the server can be reached, by SQL and as a walsender, and what is missing where it cannot."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.check.connection.hba import Client, Refusal, hba_line, login_method, parse_refusal
from polarvault.check.session import CheckSession, patient, prepared
from polarvault.errors import PolarvaultError, ServerRefused
from polarvault.model import versions
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity, read_identity
from polarvault.server.login_hints import LOGIN_TRIGGER_ADVICE
from polarvault.wire.commands import quote_identifier

_MEANINGS = {
    "connection": "slots, sizes, rights and leftovers cannot be asked; a backup needs only the replication connection",
    "replication": "no base backup can be taken and no WAL received",
    "reachability": "nothing can be asked, and no backup taken",
}
_LOOK_INTO_LOG = "look into the server's log for the reason"
_USUAL_METHOD = "scram-sha-256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one kind of login went; error is None when it worked."""

    check: str
    database: str
    error: PolarvaultError | None
    where: str = "server"
    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachFacts:
    """Both logins; `client` is how the server sees the one that worked, hba_file where it says its rules are."""

    sql: Attempt
    replication: Attempt
    client: Client | None
    hba_file: str | None


def open_session(connector: Connector, target: str | None) -> tuple[CheckSession, list[Finding]]:
    """Connect both ways, as far as the server lets us, and say how that went."""
    sql, sql_attempt = _open_sql(connector)
    replication, identity, replication_attempt = _open_replication(connector)
    refused = replication_attempt.error
    session = CheckSession(
        connector, sql, replication, identity, target, refusal=refused.message if refused is not None else None
    )
    client = read_client(session)
    asks_for_hba = sql is not None and replication is None
    facts = ReachFacts(
        sql=sql_attempt,
        replication=replication_attempt,
        client=client,
        hba_file=session.setting("hba_file") if asks_for_hba else None,
    )
    return session, [*judge_reach(facts), *judge_version(identity)]


def judge_version(identity: ServerIdentity | None) -> list[Finding]:
    """Return a warning for a server that is newer than all known ones."""
    if identity is None or not identity.is_newer:
        return []
    return [
        warning(
            "server-version", identity.version, versions.is_not_known(identity.product),
            meaning="base backups and WAL are saved as they come and restored as they are; recovery targets and drills "
            "are refused, and verifybackup compares with the manifest only",
            advice="use a newer polarvault",
        )
    ]  # fmt: skip


def read_client(session: CheckSession) -> Client | None:
    """Ask how the server sees us, on the SQL connection; None without one."""
    if session.sql is None:
        return None
    row = session.row(
        "SELECT session_user AS name, pg_catalog.host(pg_catalog.inet_client_addr()) AS address,"
        " pg_catalog.current_setting('password_encryption') AS encryption"
    )
    if row is None:
        return None
    knows = versions.of_server(session.version_num).has_system_user
    system_user = session.value("SELECT SYSTEM_USER") if knows else None
    return Client(
        user=row["name"] or "",
        address=row["address"],
        encrypted=session.sql.is_encrypted if session.sql else False,
        method=login_method(
            system_user=system_user,
            used_password=bool(session.sql.pgconn.used_password) if session.sql else False,
            password_encryption=row["encryption"] or "",
            local=row["address"] is None,
        ),
    )


def judge_reach(facts: ReachFacts) -> list[Finding]:
    """Return a finding for each login, or one for both when they failed for the same reason."""
    if facts.sql.error is not None and facts.replication.error is not None:
        said = _flat(facts.sql.error.message)
        if said == _flat(facts.replication.error.message):
            return [
                problem(
                    "reachability", facts.sql.where, said, meaning=_MEANINGS["reachability"],
                    advice=_advice_by_words(said) or facts.sql.error.hint or _LOOK_INTO_LOG,
                )
            ]  # fmt: skip
    return [_judge(facts, facts.sql), _judge(facts, facts.replication)]


def _judge(facts: ReachFacts, attempt: Attempt) -> Finding:
    if attempt.error is None:
        kind = "SQL" if attempt.check == "connection" else "replication"
        return ok(attempt.check, attempt.where, f'{kind} connection to {attempt.where} as role "{attempt.user}"')
    said = _flat(attempt.error.message)
    advice = _hba_advice(facts, attempt) or _role_advice(facts, attempt, said) or _advice_by_words(said)
    advice = advice or attempt.error.hint or _LOOK_INTO_LOG
    return problem(attempt.check, attempt.where, said, meaning=_MEANINGS[attempt.check], advice=advice)


def _hba_advice(facts: ReachFacts, attempt: Attempt) -> str | None:
    """Return the line for pg_hba.conf, with the address that the server sees; None when that is not what is missing."""
    assert attempt.error is not None
    message = attempt.error.message
    if "pg_hba.conf" not in message:
        return None
    refusal = parse_refusal(message)
    client = _client_of(refusal, facts.client)
    if client is None:
        return None
    above = ", above the line that rejects it" if refusal and refusal.is_rejection else ""
    place = facts.hba_file or "the server's pg_hba.conf"
    return f"add this line to {place}{above}, then run: SELECT pg_reload_conf();\n{hba_line(attempt.database, client)}"


def _client_of(refusal: Refusal | None, known: Client | None) -> Client | None:
    """Say who has to be let in: the refusal's own words come first, what SQL tells fills in the rest."""
    if refusal is None:
        return known
    # A method that works on a socket says nothing about the network, and the other way round.
    method = "peer" if refusal.address is None else _USUAL_METHOD
    if known is not None and (known.address is None) == (refusal.address is None):
        method = known.method
    return Client(user=refusal.user, address=refusal.address, encrypted=refusal.encrypted, method=method)


def _role_advice(facts: ReachFacts, attempt: Attempt, message: str) -> str | None:
    user = facts.client.user if facts.client else attempt.user
    role = quote_identifier(user) if user else "ROLE"
    if "must be superuser or replication role" in message or "permission denied to start WAL sender" in message:
        return f"as a superuser: ALTER ROLE {role} REPLICATION;"
    if "permission denied for database" in message:
        return f"as a superuser: GRANT CONNECT ON DATABASE {quote_identifier(attempt.database)} TO {role};"
    return None


def _advice_by_words(message: str) -> str | None:
    """Return the next step for what a server says while it is not ready."""
    if "not accepting connections" in message or "starting up" in message:
        return (
            "wait until the server has reached consistency; a standby answers only with hot_standby = on, "
            "set in its postgresql.conf and read at its start"
        )
    if "too many connections" in message or "remaining connection slots" in message:
        return "close connections (SELECT * FROM pg_stat_activity), or raise the limit that the message names"
    if "invalid response to SSL negotiation" in message:
        return "check address and port: what answers there is no PostgreSQL server"
    if "CONTEXT:" in message:
        return LOGIN_TRIGGER_ADVICE
    if "timeout expired" in message:
        return (
            "check address, port and firewall: nothing answers there; connect_timeout=SECONDS in -d waits longer; "
            f"where the replication connection works, an event trigger on login may hang: {LOGIN_TRIGGER_ADVICE}"
        )
    return None


def _open_sql(connector: Connector) -> tuple[Connection | None, Attempt]:
    database = connector.given_dbname or "postgres"
    try:
        connection = prepared(connector.sql())
    except PolarvaultError as error:
        return None, Attempt(check="connection", database=database, error=error, user=connector.user)
    return connection, _worked("connection", database, connection)


def _open_replication(connector: Connector) -> tuple[Connection | None, ServerIdentity | None, Attempt]:
    try:
        connection = patient(connector.replication())
    except PolarvaultError as error:
        return None, None, Attempt(check="replication", database="replication", error=error, user=connector.user)
    try:
        identity = read_identity(connection)
    except ServerRefused as error:
        connection.close()
        return None, None, Attempt(check="replication", database="replication", error=error, user=connector.user)
    except PolarvaultError as error:
        return connection, None, Attempt(check="replication", database="replication", error=error, user=connector.user)
    return connection, identity, _worked("replication", "replication", connection)


def _worked(check: str, database: str, connection: Connection) -> Attempt:
    pgconn = connection.pgconn
    host, port = pgconn.host.decode(), pgconn.port.decode()
    where = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else f"{host}:{port}"
    return Attempt(check=check, database=database, error=None, where=where, user=pgconn.user.decode())


def _flat(message: str) -> str:
    return " ".join(message.split())
