"""Who changed a table: told from the WAL of real servers, and compared with what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.clones import sharing_disk
from support.cluster import Cluster
from support.flashback import FlashbackSite

pytestmark = pytest.mark.postgres


@pytest.fixture
def site(
    make_cluster: Callable[..., Cluster], workspace: Path, request: pytest.FixtureRequest
) -> Iterator[FlashbackSite]:
    major, level = getattr(request, "param", (18, "replica"))
    source = make_cluster(major, start=False)
    archive = source.account.make_directory(source.directory / "archive")
    source.configure(
        {"archive_mode": "on", "archive_command": f"cp %p {archive}/%f", "max_prepared_transactions": "5",
         "wal_level": level}
    )  # fmt: skip
    source.start()
    source.fill()
    with sharing_disk(workspace) as disk:
        made = FlashbackSite(source, disk)
        yield made
        made.clones.remove_all()


def counts(one: dict[str, Any]) -> tuple[int, int, int]:
    return one["deletes"], one["updates"], one["inserts"]


@pytest.mark.parametrize(
    "site",
    [
        (13, "replica"),
        (14, "logical"),
        (15, "replica"),
        (16, "replica"),
        (17, "logical"),
        (18, "replica"),
        (18, "logical"),
    ],
    indirect=True,
)
def test_what_was_done_to_a_table_is_told_by_transaction(site: FlashbackSite) -> None:
    source = site.source
    source.query("CREATE TABLE other (v int); CREATE TABLE wide (id int PRIMARY KEY, v text) WITH (fillfactor = 50)")
    source.query("INSERT INTO wide SELECT n, repeat('x', 3000) || n FROM generate_series(1, 100) n")
    site.back_up()
    since = site.now()
    done: list[tuple[str, tuple[int, int, int]]] = []

    def do(expected: tuple[int, int, int], *statements: str) -> str:
        xid = site.transaction(*statements)
        done.append((xid, expected))
        return xid

    do((4990, 0, 0), "DELETE FROM accounts WHERE id > 10")
    do((0, 10, 0), "UPDATE accounts SET balance = balance + 1")
    do((0, 0, 3000), "INSERT INTO accounts SELECT n, 'x', n FROM generate_series(10001, 13000) n")
    site.transaction("INSERT INTO other VALUES (1)", "DELETE FROM other", "UPDATE wide SET v = v || 'y' WHERE id < 50")
    # What was rolled back is not told, neither all nor part of a transaction.
    source.query("BEGIN; DELETE FROM accounts; ROLLBACK")
    do(
        (1, 2, 2),
        "SAVEPOINT a", "DELETE FROM accounts WHERE id = 1", "RELEASE a",
        "SAVEPOINT b", "DELETE FROM accounts WHERE id > 10000", "ROLLBACK TO b",
        "SAVEPOINT c", "UPDATE accounts SET balance = 0 WHERE id IN (2, 3)", "SAVEPOINT d",
        "INSERT INTO accounts VALUES (20001, 'a', 1), (20002, 'b', 2)",
    )  # fmt: skip
    with source.connect() as connection, connection.cursor().copy("COPY accounts FROM STDIN") as copy:
        for number in range(30000, 32000):
            copy.write_row((number, "copied", number))
    # One that was prepared counts when and as it is committed.
    source.query("BEGIN; DELETE FROM accounts WHERE id = 4; PREPARE TRANSACTION 'it'")
    source.query("COMMIT PREPARED 'it'")
    source.query("CHECKPOINT")
    # A row that was in the way takes the inserted one back.
    do((0, 1, 1), "INSERT INTO accounts VALUES (5, 'x', 0), (6000, 'y', 0)"
       " ON CONFLICT (id) DO UPDATE SET balance = 9")  # fmt: skip
    # Files change; what is done to them afterwards counts all the same.
    source.query("VACUUM FULL accounts")
    do((3, 0, 0), "DELETE FROM accounts WHERE id IN (5, 6, 7)")
    source.query("ALTER TABLE accounts ALTER COLUMN id TYPE bigint")
    do((0, 0, 1), "INSERT INTO accounts VALUES (8000, 'z', 0)")
    source.query("BEGIN; TRUNCATE accounts; ROLLBACK")
    do((1, 0, 0), "DELETE FROM accounts WHERE id = 8")
    truncated = do((0, 0, 2), "TRUNCATE accounts", "INSERT INTO accounts VALUES (1, 'a', 1), (2, 'b', 2)")
    do((1, 0, 0), "DELETE FROM accounts WHERE id = 1")
    for statement in ("ANALYZE accounts", "VACUUM accounts", "CHECKPOINT"):
        source.query(statement)
    do((0, 1, 0), "ALTER TABLE accounts RENAME TO renamed", "UPDATE renamed SET balance = 1")
    until = site.now()
    dropped = do((0, 0, 0), "DROP TABLE renamed")
    site.archive_all()
    found = site.run("find", "--table", "accounts", "--since", since)
    by_xid = {str(one["xid"]): one for one in found["transactions"]}
    told = {xid: counts(by_xid[xid]) for xid, _ in done if xid in by_xid}
    assert told == dict(done), found["notes"]
    assert all(one["is_whole"] for one in found["transactions"])
    others = [one for one in found["transactions"] if str(one["xid"]) not in told]
    assert [counts(one) for one in others] == [(0, 0, 2000), (1, 0, 0), (0, 0, 0), (0, 0, 0)]
    assert [one["rewritten"] for one in others[2:]] == [["public.accounts"]] * 2
    assert by_xid[truncated]["truncated"] == by_xid[dropped]["dropped"] == ["public.accounts"]
    assert sorted(one["lsn"] for one in found["transactions"]) == [one["lsn"] for one in found["transactions"]]
    assert any("ends at LSN" in note for note in found["notes"])
    # What it names is what the other command takes.
    dump = site.disk / "x"
    back = site.run("table", "--before-xid", truncated, "--table", "accounts", "-o", dump)
    assert back["tables"][0]["rows"] > 2
    earlier = site.run("find", "--table", "public.accounts", "--since", since, "--until", until)
    assert [one["xid"] for one in earlier["transactions"]] == [one["xid"] for one in found["transactions"]][:-1]


def test_partitions_count_and_what_is_not_known_is_said(site: FlashbackSite) -> None:
    source = site.source
    source.query(
        """
        CREATE TABLE parts (k int, v text) PARTITION BY RANGE (k);
        CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (100);
        CREATE TABLE high PARTITION OF parts FOR VALUES FROM (100) TO (1000);
        INSERT INTO parts SELECT n, 'v' FROM generate_series(0, 999) n;
        CREATE TABLE old (LIKE parts);
        """
    )
    site.back_up()
    with source.connect() as long, long.transaction():
        long.execute("DELETE FROM parts WHERE k < 5")
        source.query("CHECKPOINT")
        since = site.now()
        long.execute("DELETE FROM parts WHERE k < 10")
    xid = site.transaction("DELETE FROM parts WHERE k BETWEEN 50 AND 149", "TRUNCATE low")
    # Parts that were made later, in the two ways in which that is done.
    source.query("CREATE TABLE next PARTITION OF parts FOR VALUES FROM (1000) TO (2000)")
    source.query("CREATE TABLE last (LIKE parts)")
    source.query("INSERT INTO last VALUES (2000, 'before it is a part')")
    source.query("ALTER TABLE parts ATTACH PARTITION last FOR VALUES FROM (2000) TO (3000)")
    filled = site.transaction("INSERT INTO parts SELECT n, 'v' FROM generate_series(1500, 2499) n WHERE n <> 2000")
    source.query("VACUUM FULL last")
    emptied = site.transaction("DELETE FROM parts WHERE k BETWEEN 1900 AND 2099")
    later = site.transaction("CREATE TABLE later (v int)", "INSERT INTO later VALUES (1), (2)")
    source.query("ALTER TABLE later ALTER v TYPE bigint")
    gone = site.transaction("DELETE FROM later WHERE v = 1")
    source.query("VACUUM FULL later")
    site.archive_all()
    found = site.run("find", "--table", "parts", "--since", since)
    assert found["partitions"] == 2
    first, second, third, rewritten, fourth = found["transactions"]
    assert (str(third["xid"]), counts(third)) == (filled, (0, 0, 999))
    assert (rewritten["rewritten"], counts(rewritten)) == (["last"], (0, 0, 0))
    assert (str(fourth["xid"]), counts(fourth)) == (emptied, (200, 0, 0))
    # It began before, and is seen from its beginning.
    assert counts(first) == (10, 0, 0)
    assert (str(second["xid"]), counts(second), second["truncated"]) == (xid, (100, 0, 0), ["public.low"])
    assert counts(site.run("find", "--table", "low", "--since", since)["transactions"][1]) == (50, 0, 0)
    new = site.run("find", "--table", "later", "--since", since)
    assert [(str(one["xid"]), *counts(one)) for one in new["transactions"] if not one["rewritten"]] == [
        (later, 0, 0, 2),
        (gone, 1, 0, 0),
    ]
    assert not any("did not exist at" in note for note in new["notes"])
    assert site.refused("find", "--table", "never", "--since", since)["id"] == "table-not-found"
    source.query("VACUUM FULL pg_class")
    source.query("VACUUM FULL high")
    site.archive_all()
    lost = site.run("find", "--table", "parts", "--since", since)
    assert not any("became a part" in note for note in lost["notes"])
    assert any("VACUUM FULL" in note for note in lost["notes"])
    assert site.refused("find", "--table", "parts", "--since", since, "--until", since, status=2)["id"] == "usage"
    assert "--since" in site.refused("find", "--table", "parts", "--since", "noon", status=2)["message"]
