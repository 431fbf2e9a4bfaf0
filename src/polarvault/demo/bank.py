"""The demo's data: a ledger that proves itself, and a writer that never stops.

Each transaction of the writer adds one event and changes the balance of one account, so for every moment of the past
the balances follow from the events so far. A copy is right when its balances are those that the source's events up to
the copy's last event give, and when those events are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import psycopg

ACCOUNTS = 1000

_CREATE = """
CREATE TABLE documents (id int PRIMARY KEY, body text NOT NULL);
INSERT INTO documents
    SELECT n, (SELECT string_agg(md5(n::text || part), '') FROM generate_series(1, 24) part)
    FROM generate_series(1, {documents}) n;
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO accounts SELECT n, 0 FROM generate_series(0, {last_account}) n;
CREATE TABLE events (id bigint PRIMARY KEY, account int NOT NULL, amount int NOT NULL);
"""
_WRITE = """
WITH event AS (INSERT INTO events VALUES (%(id)s, %(account)s, %(amount)s) RETURNING account, amount)
UPDATE accounts SET balance = balance + amount FROM event WHERE accounts.id = event.account
"""
# Sums of hashes do not depend on the order of rows, and need no sorting.
_DIGEST = (
    "SELECT count(*), coalesce(substr(md5(sum(hashtextextended(t::text, 0)::numeric)::text), 1, 12), '-') FROM {} t"
)
_BALANCES_AT = """(
    SELECT accounts.id, coalesce(sum(amount), 0)::bigint AS balance
    FROM accounts LEFT JOIN events ON events.account = accounts.id AND events.id <= {last} GROUP BY accounts.id
)"""


class Queries(Protocol):
    """A server that answers SQL."""

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run SQL and return the rows."""
        ...


# What a drill asks: 1000 accounts, and between them the balances that the events make up.
BALANCES_HOLD = f"""
SELECT (SELECT count(*) FROM accounts) = {ACCOUNTS}
   AND (SELECT sum(balance) FROM accounts) = (SELECT coalesce(sum(amount), 0) FROM events)
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One table, in the source as of the copy's last event, and in the copy."""

    table: str
    source_rows: int
    restored_rows: int
    source_hash: str
    restored_hash: str

    @property
    def equal(self) -> bool:
        """Tell whether both sides are the same."""
        return (self.source_rows, self.source_hash) == (self.restored_rows, self.restored_hash)


def create_bank(server: Queries, *, documents: int) -> None:
    """Create and fill the tables; a document takes about 800 bytes."""
    server.query(_CREATE.format(documents=documents, last_account=ACCOUNTS - 1))


def last_event(server: Queries) -> int:
    """Return the number of the last event, 0 when there is none."""
    return int(server.query("SELECT coalesce(max(id), 0) FROM events")[0][0])


def digest(server: Queries, table: str) -> tuple[int, str]:
    """Return the number of rows of a table, and a hash of them all."""
    ((rows, content),) = server.query(_DIGEST.format(table))
    return int(rows), str(content)


def make_a_mistake(server: Queries) -> None:
    """Do what nobody wanted to do: lose half of the accounts, and the balances of the others."""
    server.query("DELETE FROM accounts WHERE id % 2 = 0")
    server.query("UPDATE accounts SET balance = 0")


def compare_banks(source: Queries, restored: Queries) -> list[Comparison]:
    """Compare a copy with its source, which may have gone on since."""
    last = last_event(restored)
    found = []
    for table, of_source in (
        ("documents", "documents"),
        ("events", f"(SELECT * FROM events WHERE id <= {last})"),
        ("accounts", _BALANCES_AT.format(last=last)),
    ):
        ((source_rows, source_hash),) = source.query(_DIGEST.format(of_source))
        ((restored_rows, restored_hash),) = restored.query(_DIGEST.format(table))
        found.append(Comparison(table, source_rows, restored_rows, source_hash, restored_hash))
    return found


class Writer:
    """A thread that writes events, one transaction each, from `with` to its end."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        self._stopping = threading.Event()
        self._first_written = threading.Event()
        self._problem: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._write, name="demo writer")

    def __enter__(self) -> Self:
        self._thread.start()
        self._first_written.wait(30)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._problem is not None and kind is None:
            raise self._problem

    def _write(self) -> None:
        try:
            with self._connect() as connection:
                number = 0
                while not self._stopping.is_set():
                    number += 1
                    # Any spread of accounts and amounts will do, so it is computed and can be repeated.
                    values = {"id": number, "account": number * 7919 % ACCOUNTS, "amount": number * 31 % 997 - 498}
                    connection.execute(_WRITE, values)
                    self._first_written.set()
        except psycopg.Error as problem:
            # The server went away under us; reported when the block ends, unless that ends with an error of its own.
            self._problem = problem
            self._first_written.set()
