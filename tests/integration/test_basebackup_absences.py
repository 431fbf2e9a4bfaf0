"""Data that a server silently leaves out of its base backup, and files that end one: real servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.backups import back_up
from support.cluster import Cluster
from support.program import run_polarvault
from support.servers import ServerPool

pytestmark = pytest.mark.postgres


@contextmanager
def linked(cluster: Cluster, path: Path, elsewhere: Path) -> Iterator[None]:
    """Replace a directory or file of a stopped server by a link, and start it."""
    cluster.stop()
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
    cluster.start()
    yield
    cluster.stop()
    path.unlink()
    shutil.move(elsewhere, path)
    cluster.start()


@pytest.fixture(scope="module", params=[15, 18])
def cluster(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Cluster]:
    if request.param not in servers.installations:
        pytest.skip(f"PostgreSQL {request.param} is not installed")
    directory = servers.directory / f"absences{request.param}"
    made = Cluster.made(servers.installations[request.param], directory, fill=False)
    yield made
    made.remove()


@pytest.mark.parametrize("options", [["-Fp"], ["-Ft", "--no-estimate-size"]], ids=" ".join)
def test_a_database_whose_directory_is_a_link_ends_the_backup_by_its_name(
    cluster: Cluster, workspace: Path, options: list[str]
) -> None:
    cluster.query('CREATE DATABASE "a linked one"')
    ((oid,),) = cluster.query("SELECT oid FROM pg_database WHERE datname = 'a linked one'")
    with linked(cluster, cluster.data / "base" / str(oid), cluster.data.parent / "disk2"):
        refused = back_up(cluster, workspace / "backup", *options, check=False)
    assert refused.returncode == 1
    assert f'base/{oid} (of database "a linked one")' in refused.stderr
    assert not (workspace / "backup").exists()
    cluster.query('DROP DATABASE "a linked one"')
    back_up(cluster, workspace / "backup", *options)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_no_setting_of_the_server_hides_what_it_leaves_out(cluster: Cluster, workspace: Path, tls: bool) -> None:
    if tls and cluster.installation.major != 15:
        pytest.skip("not every build that is tested has TLS: that of 15 has")
    files = cluster.enable_tls() if tls else None
    cluster.query("CREATE DATABASE hidden")
    ((oid,),) = cluster.query("SELECT oid FROM pg_database WHERE datname = 'hidden'")
    cluster.query("ALTER SYSTEM SET client_min_messages = 'error'")
    cluster.query("ALTER ROLE postgres SET client_min_messages = 'error'")
    try:
        with linked(cluster, cluster.data / "base" / str(oid), cluster.data.parent / "disk2"):
            words = {"sslmode": "verify-full", "sslrootcert": str(files.authority)} if files else {}
            refused = run_polarvault(
                "basebackup", "-d", cluster.tcp_conninfo(**words), "-c", "fast", "-N", "-D", workspace / "backup",
                "--no-clean", check=False, environment={"PGOPTIONS": "-c client_min_messages=error"},
            )  # fmt: skip
    finally:
        cluster.query("ALTER SYSTEM RESET client_min_messages")
        cluster.query("ALTER ROLE postgres RESET client_min_messages")
        cluster.query("SELECT pg_reload_conf()")
    assert refused.returncode == 1
    assert f'base/{oid} (of database "hidden")' in refused.stderr
    assert not (workspace / "backup" / "backup_manifest").exists()
    cluster.query("DROP DATABASE hidden")


def test_a_directory_of_the_cluster_that_is_a_link_ends_the_backup(cluster: Cluster, workspace: Path) -> None:
    with linked(cluster, cluster.data / "pg_multixact", cluster.data.parent / "disk2"):
        refused = back_up(cluster, workspace / "backup", check=False)
    assert refused.returncode == 1
    assert "leaves data out of the backup: pg_multixact" in refused.stderr


def test_a_configuration_file_that_is_a_link_is_named_and_the_backup_goes_on(cluster: Cluster, workspace: Path) -> None:
    with linked(cluster, cluster.data / "postgresql.conf", cluster.data.parent / "linked.conf"):
        finished = back_up(cluster, workspace / "backup")
    assert '"postgresql.conf" is a link' in finished.stderr
    assert (workspace / "backup" / "backup_manifest").exists()


@contextmanager
def tablespace(cluster: Cluster, name: str) -> Iterator[Path]:
    """Make a tablespace with a table; both are gone afterwards."""
    yield cluster.add_tablespace(name, rows=10)
    cluster.query(f"DROP TABLE in_{name}")
    cluster.query(f"DROP TABLESPACE {name}")


def test_a_tablespace_whose_disk_is_not_mounted_ends_the_backup(cluster: Cluster, workspace: Path) -> None:
    with tablespace(cluster, "unmounted") as place:
        mapping = ["-T", f"{place}={workspace / 'ts'}"]
        disk = place.with_name("disk")
        cluster.stop()
        shutil.move(place, disk)
        cluster.account.make_directory(place)
        cluster.start()
        refused = back_up(cluster, workspace / "backup", *mapping, check=False)
        cluster.stop()
        place.rmdir()
        shutil.move(disk, place)
        cluster.start()
        assert refused.returncode == 1
        assert "not mounted" in refused.stderr
        assert str(place) in refused.stderr
        back_up(cluster, workspace / "backup", *mapping)


def test_the_live_tablespace_in_the_way_of_a_backup_is_called_one(cluster: Cluster, workspace: Path) -> None:
    with tablespace(cluster, "live") as place:
        refused = back_up(cluster, workspace / "backup", check=False)
    assert refused.returncode == 1
    assert "it is a tablespace of a database cluster" in refused.stderr
    assert f"-T {place}=NEW_DIRECTORY" in refused.stderr
    assert "remove" not in refused.stderr


def test_a_backup_inside_of_the_servers_own_directories_is_refused(cluster: Cluster) -> None:
    for inside in (cluster.data / "backup", cluster.data / "base" / "backup"):
        refused = back_up(cluster, inside, check=False)
        assert refused.returncode == 1
        assert "lies inside of" in refused.stderr
        assert not inside.exists()


def test_one_file_that_the_server_may_not_read_is_named_with_what_to_do(cluster: Cluster, workspace: Path) -> None:
    if cluster.account.uid == 0:
        pytest.skip("root reads everything")
    secret = cluster.data / "server.key.bak"
    secret.write_text("secret")
    secret.chmod(0o000)
    try:
        refused = back_up(cluster, workspace / "backup", check=False)
    finally:
        secret.unlink()
    assert refused.returncode == 1
    assert "server.key.bak" in refused.stderr
    assert "move it out of the data directory" in refused.stderr
