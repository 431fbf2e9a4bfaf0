"""Which node this is, and whether a backup should be taken from it. PolarDB's node types are judged in polardb.py."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.check.session import CheckSession
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """The role of the node. The rest is about a standby and None elsewhere, or where it is not told.

    primary_full_page_writes: the primary's setting at the last restartpoint. behind_bytes: received and not replayed.
    replay_age_s: age of the last replayed commit. last_commit: its time, UTC.
    """

    in_recovery: bool
    primary_full_page_writes: bool | None = None
    has_wal_receiver: bool | None = None
    replay_paused: bool | None = None
    behind_bytes: int | None = None
    last_commit: str | None = None


def check_node(session: CheckSession) -> list[Finding]:
    """Return the findings about the node's role."""
    in_recovery = session.in_recovery
    if in_recovery is None or (in_recovery and session.is_polardb):
        return []
    return judge_node(read_node(session, in_recovery=in_recovery))


def read_node(session: CheckSession, *, in_recovery: bool) -> NodeFacts:
    """Ask a standby how it is fed; a primary needs no question."""
    if not in_recovery:
        return NodeFacts(in_recovery=False)
    row = session.row(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver WHERE pid IS NOT NULL) AS receiver,"
        " pg_catalog.pg_is_wal_replay_paused() AS paused,"
        " pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())"
        " AS behind, pg_catalog.pg_last_xact_replay_timestamp() AS last_commit",
        what="state of the standby",
    )
    # The last restartpoint's record was written by the primary: this is its setting, not ours.
    full_page_writes = session.value(
        "SELECT full_page_writes FROM pg_catalog.pg_control_checkpoint()", what="the last restartpoint"
    )
    row = row or {}
    return NodeFacts(
        in_recovery=True,
        primary_full_page_writes=None if full_page_writes is None else full_page_writes == "t",
        has_wal_receiver=row["receiver"] == "t" if row else None,
        replay_paused=row["paused"] == "t" if row else None,
        behind_bytes=max(int(row["behind"] or 0), 0) if row else None,
        last_commit=row.get("last_commit"),
    )


def judge_node(facts: NodeFacts) -> list[Finding]:
    """Return the findings about the node's role."""
    if not facts.in_recovery:
        return [ok("node-role", "node", "this is the primary: any backup can be taken from it")]
    if facts.primary_full_page_writes is False:
        return [
            problem(
                "node-role",
                "full_page_writes",
                "this is a standby whose primary runs with full_page_writes = off",
                meaning="the server refuses base backups: WAL without full-page images cannot mend pages that were "
                "copied while they were written",
                advice="take the backup from the primary; or on the primary:\n"
                "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf(); CHECKPOINT;\n"
                "and on this standby, once it has replayed that: CHECKPOINT;",
            )
        ]
    state = f"; its last replayed commit is of {facts.last_commit[:19]} UTC" if facts.last_commit else ""
    if facts.replay_paused:
        return [
            warning(
                "node-role",
                "replay",
                f"this is a standby whose replay is paused{state}",
                meaning="a backup from here is as old as what has been replayed",
                advice="SELECT pg_wal_replay_resume();",
            )
        ]
    if facts.has_wal_receiver is False:
        return [
            warning(
                "node-role",
                "WAL receiver",
                f"this is a standby that streams from nobody{state}",
                meaning="it is fed by restore_command or not at all; a backup from here may be older than you think",
                advice="look at primary_conninfo and the server's log; or take the backup from the primary",
            )
        ]
    behind = f", {format_bytes(facts.behind_bytes)} to replay" if facts.behind_bytes is not None else ""
    return [
        ok(
            "node-role",
            "node",
            f"this is a standby{behind}: a backup from it spares the primary; it fails if the standby is promoted "
            "meanwhile",
        )
    ]
