"""The WAL readers beside the real pg_waldump, on WAL of real servers."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from polarvault.instance.model import Binaries
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.compiled.reader import CompiledReader
from polarvault.wal.records import RMGR_TABLESPACE, RMGR_XLOG, Record, RecordReader
from polarvault.wal.scan import MarkKind, WalMark, WalScanner
from support.cluster import Cluster
from support.polar_cluster import PolarCluster
from support.waldump import waldump

pytestmark = pytest.mark.postgres

SETTINGS = {"max_prepared_transactions": "10", "wal_level": "logical", "wal_keep_size": "1GB", "autovacuum": "off"}
# Bodies longer than a segment of 1 MB, in a transaction of many subtransactions.
WORKLOAD = """
SELECT pg_create_restore_point('before the load');
SELECT pg_logical_emit_message(false, 'long', repeat('x', 3000000));
CREATE TABLE t (n int);
BEGIN; INSERT INTO t VALUES (1); SAVEPOINT a; INSERT INTO t VALUES (2); ROLLBACK TO a; SAVEPOINT b; INSERT INTO t VALUES (3);
PREPARE TRANSACTION 'kept';
COMMIT PREPARED 'kept';
BEGIN; CREATE TABLE u (n int); CREATE INDEX ON u (n); PREPARE TRANSACTION 'dropped';
ROLLBACK PREPARED 'dropped';
BEGIN; CREATE TABLE v (n int); COMMIT;
BEGIN; DROP TABLE v; SAVEPOINT a; INSERT INTO t VALUES (4); PREPARE TRANSACTION 'drops a table';
COMMIT PREPARED 'drops a table';
BEGIN; INSERT INTO t VALUES (5); ROLLBACK;
SELECT pg_switch_wal();
DO $$ BEGIN FOR n IN 1..300 LOOP BEGIN INSERT INTO t VALUES (n); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$;
CHECKPOINT;
SELECT pg_create_restore_point('after the load')
"""  # noqa: E501


@dataclass
class Reading:
    """What our readers say about a directory of WAL."""

    records: list[Record]
    marks: list[WalMark]
    next_lsn: Lsn
    end_reason: str | None


def read_directory(directory: Path, start: Lsn, segment_bytes: int, *, timeline_id: int = 1) -> Reading:
    """Read from an LSN to the end of valid WAL, in pieces of all sizes, with both readers."""
    cuts = random.Random(5)
    records: list[Record] = []
    plain = RecordReader(start, segment_bytes)
    scanner = WalScanner(start, segment_bytes)
    marks: list[WalMark] = []
    segment = WalSegment.holding(start, timeline_id, segment_bytes)
    skipped = start - segment.start
    while (directory / segment.file_name).exists() and plain.end is None:
        with open(directory / segment.file_name, "rb") as file:
            file.seek(skipped)
            while plain.end is None and (piece := file.read(cuts.choice([100, 8192, 70_000, 1 << 20]))):
                records += plain.feed(piece)
                marks += scanner.feed(memoryview(piece))
        skipped, segment = 0, segment.next()
    assert isinstance(scanner._reader, CompiledReader)
    assert (scanner.next_lsn, scanner.record_count) == (plain.next_lsn, len(records))
    assert scanner.end_reason == (None if plain.end is None else str(plain.end))
    return Reading(records, marks, scanner.next_lsn, scanner.end_reason)


def assert_same(
    ours: Reading, installation: Binaries, directory: Path, segment_bytes: int, *, timeline_id: int = 1
) -> None:
    """Compare with pg_waldump record by record, mark by mark, and the end."""
    theirs = waldump(installation, directory, ours.records[0].lsn, segment_bytes, timeline_id=timeline_id)
    assert [(r.lsn, r.total_bytes, r.xid, r.rmgr, r.previous_lsn) for r in ours.records] == [
        r.identity for r in theirs.records
    ]
    for record, following in pairwise(ours.records):
        # At a page's end the next header lies between.
        header_bytes = 0 if record.end_lsn % 8192 else 24 if record.end_lsn % segment_bytes else 40
        assert following.lsn == record.end_lsn + header_bytes
    ends = [m for m in ours.marks if m.kind in (MarkKind.COMMIT, MarkKind.ABORT)]
    assert [(m.kind.name, m.lsn, m.xid, m.time) for m in ends] == [
        r.transaction_end for r in theirs.records if r.transaction_end
    ]
    said = {r.lsn: r.description for r in theirs.records if r.rmgr in (RMGR_XLOG, RMGR_TABLESPACE)}
    for mark in ours.marks:
        if mark.kind not in (MarkKind.COMMIT, MarkKind.ABORT):
            assert describes(said[mark.lsn], mark), (said[mark.lsn], mark)
    known = (
        "CHECKPOINT_S",
        "CHECKPOINT_O",
        "RESTORE_POINT",
        "SWITCH",
        "PARAM",
        "END_OF_R",
        "BACKUP_END",
        "FPW_CHANGE",
        "CREATE ",
    )
    assert sum(d.startswith(known) for d in said.values()) == len(ours.marks) - len(ends)
    assert theirs.stopped_at in (ours.next_lsn, None)


def describes(description: str, mark: WalMark) -> bool:
    """Tell whether pg_waldump's words say what the mark says."""
    checkpoint = f"redo {mark.lsn_argument}; tli {mark.timeline_id}; prev tli {mark.previous_timeline_id};"
    words = {
        MarkKind.CHECKPOINT: f"CHECKPOINT_{(mark.name or '').upper()} {checkpoint}",
        MarkKind.RESTORE_POINT: f"RESTORE_POINT {mark.name}",
        MarkKind.SEGMENT_SWITCH: "SWITCH",
        MarkKind.PARAMETER_CHANGE: "PARAMETER_CHANGE",
        MarkKind.BACKUP_END: f"BACKUP_END {mark.lsn_argument}",
        MarkKind.TABLESPACE: "CREATE ",
        MarkKind.FULL_PAGE_WRITES_CHANGE: f"FPW_CHANGE {'true' if mark.name == 'on' else 'false'}",
        MarkKind.END_OF_RECOVERY: f"END_OF_RECOVERY tli {mark.timeline_id}; prev tli {mark.previous_timeline_id}; time",
    }[mark.kind]
    level = re.search(r"wal_level=(\w+)", description)
    return description.startswith(words) and (mark.kind is not MarkKind.PARAMETER_CHANGE or mark.name == level[1])


def first_record(directory: Path, segment_bytes: int, *, timeline_id: int = 1) -> Lsn:
    """Return the LSN of the first record that begins in the oldest segment of a timeline."""
    name = min(p.name for p in directory.glob(f"{timeline_id:08X}*") if len(p.name) == 24)
    reader = RecordReader(WalSegment.parse(name, segment_bytes).start, segment_bytes)
    with open(directory / name, "rb") as file:
        return reader.feed(file.read(1 << 20))[0].lsn


def run_workload(cluster: Cluster, transactions: int = 300) -> None:
    """Write every kind of record that a test asks for."""
    options = cluster._socket_options()
    cluster.run("pgbench", *options, "-i", "-q", "postgres")
    cluster.run("pgbench", *options, "-n", "-c", "4", "-t", str(transactions), "postgres")
    statements = cluster.directory / "workload.sql"
    statements.write_text(WORKLOAD)
    cluster.run("pgbench", *options, "-n", "-t", "1", "-f", str(statements), "postgres")
    cluster.query("ALTER SYSTEM SET full_page_writes = off")
    cluster.reload()
    # It is the checkpointer that writes the record of it, which may read the setting later than our session.
    cluster.query("CHECKPOINT")
    cluster.query("ALTER SYSTEM RESET full_page_writes")
    cluster.reload()
    cluster.query("CHECKPOINT")
    cluster.run("pgbench", *options, "-n", "-c", "4", "-t", str(transactions), "postgres")


@pytest.mark.parametrize(
    ("major", "segment_mb"),
    [(13, 1), (15, 16), (15, 1), (16, 1), (16, 64), (17, 16), (18, 1), (18, 64), (19, 1), (19, 16)],
)
def test_every_record_and_mark_is_pg_waldumps(
    make_cluster: Callable[..., Cluster], major: int, segment_mb: int
) -> None:
    cluster = make_cluster(major, wal_segment_mb=segment_mb, settings=SETTINGS)
    directory, segment_bytes = cluster.data / "pg_wal", segment_mb << 20
    cluster.add_tablespace("another", rows=10)
    run_workload(cluster)
    cluster.stop()
    start = first_record(directory, segment_bytes)
    ours = read_directory(directory, start, segment_bytes)
    assert_same(ours, cluster.installation, directory, segment_bytes)
    assert {m.kind for m in ours.marks} >= set(MarkKind) - {MarkKind.BACKUP_END, MarkKind.END_OF_RECOVERY}
    assert ours.end_reason is not None


# Every kind of index, of lock and of catalog change that leaves records of its own.
MANY_KINDS = """
CREATE EXTENSION IF NOT EXISTS bloom;
CREATE TABLE many (n int, words text, place point, span int4range, list int[]);
INSERT INTO many SELECT n, md5(n::text), point(n, -n), int4range(n, n + 5), ARRAY[n, n + 1] FROM generate_series(1, 2000) n;
CREATE INDEX ON many USING hash (words);
CREATE INDEX ON many USING gin (list);
CREATE INDEX ON many USING gist (place);
CREATE INDEX ON many USING gist (span);
CREATE INDEX ON many USING spgist (words);
CREATE INDEX ON many USING brin (n);
CREATE INDEX ON many USING bloom (n);
INSERT INTO many SELECT n, md5(n::text), point(n, n), int4range(n, n + 5), ARRAY[n % 7, n % 11] FROM generate_series(1, 2000) n;
UPDATE many SET words = words || 'x' WHERE n % 3 = 0;
DELETE FROM many WHERE n % 5 = 0;
VACUUM many;
VACUUM (FULL) many;
REINDEX TABLE many;
CREATE SEQUENCE numbers;
SELECT nextval('numbers') FROM generate_series(1, 100);
ALTER SEQUENCE numbers RESTART;
SELECT setval('numbers', 500);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent);
INSERT INTO parent SELECT generate_series(1, 200);
CLUSTER parent USING parent_pkey;
INSERT INTO child SELECT 1 + n % 200 FROM generate_series(1, 400) n;
BEGIN; SELECT id FROM parent FOR SHARE; SAVEPOINT a; SELECT id FROM parent FOR UPDATE; SAVEPOINT b; UPDATE parent SET id = id + 1000 WHERE id < 0; COMMIT;
TRUNCATE child;
BEGIN; TRUNCATE many; ROLLBACK;
CREATE UNLOGGED TABLE quick AS SELECT generate_series(1, 100) AS n;
ALTER TABLE quick SET LOGGED;
CREATE MATERIALIZED VIEW seen AS SELECT count(*) FROM many;
REFRESH MATERIALIZED VIEW seen;
SELECT lo_create(0);
SELECT pg_logical_emit_message(true, 'in a transaction', 'x');
SELECT pg_replication_origin_create('somewhere');
SELECT pg_replication_origin_session_setup('somewhere');
BEGIN; INSERT INTO parent VALUES (5000); SELECT pg_replication_origin_xact_setup('0/99', now()); PREPARE TRANSACTION 'from somewhere';
COMMIT PREPARED 'from somewhere';
SELECT pg_replication_origin_session_reset();
SELECT pg_replication_origin_drop('somewhere');
CREATE DATABASE one;
DROP DATABASE one
"""  # noqa: E501
FROM_15 = """
CREATE DATABASE by_files STRATEGY FILE_COPY;
CREATE DATABASE by_wal STRATEGY WAL_LOG;
DROP DATABASE by_files
"""
# A slot raises the level in effect, which leaves a record of its own; a table is written anew beside its users.
FROM_19 = """
SELECT pg_create_logical_replication_slot('first', 'pgoutput');
INSERT INTO parent VALUES (6000);
REPACK parent;
SELECT pg_drop_replication_slot('first');
INSERT INTO parent VALUES (6001)
"""


@pytest.mark.parametrize("major", [13, 14, 15, 16, 17, 18, 19])
def test_records_of_all_kinds_are_pg_waldumps(make_cluster: Callable[..., Cluster], major: int) -> None:
    settings = SETTINGS | {"wal_level": "replica", "track_commit_timestamp": "on"}
    cluster = make_cluster(major, wal_segment_mb=1, settings=settings)
    directory = cluster.data / "pg_wal"
    for words in (MANY_KINDS, FROM_15 if major >= 15 else "", FROM_19 if major >= 19 else ""):
        if words:
            _run_one_by_one(cluster, words)
    _share_locks(cluster)
    cluster.query("CHECKPOINT")
    cluster.stop()
    start = first_record(directory, 1 << 20)
    ours = read_directory(directory, start, 1 << 20)
    assert_same(ours, cluster.installation, directory, 1 << 20)
    kinds = {record.rmgr for record in ours.records}
    # CLOG and CommitTs have records for every 32768th transaction or so; tablespaces are in another test.
    assert kinds >= {0, 1, 2, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21}
    is_marked = any((record.rmgr, record.info & 0xF0) == (0, 0xF0) for record in ours.records)
    assert is_marked == (major >= 19)


def _run_one_by_one(cluster: Cluster, words: str) -> None:
    # In one session: an origin belongs to it. Not in one query, which would be one transaction.
    with cluster.connect() as connection:
        for statement in words.strip().split(";\n"):
            for part in statement.split("; ") if statement.startswith("BEGIN") else [statement]:
                connection.execute(part.encode())


def _share_locks(cluster: Cluster) -> None:
    """Lock rows in two transactions at once, which takes a multixact."""
    with cluster.connect() as first, cluster.connect() as second:
        for connection in (first, second):
            connection.execute("BEGIN")
            connection.execute("SELECT id FROM parent FOR KEY SHARE")
        for connection in (first, second):
            connection.execute("COMMIT")


@pytest.mark.parametrize("major", [13, 15, 16, 17, 18, 19])
def test_damage_ends_the_wal_where_pg_waldump_says(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    cluster = make_cluster(major, wal_segment_mb=1, settings=SETTINGS)
    directory = cluster.data / "pg_wal"
    run_workload(cluster, transactions=20)
    cluster.stop()
    start = first_record(directory, 1 << 20)
    whole = read_directory(directory, start, 1 << 20)
    chance = random.Random(major)
    for number in range(8):
        damaged = workspace / f"damaged{number}"
        shutil.copytree(directory, damaged)
        lsn = chance.randrange(start + 200_000, whole.next_lsn)
        segment = WalSegment.holding(lsn, 1, 1 << 20)
        with open(damaged / segment.file_name, "r+b") as file:
            file.seek(lsn - segment.start)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            # Zeros from a zero on may begin behind the last byte of a record, which then is whole.
            if number % 3 or not byte:
                file.write(bytes([byte ^ 1 << chance.randrange(8)]))
            else:
                file.write(bytes((1 << 20) - file.tell()))
        ours = read_directory(damaged, start, 1 << 20)
        assert_same(ours, cluster.installation, damaged, 1 << 20)
        assert (ours.next_lsn <= lsn) == (ours.next_lsn < whole.next_lsn)


@pytest.mark.parametrize("major", [15, 18, 19])
def test_recycled_segments_end_the_wal(make_cluster: Callable[..., Cluster], major: int) -> None:
    # Without a standby in sight no record of running transactions is written between our last word and the end.
    settings = {"wal_keep_size": "0", "wal_level": "minimal", "max_wal_senders": "0"}
    if major >= 17:
        settings["summarize_wal"] = "off"
    cluster = make_cluster(major, wal_segment_mb=1, settings=settings)
    directory = cluster.data / "pg_wal"
    # Three rounds through the few segments that are kept.
    for _ in range(6):
        cluster.query("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 100000)) FROM generate_series(1, 200)")
        cluster.query("CHECKPOINT")
    ((redo,),) = cluster.query("SELECT redo_lsn FROM pg_control_checkpoint()")
    # Up to where a segment is not begun.
    cluster.query("SELECT pg_switch_wal()")
    cluster.stop("immediate")
    ours = read_directory(directory, Lsn.parse(redo), 1 << 20)
    assert_same(ours, cluster.installation, directory, 1 << 20)
    assert "old content of a recycled segment" in (ours.end_reason or "")
    assert ours.next_lsn % (1 << 20) == 0


@pytest.mark.parametrize("major", [13, 18, 19])
def test_a_promotion_is_seen(
    make_cluster: Callable[..., Cluster], start_restored: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    cluster = make_cluster(major, wal_segment_mb=1)
    cluster.stop()
    copy = workspace / "copy"
    shutil.copytree(cluster.data, copy, symlinks=True)
    (copy / "standby.signal").touch()
    standby = start_restored(major, copy)
    standby.promote()
    standby.query("CREATE TABLE after_promotion ()")
    standby.stop()
    start = first_record(copy / "pg_wal", 1 << 20, timeline_id=2)
    ours = read_directory(copy / "pg_wal", start, 1 << 20, timeline_id=2)
    assert_same(ours, standby.installation, copy / "pg_wal", 1 << 20, timeline_id=2)
    (promotion,) = [m for m in ours.marks if m.kind is MarkKind.END_OF_RECOVERY]
    assert (promotion.timeline_id, promotion.previous_timeline_id) == (2, 1)
    assert promotion.time is not None


@pytest.mark.polardb
def test_polardb_wal_is_read_as_pg_waldump_15_reads_it(
    make_polardb: Callable[..., PolarCluster], installation: Callable[[int], Binaries]
) -> None:
    cluster = make_polardb(wal_segment_mb=1024, settings=SETTINGS | {"max_wal_size": "4GB"})
    run_workload(cluster, transactions=1000)
    cluster.query("ALTER SYSTEM FOR CLUSTER SET log_min_duration_statement = 5000")
    cluster.stop()
    directory = cluster.shared / "pg_wal"
    start = first_record(directory, 1 << 30)
    ours = read_directory(directory, start, 1 << 30)
    assert_same(ours, installation(15), directory, 1 << 30)
    # PolarDB's own records are there and are no marks.
    assert any((r.rmgr, r.info & 0xF0) == (0, 0xF0) for r in ours.records)
