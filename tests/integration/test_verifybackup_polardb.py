"""Two halves: backups of a real PolarDB by its own tool and by ours, and the same shapes without PolarDB.

The official tool's manifest lists both halves without saying which is which, some paths twice.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from polarvault.instance.model import Binaries
from polarvault.model.lsn import Lsn
from polarvault.model.relation import BlockId
from polarvault.pgfiles.relation_paths import relation_of
from polarvault.verify.facts.backup import WalRange
from polarvault.verify.wal.check import check_wal
from polarvault.wal.page_fates import Fate, PageFates
from polarvault.walfiles.directory import WalDirectory
from support.backups import back_up
from support.cluster import Cluster
from support.polar_cluster import PolarCluster
from support.program import run_polarvault
from support.servers import ServerPool
from support.two_archive_proxy import TwoArchiveProxy
from support.verifying import append, copy, cut, findings, flip, ours, read_member, remove, rewrite_tar, set_aside

NESTED = "polar_shared_data"
XACT = "pg_xact/0000"
OFFSETS = "pg_multixact/offsets/0000"
GOOD = "backup successfully verified\n"


@pytest.fixture(scope="module")
def polar(servers: ServerPool, polardb_installation: Binaries) -> Iterator[PolarCluster]:
    """A primary whose backups are small: without the 768 MB that it would set aside for page versions."""
    settings = {"polar_enable_fullpage_snapshot": "off"}
    cluster = PolarCluster.made_polar(polardb_installation, servers.directory / "small", settings=settings)
    yield cluster
    cluster.remove()


def official(cluster: PolarCluster, target: Path, *options: str) -> Path:
    """Take a backup with PolarDB's own tool."""
    arguments = ("-d", cluster.conninfo(), "-c", "fast", "-N", "-D", str(target), *options)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cluster.run, "polar_basebackup", *arguments)
        # On an idle server the tool would wait up to 20 s until the end of the backup is flushed (facts 1.6).
        while not wait([running], timeout=0.3).done:
            cluster.query("SELECT pg_logical_emit_message(true, 'test', '')")
        running.result()
    return target


def assert_good(*arguments: object) -> None:
    verdict = ours("--summary", *map(str, arguments))
    assert (verdict.status, verdict.output) == (0, GOOD), verdict.errors
    assert "error" not in verdict.errors
    assert "warning" not in verdict.errors
    assert "page checksums" in verdict.errors
    assert "WAL records" in verdict.errors


def bad(*arguments: object) -> set[tuple[str, str]]:
    """Return check and subject of every problem."""
    found = findings(*map(str, arguments))
    assert {severity for severity, _, _ in found} == {"problem"}
    return {(check, subject) for _, check, subject in found}


def content_check(name: str) -> str:
    """Return the check that finds a changed byte: a bad page is told once, together with the checksum of its file."""
    return "page-checksum" if name == "base/1/1259" else "wrong-checksum"


def damage_each_half(local: Path, shared: Path, title: str, aside: Path, *arguments: object) -> None:
    """Do to both halves what is done to files, and see that each finding names the file with its half."""
    for half, prefix in ((local, ""), (shared, title)):
        # Both hold these, in the official tool's manifest under one name.
        for name in (XACT, OFFSETS):
            if not (half / name).exists():
                # Polarvault leaves the local half's caches out.
                assert half == local
                continue
            for change, check in (
                (lambda path: flip(path, 5), "wrong-checksum"),
                (remove, "missing-file"),
                (lambda path: cut(path, -1), "wrong-size"),
                (append, "wrong-size"),
            ):
                with set_aside(half / name, aside=aside) as path:
                    change(path)
                    assert bad(*arguments) == {(check, prefix + name)}
        with set_aside(half / "base/extra", aside=aside) as path:
            path.write_text("extra")
            assert bad(*arguments) == {("extra-file", f"{prefix}base/extra")}
    if (local / XACT).exists():
        with set_aside(local / XACT, aside=aside) as one, set_aside(shared / XACT, aside=aside) as other:
            # They may be the same.
            flip(one, 100)
            flip(other, 101)
            one.rename(aside / "swap")
            other.rename(one)
            (aside / "swap").rename(other)
            assert bad(*arguments) == {("wrong-checksum", XACT), ("wrong-checksum", title + XACT)}
    # What is in one of them only: configuration, relations, pg_control.
    for half, prefix, name in (
        (local, "", "postgresql.conf"),
        (shared, title, "base/1/1259"),
        (shared, title, "base/5/PG_VERSION"),
    ):
        with set_aside(half / name, aside=aside) as path:
            flip(path, -1)
            assert (content_check(name), prefix + name) in bad(*arguments)
            path.unlink()
            assert bad(*arguments) == {("missing-file", prefix + name)}
    with set_aside(shared / "global/pg_control", aside=aside) as path:
        flip(path, 24)
        found = {subject for _, subject in bad(*arguments)}
        assert found == {f"{title}global/pg_control"}


# The official tool


@pytest.mark.polardb
def test_the_official_tools_two_directories(polar: PolarCluster, workspace: Path) -> None:
    local, shared = workspace / "local", workspace / "shared"
    official(polar, local, f"--polardata={shared}")
    given = (local, "--polardata", shared)
    assert_good(*given)
    damage_each_half(local, shared, f"{shared}/", workspace, *given)
    assert ("shared-half-missing", str(local / NESTED)) in bad(local)
    assert {check for check, _ in bad(shared)} == {"manifest", "local-half-missing"}
    # A wrong directory is not taken for the half that was asked for.
    verdict = ours(local, "--polardata", workspace)
    assert verdict.status == 1
    assert ours(local, "--polardata", workspace / "nowhere").status == 1


@pytest.mark.polardb
def test_the_official_tools_nested_half(polar: PolarCluster, workspace: Path) -> None:
    backup = official(polar, workspace / "backup", "-R")
    assert_good(backup)
    damage_each_half(backup, backup / NESTED, f"{NESTED}/", workspace, backup)
    with set_aside(backup / NESTED / "pg_wal", aside=workspace) as path:
        for segment in path.glob("0000*"):
            segment.unlink()
        assert {check for check, _ in bad(backup)} == {"wal-absent"}
        assert ours("-n", backup).is_good
    assert ours("-i", NESTED, "-n", backup).status in (0, 1)


@pytest.mark.polardb
def test_the_official_tool_without_wal(polar: PolarCluster, workspace: Path) -> None:
    backup = official(polar, workspace / "backup", "-X", "none", "--manifest-checksums=NONE")
    assert {check for check, _ in bad(backup)} == {"wal-absent"}
    assert ours("-n", backup).is_good
    assert_good("-w", polar.shared / "pg_wal", backup)


@pytest.mark.polardb
@pytest.mark.parametrize("options", [["-Ft"], ["-Ft", "-z"]], ids=" ".join)
def test_the_official_tools_tars(polar: PolarCluster, workspace: Path, options: list[str]) -> None:
    backup = official(polar, workspace / "backup", *options)
    assert_good(backup)
    damage_tars(backup, workspace)


def damage_tars(backup: Path, aside: Path) -> None:
    """Damage a file in each tar; gzip's tars only as a whole."""
    for name, title, members in (
        ("base.tar", "", ["backup_label", XACT]),
        ("data.tar", "data.tar:", [XACT, OFFSETS, "base/1/1259"]),
    ):
        path = backup / name
        if not path.exists():
            with set_aside(backup / f"{name}.gz", aside=aside) as compressed:
                flip(compressed, compressed.stat().st_size // 2)
                assert not ours(backup).is_good
            with set_aside(backup / f"{name}.gz", aside=aside) as compressed:
                compressed.unlink()
                assert not ours(backup).is_good
            continue
        with tarfile.open(path) as archive:
            present = set(archive.getnames())
        for member in members:
            if member not in present:
                continue
            content = bytearray(read_member(path, member))
            content[-1] ^= 1
            with set_aside(path, aside=aside):
                rewrite_tar(path, {member: bytes(content)})
                assert (content_check(member), title + member) in bad(backup)
            with set_aside(path, aside=aside):
                rewrite_tar(path, {member: None})
                assert ("missing-file", title + member) in bad(backup)
    with set_aside(backup / "notes", aside=aside) as path:
        path.write_text("")
        assert bad(backup) == {("extra-file", "notes")}


@pytest.mark.polardb
def test_a_fetched_backup_without_its_end_is_a_problem(polar: PolarCluster, workspace: Path) -> None:
    # Right after a checkpoint nothing else is flushed: the server reads its WAL file too early (facts 1.6).
    polar.query("CHECKPOINT")
    arguments = ("-d", polar.conninfo(), "-c", "fast", "-N", "-Ft", "-X", "fetch", "-D", str(workspace / "backup"))
    polar.run("polar_basebackup", *arguments)
    checks = {check for check, _ in bad(workspace / "backup")}
    assert checks & {"wal-ends-early", "wal-backup-end"}


@pytest.mark.polardb
def test_the_backup_of_a_read_only_node_is_a_problem(
    make_polardb: Callable[..., PolarCluster], workspace: Path
) -> None:
    primary = make_polardb(settings={"full_page_writes": "on"})
    replica = primary.add_replica("reader")
    try:
        replica.run(
            "polar_basebackup", "-d", replica.conninfo(), "-c", "fast", "-N", "-X", "none", "-D",
            str(workspace / "backup"), "--no-verify-checksums",
        )  # fmt: skip
    finally:
        replica.remove()
    found = findings("-n", workspace / "backup")
    assert "label-control" in {check for severity, check, _ in found if severity == "problem"}


# Ours


@pytest.mark.polardb
def test_our_nested_half(polar: PolarCluster, workspace: Path) -> None:
    backup = workspace / "backup"
    said = back_up(polar, backup).stdout
    assert f"verify:      polarvault verifybackup {backup}\n" in said
    assert_good(backup)
    damage_each_half(backup, backup / NESTED, f"{NESTED}/", workspace, backup)


@pytest.mark.polardb
def test_our_two_directories_also_when_they_are_moved(polar: PolarCluster, workspace: Path) -> None:
    local, shared = workspace / "local", workspace / "shared"
    back_up(polar, local, "--polardata", str(shared))
    assert_good(local)
    damage_each_half(local, shared, f"{shared}/", workspace, local)
    (workspace / "moved").mkdir()
    for half in (local, shared):
        copy(half, workspace / "moved" / half.name)
    shared.rename(workspace / "lost")
    assert_good(workspace / "moved/local")
    assert_good(local, "--polardata", workspace / "lost")
    assert ("shared-half-missing", str(shared)) in bad(local)
    assert bad(workspace / "lost") == {("local-half-missing", str(workspace / "lost"))}


@pytest.mark.polardb
@pytest.mark.parametrize("options", [["-Ft"], ["-Ft", "-z"], ["-Ft", "-X", "fetch"]], ids=" ".join)
def test_our_tars(polar: PolarCluster, workspace: Path, options: list[str]) -> None:
    backup = workspace / "backup"
    back_up(polar, backup, *options)
    assert_good(backup)
    damage_tars(backup, workspace)
    with set_aside(backup / "backup_manifest.shared", aside=workspace) as path:
        path.unlink()
        assert ("manifest", "data.tar:backup_manifest") in bad(backup)


# The same shapes without PolarDB

Pair = tuple[Cluster, TwoArchiveProxy]


def through_proxy(pair: Pair, target: Path, *options: str) -> Path:
    cluster, proxy = pair
    connection = ("-d", cluster.tcp_conninfo(port=proxy.port), "-c", "fast", "-N")
    # All that the server sends, so that its manifest fits.
    run_polarvault("basebackup", "-D", target, *connection, "--keep-all", *options)
    return target


def make_ambiguous(backup: Path) -> None:
    """Put the server's manifest in the place of ours, as the official tool keeps it."""
    for found in backup.rglob("backup_manifest*"):
        if found.name != "backup_manifest.server":
            found.unlink()
    (backup / "backup_manifest.server").rename(backup / "backup_manifest")
    (backup / "polarvault_backup.json").unlink()


@pytest.mark.postgres
def test_two_halves_of_any_server_in_plain_format(two_archives: Pair, workspace: Path) -> None:
    backup = through_proxy(two_archives, workspace / "backup")
    assert_good(backup)
    damage_each_half(backup, backup / NESTED, f"{NESTED}/", workspace, backup)
    make_ambiguous(backup)
    assert_good(backup)
    damage_each_half(backup, backup / NESTED, f"{NESTED}/", workspace, backup)
    (backup / NESTED).rename(workspace / "elsewhere")
    assert_good(backup, "--polardata", workspace / "elsewhere")
    assert ("shared-half-missing", str(backup / NESTED)) in bad(backup)


@pytest.mark.postgres
def test_two_halves_of_any_server_in_tars(two_archives: Pair, workspace: Path) -> None:
    backup = through_proxy(two_archives, workspace / "backup", "-Ft")
    assert_good(backup)
    damage_tars(backup, workspace)
    make_ambiguous(backup)
    assert_good(backup)
    damage_tars(backup, workspace)
    shutil.move(backup / "data.tar", workspace / "data.tar")
    assert not ours(backup).is_good


# Torn pages


@pytest.mark.polardb
def test_without_full_page_writes_the_wal_repairs_no_torn_page(polar: PolarCluster) -> None:
    polar.query("CREATE TABLE torn AS SELECT n, repeat('x', 500) AS filler FROM generate_series(1, 200) n")
    ((path,),) = polar.query("SELECT pg_relation_filepath('torn')")
    found = relation_of(path[path.index("base/") :])
    assert found is not None
    page = BlockId(*found, 0)
    fates = {}
    for setting in ("off", "on"):
        polar.query(f"ALTER SYSTEM SET full_page_writes = {setting}")
        polar.reload()
        polar.query("CHECKPOINT")
        ((start,),) = polar.query("SELECT pg_current_wal_insert_lsn()::text")
        polar.query("UPDATE torn SET n = n + 1 WHERE n % 7 = 0")
        ((end,),) = polar.query("SELECT pg_current_wal_flush_lsn()::text")
        asked = fates[setting] = PageFates([page])
        span = WalRange(1, Lsn.parse(start), Lsn.parse(end))
        verdict = check_wal([span], WalDirectory(str(polar.shared / "pg_wal")), segment_size_bytes=None, fates=asked)
        # What was flushed last may end within a record.
        assert verdict.records > 0
    polar.query("ALTER SYSTEM RESET full_page_writes")
    polar.reload()
    assert fates["off"].fate(page) is Fate.CHANGED
    assert fates["on"].fate(page) is Fate.REPAIRED
