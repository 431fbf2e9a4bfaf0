"""Refuse to back up a PolarDB read-only node: such a backup looks good and cannot be restored (facts 5.2)."""

from __future__ import annotations

from polarvault.errors import PolarvaultError, ServerRefused
from polarvault.server.connection import Connector
from polarvault.server.identity import ServerIdentity


def refuse_replica(identity: ServerIdentity, connector: Connector) -> None:
    """Raise ServerRefused if SQL tells that the server is a read-only node.

    A primary is not in recovery. A node in recovery is a standby or a replica; polar_node_type() of the extension
    polar_monitor tells which, as does the signal file for those who may look. Where neither can be asked, the replica's
    signal file in the backup itself ends it a moment later.
    """
    if not identity.in_recovery:
        return
    try:
        connection = connector.sql()
    except PolarvaultError:
        return
    try:
        for question in (
            "SELECT polar_node_type()",
            "SELECT 'replica' FROM pg_stat_file('replica.signal', true) AS found WHERE found.size IS NOT NULL",
        ):
            try:
                rows = connection.query(question).rows
            except PolarvaultError:
                continue
            if rows and rows[0][0] == "replica":
                raise replica_refusal()
    finally:
        connection.close()


def replica_refusal() -> ServerRefused:
    """Return the refusal for a read-only node."""
    return ServerRefused(
        "this server is a read-only node (replica) on shared storage; a backup of it cannot be restored",
        hint="connect to the primary: SELECT pg_is_in_recovery() returns f there",
    )
