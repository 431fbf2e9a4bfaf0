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
        xid = site.transaction("DELETE FROM accounts WHERE id > 10")
        site.archive_all()
        photo = photograph(site.backup, site.archive)
        words = ("table", "--before-xid", xid, "--table", "accounts")
        site.run(*words, "--into", source.conninfo(), "--as", "accounts_then")
        assert source.hash_of("accounts_then") == before
        assert source.query("SELECT count(*) FROM accounts") == [(10,)]
        site.run(*words, "-o", disk / "it.dump")
        assert photograph(site.backup, site.archive) == photo
