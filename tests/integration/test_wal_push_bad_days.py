"""WAL archived by `wal push` on bad days: a reset server, a damaged segment, a repository that is away."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from polarvault.instance.account import server_account
from support.archiving import Archived
from support.cluster import Cluster
from support.program import run_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


def reset(cluster: Cluster, *more: str) -> None:
    """Run pg_resetwal on a stopped server."""
    subprocess.run(
        [f"{cluster.installation.directory}/pg_resetwal", "-f", *more, str(cluster.data)],
        check=True, capture_output=True, **server_account().run_as,
    )  # fmt: skip


def counted(site: Archived, name: str, table: str) -> int:
    """Restore the end of the WAL, and count what is in a table."""
    server = site.restored(name, "--target", "latest")
    try:
        ((count,),) = server.query(f"SELECT count(*) FROM {table}")
        return int(count)
    finally:
        server.stop("immediate")


@pytest.mark.parametrize("major", [15, 18])
def test_a_reset_leaves_a_gap_behind_which_a_new_backup_leads_on(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    site = Archived(make_cluster(major, wal_segment_mb=1), workspace)
    cluster = site.cluster
    site.back_up()
    cluster.query("CREATE TABLE story AS SELECT 1 AS n")
    site.switch()
    cluster.query("INSERT INTO story VALUES (2)")
    cluster.stop("immediate")
    reset(cluster)
    cluster.start()
    site.switch()
    shown = site.run("wal", "status", "shop", *site.options, check=False)
    assert shown.returncode == 1
    assert "GAP from" in shown.stdout
    refused = site.run(
        "restore", "shop", *site.options, "-D", workspace / "refused", "--target", "latest", "--plan",
        "--bindir", cluster.installation.directory, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "is missing, while" in refused.stderr
    site.back_up()
    cluster.query("CREATE TABLE later AS SELECT generate_series(1, 7) AS n")
    site.switch()
    assert counted(site, "restored", "later") == 7


@pytest.mark.parametrize("major", [15, 18])
def test_a_reset_in_the_place_of_archived_wal_is_refused_until_there_is_a_gap(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    """The disk with pg_wal is lost: pg_resetwal begins behind the last checkpoint, where WAL is archived already."""
    site = Archived(make_cluster(major, wal_segment_mb=1), workspace)
    cluster = site.cluster
    site.back_up()
    cluster.query("CREATE TABLE story AS SELECT 1 AS n")
    for _ in range(3):
        cluster.query("INSERT INTO story VALUES (2)")
        site.switch()
    before = sorted(site.repository.rglob("0*-0*"))
    cluster.stop("immediate")
    for path in (cluster.data / "pg_wal").glob("0*"):
        path.unlink()
    reset(cluster)
    cluster.start()
    cluster.query("SELECT pg_switch_wal()")
    wait_until(lambda: "was begun by pg_resetwal" in cluster.log.read_text(), "it is refused")
    said = re.search(r"run (pg_resetwal -l \w{24}) DIRECTORY", cluster.log.read_text())
    assert said is not None
    assert sorted(site.repository.rglob("0*-0*")) == before
    cluster.stop()
    reset(cluster, *said[1].split()[1:])
    cluster.start()
    site.switch()
    assert "GAP from" in site.run("wal", "status", "shop", *site.options, check=False).stdout
    site.back_up()
    cluster.query("CREATE TABLE later AS SELECT generate_series(1, 7) AS n")
    site.switch()
    assert counted(site, "restored", "later") == 7


def damaged(path: Path) -> None:
    """Flip a bit in the middle of an object."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.mark.parametrize("major", [15])
def test_a_restored_server_takes_what_one_repository_has_damaged_from_the_next(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    """Without --repo all repositories of the cluster are asked, the one first in which the backup was found."""
    site = Archived(make_cluster(major, wal_segment_mb=1), workspace)
    cluster, other = site.cluster, workspace / "other"
    site.run("repo", "init", other)
    file = workspace / "polarvault.toml"
    file.write_text(
        f'[repository.near]\naddress = "{site.repository}"\n[repository.far]\naddress = "{other}"\n'
        '[cluster.shop]\nrepositories = ["near", "far"]\n'
    )
    file.chmod(0o644)
    site.options = ["--config", str(file)]
    site.archive_into()
    site.back_up()
    cluster.query("CREATE TABLE story AS SELECT generate_series(1, 1000) AS n")
    segment = site.switch()
    cluster.query("INSERT INTO story SELECT generate_series(1, 1000)")
    gone = site.switch()
    cluster.query("INSERT INTO story VALUES (0)")
    site.switch()
    (range_of_it,) = site.repository.rglob(f"{segment}/*")
    damaged(range_of_it)
    # Lost altogether: the plan, which reads all WAL up to the target, finds it in the other one, too.
    shutil.rmtree(next(site.repository.rglob(gone)))
    assert counted(site, "both", "story") == 2001
    written = (workspace / "both" / "postgresql.auto.conf").read_text()
    assert "--repo near --repo far" in written
    alone = site.run(
        "restore", "shop", *site.options, "--repo", "near", "-D", workspace / "alone", "--target", "latest", "--plan",
        "--bindir", cluster.installation.directory, check=False,
    )  # fmt: skip
    assert alone.returncode == 3
    assert "--accept-end" in alone.stderr
    # One that is away is said, and left out: at the end of the WAL it would be waited for.
    other.rename(workspace / "away")
    target = str(cluster.query("SELECT now()")[0][0])
    away = run_polarvault(
        "restore", "shop", *site.options, "-D", str(workspace / "away2"), "--target-time", target, "--plan",
        "--bindir", str(cluster.installation.directory), check=False, as_server=True,
    )  # fmt: skip
    assert "no WAL is taken from there" in away.stderr
