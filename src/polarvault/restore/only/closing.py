"""Databases that are left out refuse connections: by lines in pg_hba.conf from the start, later by the catalog."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from polarvault.instance.model import Account, Instance
from polarvault.instance.session import connect_server

_NOTE = (
    "# Written by polarvault restore --only: of the databases in the next lines nothing was restored but empty files.\n"
    "# Drop them, and then remove the lines.\n"
)


@dataclass(frozen=True, slots=True)
class Closed:
    """A database that was left out; problem: why its connections are not forbidden in the catalog, None: they are."""

    name: str
    problem: str | None = None


def reject_lines(names: Iterable[str]) -> bytes:
    """Return the lines of pg_hba.conf that let nobody into some databases; to stand in front of all others."""
    lines = []
    for name in sorted(names):
        # A name that the file cannot hold, or that would mean something else there, is closed in the catalog alone.
        if '"' in name or "\n" in name or name[:1] in ("/", "@", "+"):
            continue
        lines += [f'local "{name}" all reject\n', f'host "{name}" all all reject\n']
    return (_NOTE + "".join(lines) + "\n").encode("utf-8", "surrogateescape") if lines else b""


def close_databases(instance: Instance, account: Account, host: str, port: int, names: Iterable[str]) -> list[Closed]:
    """Forbid connections in the catalog of a server that can be written; never raises for a server's refusal."""
    import psycopg
    from psycopg import sql

    found = []
    for name in sorted(names):
        problem = None
        try:
            with connect_server(instance, account, host, port) as connection:
                connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        except psycopg.Error as refused:
            problem = str(refused).strip()
        found.append(Closed(name, problem))
    return found
