"""SQL sessions with a server that runs on this machine, as a superuser of it that is likely to exist."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from polarvault.instance.model import Account, Instance
from polarvault.model import versions
from polarvault.server.session_settings import SESSION_SETTINGS, later_settings, later_statement, startup_options
from polarvault.storage.identity import thread_working_as

if TYPE_CHECKING:
    import psycopg

_CONNECT_TIMEOUT_S = 10


def ask_value(connection: psycopg.Connection[Any], query: str) -> Any:
    """Return the first value of a query's first row, None without rows."""
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def likely_superusers(account: Account, wanted: str | None) -> list[str]:
    """Return the role that the user named, or else those that a superuser most often has, best first."""
    return list(dict.fromkeys([wanted] if wanted else ["postgres", account.name, os.environ.get("PGUSER", "postgres")]))


def connect_server(
    instance: Instance, account: Account, host: str, port: int, *, dbname: str = "template1"
) -> psycopg.Connection[Any]:
    """Connect as a superuser that is likely to exist; with peer authentication the operating system user counts.

    The session depends on no default of the server. Raises psycopg.OperationalError, whatever connecting raises.
    """
    import psycopg

    problem: psycopg.OperationalError | None = None
    for settings in _settings_to_try(instance):
        for user in likely_superusers(account, instance.superuser):
            try:
                with acting_as(account):
                    connection = _connect(host, port, user, dbname, startup_options(settings))
                later = later_statement(connection.info.server_version)
                for statement in later.split("; ") if later else ():
                    connection.execute(statement.encode())
                return connection
            except psycopg.OperationalError as refused:
                problem = problem or refused
    assert problem is not None
    raise problem


def _settings_to_try(instance: Instance) -> list[Mapping[str, str]]:
    """Return the settings of a session, best first: only a superuser may keep a login trigger from firing (17)."""
    try:
        with open(os.path.join(instance.data_directory, "PG_VERSION"), encoding="ascii") as stream:
            major = int(stream.read(16))
    except (OSError, ValueError):
        major = 0
    # With the login: a role's idle_session_timeout of a millisecond would end the session before its first statement.
    known = {**SESSION_SETTINGS, **later_settings(major * 10000)} if major else SESSION_SETTINGS
    if not versions.of_server(major * 10000).can_disable_event_triggers:
        return [known]
    return [{**known, "event_triggers": "off"}, known]


def _connect(host: str, port: int, user: str, dbname: str, options: str) -> psycopg.Connection[Any]:
    import psycopg

    # A template1 in SQL_ASCII would have psycopg return bytes for text.
    words: dict[str, Any] = {
        "host": host, "port": port, "user": user, "dbname": dbname, "client_encoding": "UTF8", "options": options,
    }  # fmt: skip
    try:
        if host.startswith("@"):
            return _connect_to_abstract_socket(words)
        return psycopg.connect("", autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, **words)
    except (UnicodeError, ValueError, OSError) as problem:
        # psycopg looks a host up itself, and Python refuses some names before it asks anybody.
        raise psycopg.OperationalError(f"host {host!r} cannot be used: {problem}") from problem


def _connect_to_abstract_socket(words: dict[str, Any]) -> psycopg.Connection[Any]:
    """Connect to a socket without a file; psycopg's own connect takes its name for a host's."""
    import psycopg
    from psycopg import generators, waiting
    from psycopg.conninfo import make_conninfo

    made = generators.connect(make_conninfo("", **words))
    connection: psycopg.Connection[Any] = psycopg.Connection(waiting.wait_conn(made, timeout=_CONNECT_TIMEOUT_S))
    connection.autocommit = True
    return connection


def acting_as(account: Account) -> AbstractContextManager[None]:
    """Use the account's identity, for a connection (peer authentication looks at it) or to see what it may reach."""
    return thread_working_as(account.uid)
