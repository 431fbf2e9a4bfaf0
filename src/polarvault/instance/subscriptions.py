"""Logical subscriptions that a restored server has from its source: they must not take the source's place.

A subscription connects to its publisher by itself and goes on at the slot there, which then is lost for the source: the
slot's changes go to the copy. The server is started without workers for them (max_logical_replication_workers), and
once it can be written the subscriptions are disabled in its catalogs, so that they stay off whatever is set later.
"""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.instance.model import Account, Instance
from polarvault.instance.session import connect_server

_ENABLED = (
    "SELECT d.datname, s.subname FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid"
    " WHERE s.subenabled ORDER BY 1, 2"
)


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription that was enabled in the source; problem: why it is not disabled, None: it is."""

    database: str
    name: str
    problem: str | None = None


def disable_subscriptions(instance: Instance, account: Account, host: str, port: int) -> list[Subscription]:
    """Disable every subscription of a server that can be written; return them. Never raises for a server's refusal."""
    import psycopg
    from psycopg import sql

    try:
        with connect_server(instance, account, host, port) as connection:
            enabled = connection.execute(_ENABLED).fetchall()
    except psycopg.Error:
        return []  # Whoever cannot log in was told so; the workers are off all the same.
    found = []
    for database, name in enabled:
        problem = None
        try:
            # Only a session in its database may do it.
            with connect_server(instance, account, host, port, dbname=database) as connection:
                connection.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(sql.Identifier(name)))
        except psycopg.Error as refused:
            problem = str(refused).strip()
        found.append(Subscription(database, name, problem))
    return found
