"""Create and drop the replication slot that holds WAL back for a receiver."""

from __future__ import annotations

from polarvault.errors import ServerError
from polarvault.server.connection import Connector
from polarvault.wire import commands

_DUPLICATE_OBJECT = "42710"


def create_slot(connector: Connector, name: str, *, if_not_exists: bool) -> None:
    """Create a physical slot that reserves WAL from now on; raise ServerError."""
    connection = connector.replication()
    try:
        connection.query(commands.create_physical_slot_command(name, connection.server_version_num))
    except ServerError as problem:
        if not (if_not_exists and problem.sqlstate == _DUPLICATE_OBJECT):
            raise
    finally:
        connection.close()


def drop_slot(connector: Connector, name: str) -> None:
    """Drop a slot; raise ServerError, also while somebody uses it."""
    connection = connector.replication()
    try:
        connection.query(f"DROP_REPLICATION_SLOT {commands.quote_identifier(name)}")
    finally:
        connection.close()
