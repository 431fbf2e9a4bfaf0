"""What this role, or this connection, could not be told: one finding, with the grants that would tell."""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.check.session import CheckSession, Unanswered
from polarvault.model.finding import Finding, Severity, ok
from polarvault.wire.commands import quote_identifier


def judge_visibility(session: CheckSession) -> list[Finding]:
    """Return the findings about questions without an answer."""
    role = session.value("SELECT current_user") or "ROLE"
    database = session.value("SELECT pg_catalog.current_database()") or "postgres"
    return judge_unanswered(session.unanswered, role=role, database=database)


def judge_unanswered(unanswered: Sequence[Unanswered], *, role: str, database: str) -> list[Finding]:
    """Return one finding for what the role may not see, and one for each question that failed.

    A role with nothing but REPLICATION is as it should be: what it may not see is named, no more.
    """
    findings = []
    hidden = [missed for missed in unanswered if missed.grant]
    if hidden:
        grants = sorted({missed.grant for missed in hidden if missed.grant}, reverse=True)
        lines = [f"GRANT {grant} TO {quote_identifier(role)};" for grant in grants]
        findings.append(
            ok(
                "visibility",
                role,
                f'not visible to role "{role}": {", ".join(dict.fromkeys(m.what for m in hidden))}',
                meaning="what depends on these was not checked; a backup does not need them",
                advice="\n".join([f'to check it, as a superuser, in database "{database}":', *lines]),
            )
        )
    for missed in unanswered:
        if not missed.grant:
            findings.append(
                Finding(
                    severity=Severity.WARNING,
                    check="unanswered",
                    subject=missed.what,
                    message=f"{missed.what}: {missed.reason}",
                    meaning="what depends on this was not checked",
                    advice="look into the server's log, and run the check again",
                )
            )
    return findings
