"""One table of a real PolarDB back, and who changed it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.clones import photograph, sharing_disk
from support.flashback import FlashbackSite
from support.polar_cluster import PolarCluster

pytestmark = pytest.mark.polardb


def test_a_table_of_polardb_comes_back_into_the_live_server(
    make_polardb: Callable[..., PolarCluster], workspace: Path
) -> None:
    source = make_polardb(start=False)
    archive = source.account.make_directory(source.directory / "archive")
    source.configure({"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"})
    source.start()
    source.fill()
    with sharing_disk(workspace) as disk:
        site = FlashbackSite(source, disk)
        site.back_up()
        before = source.hash_of("accounts")
        since = site.now()
        xid = site.transaction("DELETE FROM accounts WHERE id > 10")
        again = site.transaction("TRUNCATE scratch", "UPDATE accounts SET balance = 0 WHERE id < 4")
        source.query("VACUUM FULL accounts")
        emptied = site.transaction("TRUNCATE accounts", "INSERT INTO accounts VALUES (1, 'a', 1)")
        source.query("INSERT INTO accounts SELECT n, 'x', n FROM generate_series(2, 10) n")
        site.archive_all()
        photo = photograph(site.backup, site.archive)
        words = ("table", "--before-xid", xid, "--table", "accounts")
        site.run(*words, "--into", source.conninfo(), "--as", "accounts_then")
        assert source.hash_of("accounts_then") == before
        assert source.query("SELECT count(*) FROM accounts") == [(10,)]
        site.run(*words, "-o", disk / "it.dump")
        found = site.run("find", "--table", "accounts", "--since", since)["transactions"]
        told = [(one["deletes"], one["updates"], one["inserts"]) for one in found]
        assert told == [(4990, 0, 0), (0, 3, 0), (0, 0, 0), (0, 0, 1), (0, 0, 9)]
        assert [str(found[number]["xid"]) for number in (0, 1, 3)] == [xid, again, emptied]
        assert found[2]["rewritten"] == found[3]["truncated"] == ["public.accounts"]
        assert photograph(site.backup, site.archive) == photo
