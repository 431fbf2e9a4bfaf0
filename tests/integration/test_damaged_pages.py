"""Chunks of the newest backup are destroyed: what its WAL and an older backup prove comes back, the rest is refused."""

from __future__ import annotations

import json
import random
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from polarvault.pgfiles.relation_paths import relation_of
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.chunks import ChunkRef, placed
from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.reading.backup_reader import BackupReader
from polarvault.storage.objects.local import LocalStore
from polarvault.storage.objects.write_once import WriteOnce
from support.cluster import Cluster
from support.polar_cluster import PolarCluster
from support.program import command_line, run_polarvault, start_polarvault
from support.waiting import wait_until

_TABLES = """
CREATE TABLE rewritten AS SELECT n AS id, md5(n::text) AS word FROM generate_series(1, 20000) n;
CREATE INDEX rewritten_id ON rewritten (id);
CREATE TABLE resting AS SELECT n AS id, repeat('r', 300) AS word FROM generate_series(1, 5000) n;
CREATE INDEX resting_id ON resting (id);
CREATE TABLE once AS SELECT n AS id, repeat('o', 300) AS word FROM generate_series(1, 5000) n;
CREATE TABLE twice AS SELECT n AS id, repeat('t', 300) AS word FROM generate_series(1, 5000) n
"""
_ONE_ROW_A_PAGE = "DELETE FROM {} WHERE ctid = ANY (SELECT format('(%s,3)', n)::tid FROM generate_series(0, 150) n)"


class Site:
    """A server, its repository, and what is done to the newest backup."""

    def __init__(self, cluster: Cluster, workspace: Path) -> None:
        self.cluster, self.workspace = cluster, workspace
        self.path = workspace / "repository"
        run_polarvault("repo", "init", self.path, as_server=True)
        words = " ".join(command_line("wal", "push", "%p", "--cluster", "shop", "--repo", self.path))
        cluster.configure({"archive_mode": "on", "archive_command": words})
        cluster.restart()

    def back_up(self, *options: str) -> str:
        return str(json.loads(run_polarvault(*self._words, *options, as_server=True).stdout)["label"])

    def back_up_during(self, work: Callable[[], object]) -> str:
        """Take a full backup, and let work be done when it has begun to send and before it ends."""
        # The server's stream: its progress is what tells that the backup has begun.
        slow = "--source", "stream", "--max-rate", "8M"
        running = start_polarvault(*self._words, "--full", *slow, as_server=True)
        wait_until(
            lambda: self.cluster.query("SELECT 1 FROM pg_stat_progress_basebackup WHERE phase LIKE 'streaming%'"),
            "the backup sends files",
        )
        work()
        out, said = running.communicate(timeout=120)
        assert running.returncode == 0, said
        return str(json.loads(out)["label"])

    @property
    def _words(self) -> tuple[str | Path, ...]:
        return "backup", "shop", "--repo", self.path, "-d", self.cluster.conninfo(), "--checkpoint", "fast", "--json"

    def destroy(self, label: str, names: Iterable[str]) -> int:
        """Overwrite all chunks of files in a backup that are its own, and return how many they were.

        Bundles in which there are files of other kinds as well are spared: backup_label is nowhere else.
        """
        reader = Repository.open(WriteOnce(LocalStore(str(self.path)))).open_backup("shop", label)
        paths = set(names)
        spared = {row.bundle for row in reader.rows() if relation_of(row.name) is None}
        lost = {
            ref for row in reader.rows() if row.kind is FileKind.FILE and row.name in paths
            for ref in _chunks(reader, row) if ref.label == label and ref not in spared
        }  # fmt: skip
        for ref in lost:
            pack = self.path / "clusters/shop/packs" / ref.label / f"{ref.pack:06}"
            content = bytearray(pack.read_bytes())
            content[ref.offset : ref.offset + ref.stored] = bytes(ref.stored)
            pack.chmod(0o600)
            pack.write_bytes(content)
        return len(lost)

    def destroy_some(
        self, label: str, rng: random.Random, count: int
    ) -> dict[tuple[str, str, str], tuple[Path, int, bytes]]:
        """Overwrite some chunks of relations; return by number, label and pack what puts each of them back."""
        reader = Repository.open(WriteOnce(LocalStore(str(self.path)))).open_backup("shop", label)
        rows = [row for row in reader.rows() if row.kind is FileKind.FILE]
        spared = {row.bundle for row in rows if relation_of(row.name) is None}
        chunks = {ref for row in rows for ref in _chunks(reader, row)} - spared
        found = {}
        for ref in rng.sample(sorted(chunks, key=lambda ref: ref.place), min(count, len(chunks))):
            pack = self.path / "clusters/shop/packs" / ref.label / f"{ref.pack:06}"
            content = bytearray(pack.read_bytes())
            found[str(ref.number), ref.label, f"{ref.pack:06}"] = (
                pack, ref.offset, bytes(content[ref.offset : ref.offset + ref.stored])
            )  # fmt: skip
            content[ref.offset : ref.offset + ref.stored] = bytes(ref.stored)
            pack.chmod(0o600)
            pack.write_bytes(content)
        return found

    def put_back(self, lost: tuple[Path, int, bytes]) -> None:
        """Undo it for one chunk."""
        pack, offset, stored = lost
        content = bytearray(pack.read_bytes())
        content[offset : offset + len(stored)] = stored
        pack.write_bytes(content)

    def restore(
        self, name: str, *options: str | Path, word: str = "shop", status: int | None = 0
    ) -> tuple[Cluster, str]:
        target = self.workspace / name
        restored = Cluster(self.cluster.installation, self.workspace)
        restored.data = target
        done = run_polarvault(
            "restore", word, "--repo", self.path, "-D", target, "--port", str(restored.port), "--bindir",
            self.cluster.installation.directory, "--set", f"unix_socket_directories={self.workspace}", "--set",
            "fsync=off", "-N", "--start", *options, check=False, as_server=True,
        )  # fmt: skip
        assert done.returncode == status or (status is None and done.returncode in (0, 3)), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return restored, done.stdout + done.stderr

    def files(self, *relations: str) -> list[str]:
        names = ", ".join(f"'{name}'" for name in relations)
        rows = self.cluster.query(f"SELECT pg_relation_filepath(oid) FROM pg_class WHERE relname IN ({names})")
        # PolarDB says which protocol leads to its shared storage.
        paths = [path[path.index("base/") :] for (path,) in rows]
        return [f"{path}{fork}" for path in paths for fork in ("", "_fsm", "_vm")]


def _chunks(reader: BackupReader, row: FileRow) -> Iterable[ChunkRef]:
    if row.bundle is not None:
        yield row.bundle
    for number, ref in enumerate(row.tables):
        table = reader.index.table(ref).table
        reader.check_pieces(row, number, table)
        for piece in table.pieces:
            yield placed(piece.base)
            yield from (placed(overlay.chunk) for overlay in piece.overlays)


def checked(restored: Cluster) -> list[Any]:
    """Return what amcheck finds in a restored server, as far as there is amcheck; then stop it."""
    try:
        if not restored.query("SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'"):
            return []
        restored.query("CREATE EXTENSION amcheck")
        restored.query(
            "SELECT bt_index_check(i.indexrelid, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p'"
        )
        return restored.query(
            "SELECT c.relname, v.* FROM pg_class c, LATERAL verify_heapam(c.oid) v WHERE c.relkind = 'r' "
            "AND c.relpersistence = 'p'"
        )
    finally:
        restored.stop("immediate")


@pytest.mark.parametrize(
    ("major", "checksums", "compression"),
    [(15, False, "lz4"), (15, True, "zstd"), (18, True, "pglz")],
)
def test_destroyed_pages_come_back_where_the_wal_proves_them_and_are_refused_where_not(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int, checksums: bool, compression: str
) -> None:
    settings = {"autovacuum": "off", "wal_compression": compression}
    cluster = make_cluster(major, checksums=checksums, settings=settings)
    cluster.query(_TABLES)
    # Their hint bits are set, so that a row that goes is all that happens to a page.
    cluster.query("SELECT (SELECT count(*) FROM once), (SELECT count(*) FROM twice)")
    cluster.query("CHECKPOINT")
    site = Site(cluster, workspace)
    first = site.back_up()
    cluster.query("CHECKPOINT")
    # Hint bits: with checksums the WAL has an image of each page, without it has nothing.
    cluster.query("SELECT count(*) FROM resting")
    cluster.query(_ONE_ROW_A_PAGE.format("once"))
    cluster.query(_ONE_ROW_A_PAGE.format("twice"))
    cluster.query("DELETE FROM twice WHERE ctid = '(9,5)'")

    def during() -> None:
        cluster.query("UPDATE rewritten SET word = word || '!'")
        cluster.query("CREATE TABLE new (n int)")
        cluster.query("INSERT INTO new SELECT n FROM generate_series(1, 1000) n")

    second = site.back_up_during(during)
    wait_until(lambda: cluster.query("SELECT last_archived_wal FROM pg_stat_archiver") != [(None,)], "WAL is archived")
    before = cluster.hashes()
    lost = site.files("rewritten", "rewritten_id", "resting", "resting_id", "once")
    lost += site.files("pg_attribute", "pg_class", "pg_type", "pg_depend", "pg_attribute_relid_attnum_index")
    assert site.destroy(second, lost) > 10
    restored, said = site.restore("back")
    try:
        assert restored.hashes() == before
    finally:
        found = checked(restored)
    assert found == []
    assert "zeros, which recovery overwrites with the whole page from the WAL" in said
    assert "its image in the WAL, which no later record has changed" in said
    older = f"an older version, which no record of the WAL since has changed (hint bits may differ) (shop@{first})"
    assert checksums or older in said
    if compression == "zstd":
        # What is there, and went on for a while, becomes the backup in place.
        restored, said = site.restore("back", "--delta")
        assert "zeros, which recovery overwrites" in said
        try:
            assert restored.hashes() == before
        finally:
            restored.stop("immediate")
    # One page of the other table was changed after its image: no file can say what it was at the redo point.
    (path, *_) = site.files("twice")
    site.destroy(second, [path])
    _, said = site.restore("refused", status=3)
    assert f"'{path}' cannot be read at block 0:" in said
    assert "block 9: no other backup has the same page, and the record at" in said
    assert not (workspace / "refused").exists()
    # What the hint says leads to the same rows.
    (hint,) = [line for line in said.splitlines() if "its WAL leads to where this one ends" in line]
    words = shlex.split(hint.partition("polarvault restore ")[2].partition(" -D DIRECTORY")[0])
    assert words[:2] == [f"shop@{first}", "--target-lsn"]
    restored, _ = site.restore("recovered", *words[1:], "--target-action", "promote", word=words[0])
    try:
        assert restored.hashes() == before
    finally:
        found = checked(restored)
    assert found == []


def churn(cluster: Cluster, rng: random.Random) -> None:
    """Change things, with checkpoints in between, so that images come late as well as early."""
    steps: list[Callable[[], Any]] = [
        lambda: cluster.query(f"UPDATE rewritten SET word = word || 'x' WHERE id % {rng.randrange(50, 900)} = 0"),
        lambda: cluster.query(f"DELETE FROM once WHERE id % {rng.randrange(90, 400)} = 7"),
        lambda: cluster.query("INSERT INTO twice SELECT n, 'new' FROM generate_series(6000, 6500) n"),
        lambda: cluster.query("VACUUM rewritten"),
        lambda: cluster.query("VACUUM FULL twice"),
        lambda: cluster.query("VACUUM (FREEZE) resting"),
        lambda: cluster.query("REINDEX TABLE rewritten"),
        lambda: cluster.query("SELECT count(*), sum(length(word)) FROM resting"),
        lambda: cluster.query("TRUNCATE once; INSERT INTO once SELECT n, 'o' FROM generate_series(1, 900) n"),
        lambda: cluster.query("CREATE TABLE IF NOT EXISTS more AS SELECT n FROM generate_series(1, 3000) n"),
        lambda: cluster.query("DROP TABLE IF EXISTS more"),
        lambda: cluster.query("ANALYZE"),
        lambda: cluster.query("CREATE INDEX ON resting USING gin ((ARRAY[id % 7, id % 11]))"),
        lambda: cluster.query(
            f"CREATE DATABASE d{rng.randrange(10**9)} STRATEGY = {rng.choice(['wal_log', 'file_copy'])}"
        ),
    ]
    for step in rng.sample(steps, 5):
        step()
        if rng.random() < 0.6:
            cluster.query("CHECKPOINT")


@pytest.mark.parametrize(("major", "seed"), [(15, 1), (18, 2)])
def test_whatever_chunks_are_lost_the_restore_is_right_or_refused(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int, seed: int
) -> None:
    rng = random.Random(seed)
    checksums = rng.random() < 0.5
    cluster = make_cluster(major, checksums=checksums, settings={"wal_compression": rng.choice(["off", "pglz"])})
    cluster.query(_TABLES)
    site = Site(cluster, workspace)
    for _ in range(3):
        churn(cluster, rng)
        site.back_up(*rng.choice([[], ["--full"]]))
    churn(cluster, rng)
    label = site.back_up_during(lambda: churn(cluster, rng))
    cluster.query("SELECT pg_switch_wal()")
    status = cluster.data / "pg_wal" / "archive_status"
    wait_until(lambda: not list(status.glob("*.ready")), "WAL is archived")
    # Later changes do not count: the backup is restored to its end.
    restored, _ = site.restore("whole")
    try:
        wanted = restored.hashes()
    finally:
        found = checked(restored)
    assert found == []
    lost = site.destroy_some(label, rng, 25)
    for number in range(len(lost) + 1):
        restored, said = site.restore(f"back{number}", status=None)
        if restored.data.exists():
            break
        # The chunk that nothing proves comes back; the others stay lost.
        (name,) = re.findall(r"chunk (\d+) of \"clusters/shop/packs/([^/\"]+)/(\d+)\"", said)[:1]
        assert "no other backup has the same page, and " in said
        site.put_back(lost.pop(name))
    try:
        assert restored.hashes() == wanted
    finally:
        found = checked(restored)
    assert found == []
    assert said.count("damaged in this backup") >= 1 or not lost


@pytest.mark.polardb
@pytest.mark.parametrize("writes", ["on", "off"])
def test_on_polardb_pages_come_back_where_full_page_writes_is_on(
    make_polardb: Callable[..., PolarCluster], workspace: Path, writes: str
) -> None:
    polar = make_polardb(settings={"autovacuum": "off", "full_page_writes": writes})
    polar.query(_TABLES)
    polar.query("CHECKPOINT")
    site = Site(polar, workspace)
    label = site.back_up_during(lambda: polar.query("UPDATE rewritten SET word = word || '!'"))
    before = polar.hashes()
    site.destroy(label, site.files("rewritten")[:1])
    places = ["--polardata", workspace / "shared"]
    if writes == "off":
        _, said = site.restore("back", *places, status=3)
        assert "the WAL of the backup reads the page before it holds the whole" in said
        return
    restored, said = site.restore("back", *places)
    try:
        assert restored.hashes() == before
    finally:
        restored.stop("immediate")
    assert "zeros, which recovery overwrites with the whole page from the WAL" in said
