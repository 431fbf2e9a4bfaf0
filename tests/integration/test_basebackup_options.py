"""Every option of a base backup on PostgreSQL 15 and 18, and clusters that are set up in unusual ways."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.backups import (
    back_up,
    back_up_with_postgres,
    backup_listing,
    run_program,
    tar_listing,
    unpack,
    unpack_backup,
    verify,
)
from support.cluster import PASSWORD, Cluster
from support.program import command_line, program_environment, run_polarvault
from support.servers import ServerPool, missing_reason

pytestmark = pytest.mark.postgres


@pytest.fixture(params=[15, 18, 19], ids=["pg15", "pg18", "pg19"])
def server(request: pytest.FixtureRequest, servers: ServerPool) -> Cluster:
    """The two versions that every machine should have, and the newest."""
    if request.param not in servers.installations:
        pytest.skip(missing_reason(request.param))
    return servers.get(request.param)


# Compression


@pytest.mark.parametrize("how", ["gzip:9", "client-lz4", "lz4:3", "zstd:level=5,workers=2", "client-zstd:long"])
def test_client_compression_is_read_by_everybody(pg15: Cluster, workspace: Path, how: str) -> None:
    back_up(pg15, workspace / "backup", "-Ft", "-Z", how)
    verify(pg15.installation, unpack_backup(workspace / "backup", workspace / "data"))
    (archive,) = (workspace / "backup").glob("base.tar.*")
    program = {".gz": "gzip", ".lz4": "lz4", ".zst": "zstd"}[archive.suffix]
    if shutil.which(program) is None:
        pytest.skip(f"the program {program} is not installed")
    subprocess.run([program, "-q", "-t", str(archive)], check=True, timeout=60)


@pytest.mark.parametrize("method", ["gzip", "lz4", "zstd"])
@pytest.mark.parametrize("form", ["-Fp", "-Ft"])
def test_server_compression_gives_the_same_backup(
    feature_pg: Callable[..., Cluster], workspace: Path, form: str, method: str
) -> None:
    server = feature_pg(*([] if method == "gzip" else [method]), at_least=15)
    back_up(server, workspace / "backup", form, "-Z", f"server-{method}", "-R")
    data = workspace / "backup" if form == "-Fp" else unpack_backup(workspace / "backup", workspace / "data")
    assert (data / "standby.signal").exists()
    assert "primary_conninfo" in (data / "postgresql.auto.conf").read_text()
    verify(server.installation, data, "-i", "standby.signal")


# Standard output, targets


@pytest.mark.parametrize("options", [[], ["-z"], ["-X", "fetch"]], ids=" ".join)
def test_a_tar_on_standard_output_is_whole(server: Cluster, workspace: Path, options: list[str]) -> None:
    method = [] if "-X" in options else ["-X", "none"]
    archive = workspace / ("all.tar.gz" if "-z" in options else "all.tar")
    with open(archive, "wb") as output:
        subprocess.run(
            command_line(
                "basebackup", "-d", server.conninfo(), "-c", "fast", "-Ft", "-D", "-", *options, *method
            ),
            stdin=subprocess.DEVNULL, stdout=output, env=program_environment(), timeout=60, check=True,
        )  # fmt: skip
    data = unpack(archive, workspace / "data")
    verify(server.installation, data, *(["-n"] if method else []))


def test_targets_on_the_server_are_filled(server: Cluster, workspace: Path) -> None:
    for target in (f"server:{workspace}/there", "blackhole"):
        run_polarvault("basebackup", "-d", server.conninfo(), "-c", "fast", "-X", "fetch", "-t", target)
    assert {path.name for path in (workspace / "there").iterdir()} == {"base.tar", "backup_manifest"}


# Layout


def test_tablespaces_go_where_they_are_mapped(
    make_cluster: Callable[..., Cluster], workspace: Path, start_restored: Callable[..., Cluster]
) -> None:
    source = make_cluster(15)
    old = source.add_tablespace("side")
    refused = back_up(source, workspace / "refused", check=False)
    assert refused.returncode == 1
    assert f'"{old}" exists but is not empty' in refused.stderr
    assert not (workspace / "refused").exists()
    back_up(source, workspace / "tar", "-Ft")
    (oid,) = [path.name for path in (workspace / "tar").iterdir() if path.name[0].isdigit()]
    assert "tablespace_map" in tar_listing(workspace / "tar" / "base.tar")
    back_up_with_postgres(source, workspace / "theirs", "-Ft")
    assert backup_listing(workspace / "tar") == backup_listing(workspace / "theirs")
    new = workspace / "new"
    back_up(source, workspace / "plain", "-T", f"{old}={new}")
    assert (workspace / "plain" / "pg_tblspc" / oid.removesuffix(".tar")).readlink() == new
    verify(source.installation, workspace / "plain")
    source.account.own(new)
    assert start_restored(15, workspace / "plain").hashes() == source.hashes()


def test_tablespaces_in_place_stay_inside(
    make_cluster: Callable[..., Cluster], workspace: Path, start_restored: Callable[..., Cluster]
) -> None:
    source = make_cluster(18)
    with source.connect() as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE inside LOCATION ''")
        connection.execute("CREATE TABLE in_inside TABLESPACE inside AS SELECT generate_series(1, 100) AS n")
    for form in ("-Fp", "-Ft"):
        back_up(source, workspace / f"ours{form}", form)
        back_up_with_postgres(source, workspace / f"theirs{form}", form)
        assert backup_listing(workspace / f"ours{form}") == backup_listing(workspace / f"theirs{form}")
    server = start_restored(18, workspace / "ours-Fp", settings={"allow_in_place_tablespaces": "on"})
    assert server.hashes() == source.hashes()


def test_wal_goes_to_a_directory_of_its_own(
    server: Cluster, workspace: Path, start_restored: Callable[..., Cluster]
) -> None:
    back_up(server, workspace / "backup", "--waldir", str(workspace / "wal"))
    assert (workspace / "backup" / "pg_wal").readlink() == workspace / "wal"
    verify(server.installation, workspace / "backup")
    server.account.own(workspace / "wal")
    assert start_restored(server.installation.major, workspace / "backup").hashes() == server.hashes()


def test_modes_follow_the_server(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    source = make_cluster(18, initdb_options=["--allow-group-access"])
    for name, mode in (("server.key", 0o600), ("archive.sh", 0o700)):
        (source.data / name).touch()
        (source.data / name).chmod(mode)
    source.account.own(source.data)
    back_up(source, workspace / "ours")
    back_up_with_postgres(source, workspace / "theirs")
    listing = backup_listing(workspace / "ours")
    assert listing == backup_listing(workspace / "theirs")
    assert (listing["."], listing["server.key"], listing["archive.sh"]) == ("drwxr-x---", "-rw-------", "-rwx------")


# Manifest


def test_the_manifest_is_made_as_asked_for(server: Cluster, workspace: Path) -> None:
    back_up(server, workspace / "sha", "--manifest-checksums=SHA256", "--manifest-force-encode")
    entries = json.loads((workspace / "sha" / "backup_manifest").read_text())["Files"]
    assert {entry["Checksum-Algorithm"] for entry in entries} == {"SHA256"}
    assert all("Encoded-Path" in entry for entry in entries)
    verify(server.installation, workspace / "sha")
    back_up(server, workspace / "none", "--manifest-checksums=none")
    assert not any("Checksum" in e for e in json.loads((workspace / "none" / "backup_manifest").read_text())["Files"])
    back_up(server, workspace / "without", "--no-manifest", "--no-estimate-size", "--no-slot", "-r", "100M")
    assert not list((workspace / "without").glob("backup_manifest*"))


@pytest.mark.parametrize("major", [17, 18, 19])
def test_an_incremental_backup_is_combined_and_starts(
    make_cluster: Callable[..., Cluster], workspace: Path, start_restored: Callable[..., Cluster], major: int
) -> None:
    source = make_cluster(major)
    back_up(source, workspace / "full")
    source.query("UPDATE accounts SET balance = 0 WHERE id < 10")
    back_up(source, workspace / "more", "-i", str(workspace / "full" / "backup_manifest"))
    verify(source.installation, workspace / "more")
    combined = run_program(
        source.installation, "pg_combinebackup", "-N", str(workspace / "full"), str(workspace / "more"),
        "-o", str(workspace / "both"),
    )  # fmt: skip
    assert combined.returncode == 0, combined.stderr
    assert start_restored(major, workspace / "both").hashes() == source.hashes()


# Clusters


@pytest.mark.parametrize(("segment_mb", "checksums"), [(1, False), (64, True), (1024, False)])
def test_any_segment_size_is_backed_up_and_starts(
    make_cluster: Callable[..., Cluster], workspace: Path, start_restored: Callable[..., Cluster],
    segment_mb: int, *, checksums: bool,
) -> None:  # fmt: skip
    source = make_cluster(15, wal_segment_mb=segment_mb, checksums=checksums)
    with source.pgbench(rate_per_s=200):
        back_up(source, workspace / "backup")
    segments = [path for path in (workspace / "backup" / "pg_wal").iterdir() if path.is_file()]
    assert {path.stat().st_size for path in segments} == {segment_mb << 20}
    assert sum(path.stat().st_blocks for path in segments) * 512 < 200 << 20
    verify(source.installation, workspace / "backup")
    server = start_restored(15, workspace / "backup")
    assert server.query("SELECT sum(abalance) FROM pgbench_accounts") == server.query(
        "SELECT sum(delta) FROM pgbench_history"
    )


def test_a_standby_is_backed_up_and_after_promotion_with_its_history(
    make_cluster: Callable[..., Cluster], workspace: Path, start_restored: Callable[..., Cluster]
) -> None:
    source = make_cluster(15)
    back_up(source, workspace / "standby", "-R")
    standby = start_restored(15, workspace / "standby")
    back_up(standby, workspace / "from_standby")
    assert "BACKUP FROM: standby" in (workspace / "from_standby" / "backup_label").read_text()
    verify(source.installation, workspace / "from_standby")
    standby.promote()
    for form in ("-Fp", "-Ft"):
        back_up(standby, workspace / f"second{form}", form)
    assert (workspace / "second-Fp" / "pg_wal" / "00000002.history").exists()
    assert "00000002.history" in tar_listing(workspace / "second-Ft" / "pg_wal.tar")
    verify(source.installation, workspace / "second-Fp")
    assert start_restored(15, workspace / "second-Fp").hashes() == standby.hashes()


# Connections


def test_tls_and_scram_and_files_of_settings_are_understood(
    feature_pg: Callable[..., Cluster], make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl is not installed: it makes the test's certificates")
    source = make_cluster(feature_pg("ssl").installation.major)
    tls = source.enable_tls(only_tls=True)
    passwords = workspace / "pgpass"
    passwords.write_text(f"*:*:replication:postgres:{PASSWORD}\n")
    passwords.chmod(0o600)
    services = workspace / "services"
    services.write_text(
        f"[there]\nhost=localhost\nport={source.port}\nuser=postgres\nsslmode=verify-full\nsslrootcert={tls.authority}\n"
    )
    environment = {"PGSERVICEFILE": str(services), "PGSERVICE": "there", "PGPASSFILE": str(passwords)}
    run_polarvault("basebackup", "-w", "-c", "fast", "-D", workspace / "backup", environment=environment)
    verify(source.installation, workspace / "backup")
    run_polarvault("basebackup", "-w", "-c", "fast", "-Ft", "-D", workspace / "tar", environment=environment)
    verify(source.installation, unpack_backup(workspace / "tar", workspace / "data"))


def test_the_first_host_that_answers_is_backed_up(pg15: Cluster, workspace: Path) -> None:
    hosts = f"host=127.0.0.1,{pg15.directory} port=1,{pg15.port} user=postgres"
    run_polarvault("basebackup", "-d", hosts, "-c", "fast", "-N", "-D", workspace / "backup")
    verify(pg15.installation, workspace / "backup")
