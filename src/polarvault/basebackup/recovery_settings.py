"""-R: the lines for postgresql.auto.conf that make the backup a standby of the server it was taken from."""

from __future__ import annotations

from polarvault.server.connection import Connection

STANDBY_SIGNAL = "standby.signal"
AUTO_CONF = "postgresql.auto.conf"
# Set by us or meaningless for a standby's own connection (server: fe_utils/recovery_gen.c).
_SKIPPED = {"replication", "fallback_application_name", "dbname"}
# The standby reads the lines with the libpq of its own version, which refuses a connection string with a keyword that
# it does not know (manual of each version, "Parameter Key Words"): keyword -> first server version that has it.
_SINCE = {
    "sslcrldir": 140000,
    "sslsni": 140000,
    "require_auth": 160000,
    "sslcertmode": 160000,
    "gssdelegation": 160000,
    "load_balance_hosts": 160000,
    "sslnegotiation": 170000,
    "min_protocol_version": 180000,
    "max_protocol_version": 180000,
    "sslkeylogfile": 180000,
    "scram_client_key": 180000,
    "scram_server_key": 180000,
    "oauth_issuer": 180000,
    "oauth_client_id": 180000,
    "oauth_client_secret": 180000,
    "oauth_scope": 180000,
    "servicefile": 190000,
}
_SLOT_SYNCHRONISATION = 170000


def recovery_settings(
    connection: Connection, *, slot: str | None, dbname: str | None, shared_data_directory: str | None
) -> bytes:
    """Return the lines to append.

    Defaults of the libpq in use are left out: another build's may differ (without Kerberos it says gssencmode=disable).
    dbname is written only when the user named one, for PostgreSQL 17 and later, which synchronises slots with it. On
    PolarDB the copy must not point at the live storage, which it would open as a second writer (facts 4.2).
    """
    words = []
    version = connection.server_version_num
    for option in connection.pgconn.info:
        name = option.keyword.decode()
        if name in _SKIPPED or not option.val or version < _SINCE.get(name, 0):
            continue
        if option.val == option.compiled and name not in ("host", "port", "user"):
            continue
        words.append(f"{name}={_conninfo_value(option.val.decode())}")
    if dbname is not None and version >= _SLOT_SYNCHRONISATION:
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
