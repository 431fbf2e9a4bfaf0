"""The replication slot that holds WAL back for a receiver: create it, drop it, say that it has failed."""

from __future__ import annotations

from polarvault.errors import ServerError, SlotLost
from polarvault.model.lsn import Lsn
from polarvault.server.connection import Connection, Connector
from polarvault.wire import commands

_DUPLICATE_OBJECT = "42710"
# What to do about the server's refusal, by its SQLSTATE; the name of the slot goes in.
_NEXT_STEPS = {
    _DUPLICATE_OBJECT: "use it as it is (-S {0}), say --if-not-exists, or drop it first: --drop-slot -S {0}",
    "42704": "see which slots there are: SELECT slot_name, slot_type, active FROM pg_replication_slots",
    "55006": "stop what receives with it, or, to end that from here: "
    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{0}'",
}


def create_slot(connector: Connector, name: str, *, if_not_exists: bool, reserve_wal: bool) -> None:
    """Create a physical slot; raise ServerError.

    It holds WAL back from its first use on, as one that pg_receivewal makes; with reserve_wal from now on.
    """
    connection = connector.replication()
    try:
        connection.query(
            commands.create_physical_slot_command(name, connection.server_version_num, reserve_wal=reserve_wal)
        )
    except ServerError as problem:
        if not (if_not_exists and problem.sqlstate == _DUPLICATE_OBJECT):
            _add_next_step(problem, name)
            raise
    finally:
        connection.close()


def ensure_slot(connection: Connection, name: str) -> bool:
    """Create a physical slot that holds WAL from now on, on this very server; False if there is one. ServerError."""
    try:
        connection.query(commands.create_physical_slot_command(name, connection.server_version_num, reserve_wal=True))
    except ServerError as problem:
        if problem.sqlstate == _DUPLICATE_OBJECT:
            return False
        _add_next_step(problem, name)
        raise
    return True


def drop_slot(connector: Connector, name: str) -> None:
    """Drop a slot; raise ServerError, also while somebody uses it."""
    connection = connector.replication()
    try:
        connection.query(f"DROP_REPLICATION_SLOT {commands.quote_identifier(name)}")
    except ServerError as problem:
        _add_next_step(problem, name)
        raise
    finally:
        connection.close()


def _add_next_step(problem: ServerError, name: str) -> None:
    next_step = _NEXT_STEPS.get(problem.sqlstate)
    if next_step is not None and problem.hint is None:
        problem.hint = next_step.format(name)


def lost_slot_error(slot: str, position: Lsn, segment: str, words: str, *, hint: str) -> SlotLost:
    """Say that the slot has lost WAL that was not received, and how to go on: hint, of the store."""
    return SlotLost(
        f'slot "{slot}" has lost WAL: the server no longer has WAL from {position} on (segment {segment}): {words}',
        hint=f"drop the slot (polarvault receivewal --drop-slot -S {slot}), {hint}. A larger max_slot_wal_keep_size "
        "on the server keeps this from happening again",
    )
