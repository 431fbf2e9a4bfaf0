"""A random workload that changes, makes, shortens, moves and drops everything that a database has files for."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from support.cluster import Cluster

# One table has an index of every kind.
TABLES = """
CREATE TABLE {name} (id int, word text, point point, numbers int[], span int4range, filler text) WITH (fillfactor = 70);
CREATE INDEX ON {name} (id);
CREATE INDEX ON {name} USING hash (word);
CREATE INDEX ON {name} USING gist (point);
CREATE INDEX ON {name} USING gin (numbers);
CREATE INDEX ON {name} USING spgist (span);
CREATE INDEX ON {name} USING spgist (word);
CREATE INDEX ON {name} USING brin (id) WITH (pages_per_range = 4);
"""
ROWS = """
INSERT INTO {name} SELECT n, md5((n * {factor})::text), point(n % 97, n % 89), ARRAY[n % 7, n % 53, n],
    int4range(n, n + n % 13), repeat('x', n % {width} + 1) FROM generate_series({first}, {last}) n
"""


class RandomChanges:
    """Runs random changes on a cluster; the same seed runs the same ones."""

    def __init__(self, cluster: Cluster, seed: int, *, tablespace: str | None) -> None:
        self.cluster, self.chance = cluster, random.Random(seed)
        self.major = cluster.installation.major
        self.tablespace = tablespace
        self.tables: list[str] = []
        self.databases: list[str] = []
        self.made = 0
        self.done: list[str] = []

    def begin(self) -> None:
        """Make what is there before the changes that count."""
        for _ in range(3):
            self._create()
        self._query("CREATE UNLOGGED TABLE unlogged (n int); INSERT INTO unlogged SELECT generate_series(1, 5000)")
        self._query("CREATE SEQUENCE counter; CREATE TABLE steady (n int, filler text)")
        self._query("INSERT INTO steady SELECT n, repeat('s', 200) FROM generate_series(1, 40000) n")
        self._query("CREATE TABLE pages (n int PRIMARY KEY, balance int) WITH (fillfactor = 90)")
        self._query("INSERT INTO pages SELECT n, 0 FROM generate_series(1, 20000) n")
        self._query("VACUUM (FREEZE) steady", "VACUUM")
        self._query("CREATE DATABASE standing")

    def run(self, count: int) -> None:
        """Run so many changes."""
        changes = self._changes()
        # Each kind at least once, if there are enough.
        first = self.chance.sample(changes, min(count, len(changes)))
        for change in first + self.chance.choices(changes, k=max(0, count - len(first))):
            self.done.append(change.__name__)
            change()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Keep short transactions running beside, as pgbench would."""
        stop, chance, failures = threading.Event(), random.Random(self.chance.random()), []

        def load() -> None:
            try:
                with self.cluster.connect() as connection:
                    while not stop.is_set():
                        number = chance.randrange(20000)
                        connection.execute("UPDATE pages SET balance = balance + 1 WHERE n = %s", [number])
            except psycopg.Error as problem:
                failures.append(problem)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        assert not failures

    def _changes(self) -> list[Callable[[], None]]:
        found = [
            self._create, self._drop, self._insert, self._copy_in, self._update, self._delete, self._vacuum,
            self._vacuum_freeze, self._vacuum_full, self._truncate, self._cut_tail, self._reindex, self._cluster,
            self._prepare, self._roll_back, self._unlogged, self._set_logged, self._lock_frozen, self._sequence,
            self._checkpoint, self._switch, self._read, self._create_database, self._drop_database, self._large_object,
            self._toast, self._view, self._temporary, self._index,
        ]  # fmt: skip
        if self.tablespace:
            found += [self._move_table, self._move_database]
        return found

    def _query(self, *statements: str, dbname: str = "postgres") -> None:
        with self.cluster.connect(dbname) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def _name(self, prefix: str) -> str:
        self.made += 1
        return f"{prefix}{self.made}"

    def _some(self) -> str:
        if not self.tables:
            self._create()
        return self.chance.choice(self.tables)

    def _rows(self, name: str, count: int) -> str:
        first = self.chance.randrange(100_000)
        return ROWS.format(
            name=name, factor=self.chance.randrange(1, 9), width=self.chance.choice([1, 40, 400]),
            first=first, last=first + count,
        )  # fmt: skip

    def _create(self) -> None:
        name = self._name("t")
        self._query(TABLES.format(name=name) + self._rows(name, self.chance.choice([10, 800, 3000])))
        self.tables.append(name)

    def _drop(self) -> None:
        name = self._some()
        self.tables.remove(name)
        self._query(f"DROP TABLE {name}")

    def _insert(self) -> None:
        self._query(self._rows(self._some(), self.chance.choice([1, 50, 1500])))

    def _copy_in(self) -> None:
        statement = f"COPY {self._some()} (id, word) FROM STDIN".encode()
        with self.cluster.connect() as connection, connection.cursor() as cursor, cursor.copy(statement) as copy:
            for number in range(self.chance.choice([1, 3000])):
                copy.write_row((number, f"word {number}"))

    def _update(self) -> None:
        column = self.chance.choice(["filler = filler || 'u'", "word = md5(word)", "id = id + 1", "span = NULL"])
        self._query(f"UPDATE {self._some()} SET {column} WHERE id % {self.chance.choice([1, 7, 900])} = 0")

    def _delete(self) -> None:
        self._query(f"DELETE FROM {self._some()} WHERE id % {self.chance.choice([2, 11, 500])} = 0")

    def _vacuum(self) -> None:
        self._query(f"VACUUM {self._some()}")

    def _vacuum_freeze(self) -> None:
        self._query(f"VACUUM (FREEZE, ANALYZE) {self.chance.choice([self._some(), 'steady', 'pages'])}")

    def _vacuum_full(self) -> None:
        self._query(f"VACUUM FULL {self.chance.choice([self._some(), 'pg_class', 'pg_largeobject'])}")

    def _truncate(self) -> None:
        self._query(f"TRUNCATE {self._some()}", self._rows(self._some(), 20))

    def _cut_tail(self) -> None:
        name = self._some()
        self._query(f"DELETE FROM {name} WHERE ctid > '({self.chance.choice([0, 3, 20])},0)'", f"VACUUM {name}")
        if self.chance.random() < 0.5:
            self._query(self._rows(name, 400))

    def _reindex(self) -> None:
        self._query(f"REINDEX TABLE {self._some()}")

    def _cluster(self) -> None:
        name = self._some()
        self._query(f"CLUSTER {name} USING {name}_id_idx")

    def _index(self) -> None:
        name = self._some()
        index = self._name("i")
        self._query(f"CREATE INDEX CONCURRENTLY {index} ON {name} (word, id)")
        if self.chance.random() < 0.5:
            self._query(f"DROP INDEX {index}")

    def _prepare(self) -> None:
        name, gone = self._name("p"), self._name("g")
        self._query(f"CREATE TABLE {gone} (n int); INSERT INTO {gone} SELECT generate_series(1, 500)")
        self._query(
            "BEGIN", f"CREATE TABLE {name} (n int)", f"INSERT INTO {name} SELECT generate_series(1, 500)",
            f"DROP TABLE {gone}", f"PREPARE TRANSACTION '{name}'",
        )  # fmt: skip
        self._query(f"{self.chance.choice(['COMMIT', 'ROLLBACK'])} PREPARED '{name}'")

    def _roll_back(self) -> None:
        name = self._some()
        self._query(
            "BEGIN", f"TRUNCATE {name}", self._rows(name, 300), "SAVEPOINT a", "CREATE TABLE never (n int)",
            "INSERT INTO never SELECT generate_series(1, 1000)", "ROLLBACK TO a", "ROLLBACK",
        )  # fmt: skip

    def _unlogged(self) -> None:
        self._query("INSERT INTO unlogged SELECT generate_series(1, 3000)", "VACUUM unlogged")

    def _set_logged(self) -> None:
        name = self._name("l")
        self._query(
            f"CREATE UNLOGGED TABLE {name} (n int PRIMARY KEY); INSERT INTO {name} SELECT generate_series(1, 900)"
        )
        self._query(f"ALTER TABLE {name} SET LOGGED")
        if self.chance.random() < 0.5:
            self._query(f"ALTER TABLE {name} SET UNLOGGED")

    def _lock_frozen(self) -> None:
        # Frozen long ago: what the lock clears is in the visibility map alone, besides the row.
        row = self.chance.randrange(1, 40000)
        self._query("BEGIN", f"SELECT n FROM steady WHERE n = {row} FOR UPDATE", "COMMIT")
        if self.chance.random() < 0.5:
            self._query(f"UPDATE steady SET n = n WHERE n = {row}")

    def _sequence(self) -> None:
        self._query("SELECT nextval('counter') FROM generate_series(1, 100)")

    def _checkpoint(self) -> None:
        self._query("CHECKPOINT")

    def _switch(self) -> None:
        self._query("SELECT pg_switch_wal()")

    def _read(self) -> None:
        # Sets hint bits, and prunes.
        self._query(f"SELECT count(*), count(filler) FROM {self._some()}", "SELECT count(*) FROM steady")

    def _large_object(self) -> None:
        self._query("SELECT lo_from_bytea(0, repeat('lo', 20000)::bytea)")

    def _toast(self) -> None:
        filler = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 400))"
        self._query(f"INSERT INTO {self._some()} (id, filler) SELECT n, {filler} FROM generate_series(1, 20) n")

    def _view(self) -> None:
        name = self._name("v")
        self._query(f"CREATE MATERIALIZED VIEW {name} AS SELECT id, word FROM {self._some()}")
        self._query(f"REFRESH MATERIALIZED VIEW {name}", f"DROP MATERIALIZED VIEW {name}")

    def _temporary(self) -> None:
        self._query("CREATE TEMPORARY TABLE brief AS SELECT generate_series(1, 2000) n", "DROP TABLE brief")

    def _create_database(self) -> None:
        name = self._name("d")
        how = f" STRATEGY {self.chance.choice(['file_copy', 'wal_log'])}" if self.major >= 15 else ""
        self._query(f"CREATE DATABASE {name}{how}")
        self.databases.append(name)
        self._query("CREATE TABLE t AS SELECT generate_series(1, 2000) n", dbname=name)

    def _drop_database(self) -> None:
        if not self.databases:
            self._create_database()
        name = self.databases.pop(self.chance.randrange(len(self.databases)))
        self._query(f"DROP DATABASE {name}")

    def _move_table(self) -> None:
        name = self._some()
        self._query(f"ALTER TABLE {name} SET TABLESPACE {self.chance.choice([self.tablespace, 'pg_default'])}")

    def _move_database(self) -> None:
        if not self.databases:
            self._create_database()
        name = self.chance.choice(self.databases)
        self._query(f"ALTER DATABASE {name} SET TABLESPACE {self.chance.choice([self.tablespace, 'pg_default'])}")
