"""Which of PolarDB's three kinds of node this is. A replica, which PolarDB calls an RO node, cannot be backed up.

A replica answers BASE_BACKUP as if all were well: its own local half, the primary's live storage, and a label that
contradicts pg_control. What it delivers cannot be restored (facts 5.2).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from polarvault.check.connection.node import judge_node, read_node
from polarvault.check.polardb.monitor import INSTALL, monitor_schema
from polarvault.check.session import CheckSession
from polarvault.check.verdict import setting_change
from polarvault.model.finding import Finding, ok, problem, warning


@dataclass(frozen=True, slots=True, kw_only=True)
class PolarNodeFacts:
    """node_type: primary, replica or standby; None when nobody tells. primary: where the primary can be reached."""

    in_recovery: bool
    node_type: str | None
    primary: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """The settings that bring a replica down; None is unknown."""

    archive_mode: str | None
    restore_command: str | None


def check_polardb_node(session: CheckSession) -> tuple[str | None, list[Finding]]:
    """Return the node type and the findings about it; a primary's finding is of the general check."""
    facts = read_polardb_node(session)
    if facts is None:
        return None, []
    findings = judge_polardb_node(facts)
    if facts.node_type == "standby":
        findings += judge_node(read_node(session, in_recovery=True))
    return facts.node_type, findings


def read_polardb_node(session: CheckSession) -> PolarNodeFacts | None:
    """Ask what the node is; None without any connection.

    polar_node_type() tells every role, and the signal file those who may look. During archive recovery the function
    says primary.
    """
    in_recovery = session.in_recovery
    if in_recovery is None:
        return None
    if not in_recovery:
        return PolarNodeFacts(in_recovery=False, node_type="primary")
    node_type = None
    if schema := monitor_schema(session):
        node_type = session.value(f"SELECT {schema}.polar_node_type()")
    if node_type not in ("primary", "replica", "standby"):
        node_type = session.value(
            "SELECT CASE WHEN (pg_catalog.pg_stat_file('replica.signal', true)).size IS NOT NULL THEN 'replica'"
            " WHEN (pg_catalog.pg_stat_file('standby.signal', true)).size IS NOT NULL THEN 'standby'"
            " ELSE 'primary' END"
        )
    primary = _read_primary(session) if node_type != "standby" else None
    return PolarNodeFacts(in_recovery=True, node_type=node_type, primary=primary)


def _read_primary(session: CheckSession) -> tuple[str, str] | None:
    """Return host and port of the server that this node follows; needs pg_monitor."""
    row = session.row("SELECT sender_host, sender_port FROM pg_catalog.pg_stat_wal_receiver")
    if row and row["sender_host"] and row["sender_port"]:
        return row["sender_host"], row["sender_port"]
    return primary_address(session.value("SELECT pg_catalog.current_setting('primary_conninfo', true)") or "")


def primary_address(conninfo: str) -> tuple[str, str] | None:
    """Return host and port out of a primary_conninfo; None when there is no host in it."""
    try:
        words = conninfo_to_dict(conninfo)
    except ProgrammingError:
        return None
    host = words.get("host") or words.get("hostaddr")
    return (str(host), str(words.get("port") or 5432)) if host else None


def judge_polardb_node(facts: PolarNodeFacts) -> list[Finding]:
    """Return the findings about the kind of node; none for a standby, which is judged as any other."""
    if not facts.in_recovery:
        return [ok("polardb-node", "primary", "node type primary: take the backup from here")]
    if facts.node_type == "standby":
        return [ok("polardb-node", "standby", "node type standby, on storage of its own")]
    if facts.node_type == "replica":
        return [_replica(facts.primary)]
    if facts.node_type == "primary":
        return [
            warning(
                "polardb-node",
                "primary",
                "this node is in archive recovery and will be a primary",
                meaning="a backup from here is as old as what has been recovered, and fails if recovery ends then",
                advice="wait until recovery has ended, then check again: SELECT pg_is_in_recovery();",
            )
        ]
    return [
        warning(
            "polardb-node",
            "node",
            "this node is in recovery; whether it is a standby or a read-only node (replica) is not told to this role",
            meaning="a backup of a read-only node looks good and cannot be restored; polarvault basebackup refuses it "
            "when it meets replica.signal",
            advice=f"on the primary, in the database that you connect to: {INSTALL}\nor check the primary: "
            + _command(facts.primary),
        )
    ]


def _replica(primary: tuple[str, str] | None) -> Finding:
    return problem(
        "polardb-node",
        "replica",
        "this is a read-only node (replica) on the primary's storage"
        + (f"; its primary is {primary[0]}:{primary[1]}" if primary else ""),
        meaning="a backup of it looks good and cannot be restored: its label contradicts the primary's pg_control; "
        "polarvault basebackup refuses it",
        advice=f"take the backup from the primary: {_command(primary)}",
    )


def _command(primary: tuple[str, str] | None) -> str:
    if primary is None:
        return "polarvault check -h PRIMARY"
    host, port = primary
    return f"polarvault check -h {shlex.quote(host)} -p {shlex.quote(port)}"


def read_replica_settings(session: CheckSession) -> ReplicaSettings:
    """Ask for the settings that a replica must not have."""
    return ReplicaSettings(
        archive_mode=session.setting("archive_mode"), restore_command=session.setting("restore_command")
    )


def judge_replica_settings(facts: ReplicaSettings) -> list[Finding]:
    """Return the findings about settings that make a replica PANIC, because it may not write to the storage."""
    findings = []
    if facts.archive_mode == "always":
        findings.append(
            problem(
                "polardb-replica-archiving",
                "archive_mode",
                "archive_mode is always on a read-only node",
                meaning="when the primary's archiver is slow or fails, this node tries to mark the primary's WAL as "
                'archived and dies again and again: "PANIC: replica can\'t modify file in shared storage"',
                advice=f"on this node: {setting_change('archive_mode', 'off', restart=True)}",
            )
        )
    if facts.restore_command:
        findings.append(
            warning(
                "polardb-replica-restore-command",
                "restore_command",
                "restore_command is set on a read-only node",
                meaning="when WAL is missing at its start, the node tries to restore it into the primary's storage and "
                'dies: "PANIC: replica can\'t modify file in shared storage"',
                advice=f"on this node: {setting_change('restore_command', chr(39) * 2, restart=False)}",
            )
        )
    return findings
