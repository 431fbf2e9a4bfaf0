"""Whether the role may take a backup, and what else it may do: attributes, limits, functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polarvault.check.session import CheckSession
from polarvault.model import versions
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.wire.commands import quote_identifier

_EXPIRES_SOON_DAYS = 14.0
_ALWAYS = ("pg_switch_wal()", "pg_create_restore_point(text)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFacts:
    """What pg_roles says; connection_limit -1 for none, expires_in_days None for never.

    limit_refused_us: the walsender of this check was refused for the limit. Old minor releases count walsenders (seen
    on 13.16), newer ones do not (15.20, 18.6), so that only a try tells.
    functions: those that a superuser may always call, and whether this role may.
    """

    name: str
    database: str
    superuser: bool
    replication: bool
    connection_limit: int
    limit_refused_us: bool
    expires_in_days: float | None
    functions: Mapping[str, bool]


def check_role(session: CheckSession) -> list[Finding]:
    """Return the findings about the role's rights."""
    facts = read_role(session)
    return judge_role(facts) if facts else []


def read_role(session: CheckSession) -> RoleFacts | None:
    """Ask for the role's attributes; None where SQL is refused."""
    row = session.row(
        "SELECT rolname, rolsuper, rolreplication, rolconnlimit, pg_catalog.current_database() AS database,"
        " extract(epoch FROM nullif(rolvaliduntil, 'infinity') - pg_catalog.now()) / 86400 AS days"
        " FROM pg_catalog.pg_roles WHERE rolname = current_user",
        what="attributes of the role",
    )
    if row is None:
        return None
    names = (*versions.of_server(session.version_num).backup_functions, *_ALWAYS)
    granted = {
        name: session.value(f"SELECT pg_catalog.has_function_privilege('pg_catalog.{name}', 'EXECUTE')")
        for name in names
    }
    return RoleFacts(
        name=row["rolname"] or "",
        database=row["database"] or "",
        superuser=row["rolsuper"] == "t",
        replication=row["rolreplication"] == "t",
        connection_limit=int(row["rolconnlimit"] or -1),
        limit_refused_us="too many connections for role" in (session.refusal or ""),
        expires_in_days=float(row["days"]) if row["days"] else None,
        functions={name: answer == "t" for name, answer in granted.items() if answer is not None},
    )


def judge_role(facts: RoleFacts) -> list[Finding]:
    """Return the findings about attributes, limits and functions."""
    return [*_attributes(facts), *_limit(facts), *_expiry(facts), *_functions(facts)]


def _attributes(facts: RoleFacts) -> list[Finding]:
    if facts.superuser:
        return [ok("role", facts.name, f'role "{facts.name}" is a superuser')]
    if facts.replication:
        return [ok("role", facts.name, f'role "{facts.name}" has REPLICATION')]
    return [
        problem(
            "role",
            facts.name,
            f'role "{facts.name}" has neither REPLICATION nor superuser',
            meaning="the server refuses it as a walsender: no base backup can be taken and no WAL received",
            advice=f"as a superuser: ALTER ROLE {quote_identifier(facts.name)} REPLICATION;",
        )
    ]


def _limit(facts: RoleFacts) -> list[Finding]:
    if not facts.limit_refused_us:
        return []
    return [
        problem(
            "role-connection-limit",
            facts.name,
            f'role "{facts.name}" has CONNECTION LIMIT {facts.connection_limit}, and this server counts walsenders too',
            meaning="a backup with -X stream opens two connections at once, besides any for SQL",
            advice=f"as a superuser: ALTER ROLE {quote_identifier(facts.name)} CONNECTION LIMIT -1;",
        )
    ]


def _expiry(facts: RoleFacts) -> list[Finding]:
    days = facts.expires_in_days
    if days is None or days > _EXPIRES_SOON_DAYS:
        return []
    when = f"expires in {days:.0f} days" if days > 0 else f"expired {-days:.0f} days ago"
    return [
        warning(
            "role-expiry",
            facts.name,
            f'the password of role "{facts.name}" {when} (VALID UNTIL)',
            meaning="from then on backups that log in with a password fail",
            advice=f"as a superuser: ALTER ROLE {quote_identifier(facts.name)} VALID UNTIL 'infinity';",
        )
    ]


def _functions(facts: RoleFacts) -> list[Finding]:
    missing = [name for name, granted in facts.functions.items() if not granted]
    if not missing:
        may = f'role "{facts.name}" may call {_names(facts.functions)}'
        return [] if facts.superuser or not facts.functions else [ok("role-functions", facts.name, may)]
    grants = [f"GRANT EXECUTE ON FUNCTION pg_catalog.{name} TO {quote_identifier(facts.name)};" for name in missing]
    # Nothing of ours calls them: a role that has what a backup needs, and no more, is as it should be.
    finding = ok if facts.replication else warning
    return [
        finding(
            "role-functions",
            facts.name,
            f'role "{facts.name}" may not call {_names(missing)}',
            meaning="polarvault basebackup needs none of them; backups that copy files themselves, restore points and "
            "WAL switches do",
            advice="\n".join([f'as a superuser, in database "{facts.database}":', *grants]),
        )
    ]


def _names(functions: Mapping[str, bool] | list[str]) -> str:
    return ", ".join(name.split("(")[0] for name in functions)
