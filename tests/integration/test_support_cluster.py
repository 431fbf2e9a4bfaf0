"""The Cluster helper itself: other tests rely on what is shown here."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from polarvault.errors import StartFailed
from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from support.cluster import PASSWORD, Cluster
from support.polar_cluster import PolarCluster
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


def test_every_version_found_starts_and_is_filled(any_pg: Cluster) -> None:
    assert any_pg.query("SHOW server_version_num")[0][0].startswith(str(any_pg.installation.major))
    assert any_pg.hash_of("accounts")[0] == 5000
    assert "accounts" in any_pg.hashes()
    assert any_pg.query("SHOW data_checksums") == [("on",)]


def test_a_killed_server_recovers_and_has_its_data(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(18, wal_segment_mb=1)
    before = cluster.hash_of("accounts")
    cluster.kill()
    assert not cluster.is_running()
    cluster.start()
    assert cluster.hash_of("accounts") == before
    assert cluster.query("SHOW wal_segment_size") == [("1MB",)]


def test_load_runs_only_inside_the_block(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(18)
    cluster.add_tablespace("side")
    with cluster.pgbench():
        assert cluster.query("SELECT count(*) > 0 FROM pgbench_history") == [(True,)]
    written = cluster.hash_of("pgbench_history")
    wait_until(lambda: cluster.backends("client backend") == 1, "pgbench has left")
    assert cluster.hash_of("pgbench_history") == written
    assert cluster.hash_of("in_side")[0] == 5000


def test_a_server_that_cannot_start_shows_its_log(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(18, start=False)
    cluster.configure({"shared_buffers": "nonsense"})
    with pytest.raises(StartFailed) as failed:
        cluster.start()
    assert "shared_buffers" in (failed.value.detail or "")


def test_tls_is_verified_and_scram_asked_for(
    feature_pg: Callable[..., Cluster], make_cluster: Callable[..., Cluster]
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program makes the certificates: apt-get install openssl")
    cluster = make_cluster(feature_pg("ssl").installation.major, fill=False)
    files = cluster.enable_tls(only_tls=True)
    conninfo = cluster.tcp_conninfo(
        host="localhost", sslmode="verify-full", sslrootcert=str(files.authority), password=PASSWORD
    )
    with psycopg.connect(conninfo) as connection:
        assert connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchall() == [(True,)]
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry|no encryption"):
        psycopg.connect(cluster.tcp_conninfo(sslmode="disable", password=PASSWORD))
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(cluster.tcp_conninfo(sslmode="require", password="wrong"))


def test_a_copied_data_directory_can_be_adopted(
    make_cluster: Callable[..., Cluster], start_restored: Callable[..., Cluster], workspace: Path
) -> None:
    source = make_cluster(18)
    expected = source.hashes()
    source.stop()
    copied = workspace / "copied"
    shutil.copytree(source.data, copied)
    server_account().own(copied)
    assert start_restored(18, copied).hashes() == expected


def test_the_port_of_a_server_that_does_not_run_is_not_given_away(
    installation: Callable[[int], Binaries], workspace: Path
) -> None:
    cluster = Cluster(installation(18), workspace)
    with socket.socket() as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", cluster.port))
        with pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.1", cluster.port))


@pytest.mark.polardb
def test_polardb_runs_on_two_directories(polardb: PolarCluster) -> None:
    assert polardb.query("SHOW polar_enable_shared_storage_mode") == [("on",)]
    assert not (polardb.data / "global/pg_control").exists()
    assert (polardb.shared / "global/pg_control").exists()
    assert polardb.hash_of("accounts")[0] == 5000
