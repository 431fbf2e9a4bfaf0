"""-R: the lines for postgresql.auto.conf that make the backup a standby of the server it was taken from."""

from __future__ import annotations

from polarvault.server.connection import Connection

STANDBY_SIGNAL = "standby.signal"
AUTO_CONF = "postgresql.auto.conf"
# Set by us or meaningless for a standby's own connection (server: fe_utils/recovery_gen.c).
_SKIPPED = {"replication", "fallback_application_name", "dbname"}


def recovery_settings(
    connection: Connection, *, slot: str | None, dbname: str | None, shared_data_directory: str | None
) -> bytes:
    """Return the lines to append.

    dbname is written only when the user named one (PostgreSQL 17 uses it for slot synchronisation). On PolarDB the
    copy must not point at the live storage, which it would open as a second writer (facts 4.2).
    """
    words = []
    for option in connection.pgconn.info:
        name = option.keyword.decode()
        if name in _SKIPPED or not option.val:
            continue
        words.append(f"{name}={_conninfo_value(option.val.decode())}")
    if dbname is not None:
        words.append(f"dbname={_conninfo_value(dbname)}")
    lines = [f"primary_conninfo = {_quoted(' '.join(words))}"]
    if slot is not None:
        lines.append(f"primary_slot_name = {_quoted(slot)}")
    if shared_data_directory is not None:
        lines.append(f"polar_datadir = {_quoted('file-dio://' + shared_data_directory)}")
    return ("\n".join(lines) + "\n").encode()


def _conninfo_value(value: str) -> str:
    if value and value.replace("_", "").replace(".", "").replace("-", "").isalnum():
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
