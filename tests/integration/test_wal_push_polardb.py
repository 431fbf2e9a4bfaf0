"""WAL of a PolarDB archived into a bucket that goes away: the spool keeps it, and all of it arrives."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from polarvault.instance.account import server_account
from support.object_servers import BUCKET, ObjectServer
from support.polar_cluster import PolarCluster
from support.program import command_line
from support.streaming import StreamSite
from support.tcp_proxy import TcpProxy
from support.waiting import wait_until

pytestmark = pytest.mark.polardb


def test_what_is_archived_while_the_bucket_is_away_waits_in_the_spool(
    make_polardb: Callable[..., PolarCluster], seaweedfs: ObjectServer, workspace: Path
) -> None:
    settings = seaweedfs.settings
    port = urlsplit(settings.endpoint or "").port
    assert port is not None
    cluster = make_polardb(settings={"full_page_writes": "on"})
    spool = server_account().make_directory(workspace / "spool")
    with TcpProxy(port) as proxy:
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "AWS_ACCESS_KEY_ID": settings.access_key or "",
            "AWS_SECRET_ACCESS_KEY": settings.secret_key or "", "XDG_STATE_HOME": str(workspace / "state"),
        }  # fmt: skip
        site = StreamSite(
            cluster, workspace, address=f"s3://{BUCKET}/away-{os.getpid()}-{cluster.port}", environment=environment
        )
        push = " ".join(command_line("wal", "push", "%p", "--cluster", "shop", "--repo", site.address,
                                     "--spool", spool, "--spool-max", "2GB"))  # fmt: skip
        words = " ".join(f"{name}={value}" for name, value in environment.items())
        cluster.configure({"archive_mode": "on", "archive_command": f"env {words} {push}"})
        cluster.restart()
        site.back_up()

        def switch(table: str) -> None:
            """Write something, and have the segment that it is in archived."""
            cluster.query(f"CREATE TABLE {table} AS SELECT generate_series(1, 1000) AS n")
            ((segment,),) = cluster.query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
            cluster.query("SELECT pg_switch_wal()")
            # The mark of a backup has the name of its segment, and more.
            asked = f"SELECT last_archived_wal >= '{segment}' AND last_archived_wal !~ 'backup' FROM pg_stat_archiver"
            wait_until(lambda: cluster.query(asked) == [(True,)], f"{segment} is archived", timeout_s=90)

        def kept() -> list[Path]:
            return list((spool / "shop").glob("0*"))

        switch("story0")
        assert kept() == []
        proxy.refuse()
        for number in range(1, 4):
            switch(f"story{number}")
        assert len(kept()) == 3
        proxy.restart()
        site.run("wal", "push", "--flush-spool", "--cluster", "shop", *site.options, "--spool", spool,
                 "--spool-max", "2GB")  # fmt: skip
        assert kept() == []
        switch("story4")
        shown = site.run("wal", "status", "shop", *site.options).stdout
        assert "GAP" not in shown
        cluster.stop("immediate")
        restored = site.restored("end", "--target", "latest")
        try:
            assert restored.query("SELECT count(*) FROM pg_class WHERE relname LIKE 'story%'") == [(5,)]
        finally:
            restored.stop()
