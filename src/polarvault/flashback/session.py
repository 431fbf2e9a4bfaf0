"""SQL and the server's own programs in a clone, as its superuser, whatever the defaults of the source are."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from polarvault.clones.model import CloneRecord
from polarvault.model import versions
from polarvault.server.session_settings import SESSION_SETTINGS, startup_options

Connection = psycopg.Connection[tuple[Any, ...]]
_CONNECT_TIMEOUT_S = 60


def conninfo_of(record: CloneRecord, database: str) -> str:
    """Return the connection string over the private socket."""
    return make_conninfo(
        "", host=record.socket_directory, port=str(record.port), user=record.superuser, dbname=database,
        connect_timeout=str(_CONNECT_TIMEOUT_S),
    )  # fmt: skip


def options_of(record: CloneRecord) -> str:
    """Return the settings of every session, as libpq's options: no trigger of the source's does anything here."""
    version = versions.of_server(record.major * 10000)
    no_triggers = {"event_triggers": "off"} if version.can_disable_event_triggers else {}
    more = {"role": "none", "session_replication_role": "replica", "row_security": "off", "jit": "off"}
    return startup_options({**SESSION_SETTINGS, **version.session_settings, **more, **no_triggers})


def connect(record: CloneRecord, database: str) -> Connection:
    """Connect to a database of a clone, in autocommit; raise psycopg.Error."""
    connection = psycopg.connect(
        conninfo_of(record, database), autocommit=True, options=options_of(record), client_encoding="UTF8"
    )
    connection.prepare_threshold = None
    return connection


def databases_of(record: CloneRecord) -> list[str]:
    """Return the databases that can be connected to; raise psycopg.Error."""
    with connect(record, "template1") as connection:
        # -2 is what an interrupted DROP DATABASE leaves (server: DATCONNLIMIT_INVALID_DB).
        rows = connection.execute(
            "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname"
        ).fetchall()
    return [str(row[0]) for row in rows]


def roll_back_prepared(record: CloneRecord) -> int:
    """Roll back what was prepared on the source, and would keep its locks here for ever; raise psycopg.Error."""
    with connect(record, "template1") as connection:
        prepared = connection.execute("SELECT gid, database FROM pg_prepared_xacts").fetchall()
    for gid, database in prepared:
        # Only a connection to its own database may do it.
        with connect(record, database) as connection:
            connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
    return len(prepared)
