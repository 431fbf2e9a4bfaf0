"""Drills of backups in a repository: its copy gets the WAL beforehand, and neither network, nor key, nor repository."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polarvault.config.model import KeySource, RepositoryConfiguration
from polarvault.repository.catalogue.opening import open_repository
from support.cluster import Cluster
from support.drills import Drills, sql_files
from support.program import run_polarvault

pytestmark = pytest.mark.postgres


def archive(cluster: Cluster, configuration: RepositoryConfiguration) -> None:
    """Put all finished WAL of a server into its repository."""
    cluster.query("SELECT pg_switch_wal()")
    # Else the server counts the end of a segment as one of the segment before.
    cluster.query("SELECT pg_logical_emit_message(false, 'next', 'segment')")
    [[current]] = cluster.query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    opened = open_repository(configuration, {})
    wal = opened.repository.wal_of("shop")
    for path in sorted((cluster.data / "pg_wal").glob("0000000100*")):
        number = int(path.name[8:16], 16) * (0x1_0000_0000 // wal.segment_bytes) + int(path.name[16:], 16)
        if path.name < current:
            wal.put_range(1, number * wal.segment_bytes, path.read_bytes())
    opened.close()


def test_a_backup_in_an_encrypted_repository_is_drilled_and_recovered(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(15, wal_segment_mb=1)
    repository, key = workspace / "repository", workspace / "key"
    run_polarvault("repo", "init", repository, "--new-key-file", key)
    options = ["--repo", repository, "--key-file", key]
    done = run_polarvault("backup", "shop", *options, "-d", cluster.conninfo(), "--json")
    label = json.loads(done.stdout)["label"]
    cluster.query("CREATE TABLE later AS SELECT n FROM generate_series(1, 20000) n")
    archive(cluster, RepositoryConfiguration("", str(repository), key=KeySource(None, None, str(key))))
    # Nobody but root can read the key and the repository now; the copy's server needs neither.
    key.chmod(0o600)
    drills = Drills(workspace)
    report = drills.run(cluster, Path("shop"), *options)
    assert report["backup"] == f"shop@{label}"
    assert report["facts"]["form"] == "backup in a repository"
    [later] = sql_files(workspace, later="SELECT count(*) = 20000 FROM later")
    asked = ["--sql", later]
    report = drills.run(cluster, Path(f"shop@{label[:11]}"), *options, "--target", "latest", *asked)
    log = [finding["message"] for finding in report["findings"] if finding["check"] == "recovery"]
    assert "recovery stopped at LSN" in log[0]
    refused = drills.run(cluster, Path("shop"), *options, *asked, status=1)
    assert any(finding["check"] == "assertion" for finding in refused["findings"])


def test_damage_in_the_repository_ends_a_drill_with_file_and_block(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(18)
    repository = workspace / "repository"
    run_polarvault("repo", "init", repository)
    labels = []
    for _ in range(3):
        done = run_polarvault("backup", "shop", "--repo", repository, "-d", cluster.conninfo(), "--json")
        labels.append(json.loads(done.stdout)["label"])
        cluster.query("VACUUM FULL accounts")
    words = ["restore", f"shop@{labels[1]}", "--repo", repository, "-D", workspace / "target", "-N"]
    with damaged_pack(repository, labels[0]):
        report = Drills(workspace).run(cluster, Path(f"shop@{labels[1]}"), "--repo", repository, status=3)
        assert "cannot be read at block" in report["failure"]["message"]
        # Only a restore says what else is concerned: a drill is about the one.
        refused = run_polarvault(*words, check=False)
        assert refused.returncode == 3
        assert f"damaged by the same are shop@{labels[2]}, shop@{labels[0]}" in refused.stderr, labels
    with damaged_pack(repository, labels[1]):
        refused = run_polarvault(*words, check=False)
        assert refused.returncode == 3
        assert "damaged by the same" not in refused.stderr
        assert f"without that damage: polarvault restore shop@{labels[0]} -D DIRECTORY" in refused.stderr
    assert not (workspace / "target").exists()
    refused = run_polarvault(
        "restore", "shop", "--repo", repository, "-D", repository / "clusters" / "target", check=False
    )
    assert "lie inside one another" in refused.stderr


@contextmanager
def damaged_pack(repository: Path, label: str) -> Iterator[None]:
    """Have a byte in the middle of a backup's largest pack flipped."""
    pack = max(repository.glob(f"clusters/shop/packs/{label}/*"), key=lambda path: path.stat().st_size)
    good = pack.read_bytes()
    content = bytearray(good)
    content[len(content) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    yield
    pack.write_bytes(good)
