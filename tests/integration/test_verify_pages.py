"""Pages with wrong checksums against the WAL of the backup: torn ones that replay writes anew, and all others.

pg_waldump says which pages the WAL holds whole; a server that starts on the backup proves what is said of them.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from polarvault.model.lsn import Lsn
from polarvault.model.relation import BlockId, RelationFile
from polarvault.pgfiles.manifest import checksum
from polarvault.verify.facts.backup import WalRange
from polarvault.verify.wal.check import check_wal
from polarvault.wal.compiled.reader import CompiledReader
from polarvault.wal.page_fates import Fate, PageFates
from polarvault.wal.scan import PlainReader
from polarvault.walfiles.directory import WalDirectory
from support.backups import run_program
from support.busy_backups import back_up_during
from support.cluster import Cluster
from support.servers import EXPECTED, ServerPool, found_installations, missing_reason
from support.verifying import copy, findings, ours, rewrite_manifest, set_aside

pytestmark = pytest.mark.postgres

MAJORS = sorted({*found_installations(), *EXPECTED})
PAGE, SEGMENT = 8192, 1 << 20
GOOD = "backup successfully verified\n"


@dataclass(frozen=True, slots=True)
class Lab:
    """A backup during which much was written, and what the tables held at its end; the server is gone."""

    installation: Binaries
    directory: Path
    files: dict[str, str]
    hashes: dict[str, tuple[int, str]]
    span: WalRange
    copied_database: int

    @property
    def backup(self) -> Path:
        return self.directory / "backup"

    def block(self, table: str, number: int) -> BlockId:
        _, database, relation = self.files[table].split("/")
        return BlockId(RelationFile(1663, int(database), int(relation)), 0, number)

    def fates(self, *pages: BlockId) -> PageFates:
        fates = PageFates(pages)
        source = WalDirectory(str(self.backup / "pg_wal"))
        verdict = check_wal([self.span], source, segment_size_bytes=SEGMENT, fates=fates)
        assert {finding.check for finding in verdict.findings} == {"wal-records"}
        return fates


@pytest.fixture(scope="module", params=MAJORS)
def lab(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Lab]:
    installation = servers.installations.get(request.param)
    if installation is None:
        pytest.skip(missing_reason(request.param))
    directory = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))
    directory.chmod(0o755)
    server_account().own(directory)
    settings = {"max_prepared_transactions": "5"}
    with Cluster.made(installation, directory / "cluster", wal_segment_mb=1, settings=settings) as cluster:
        for name in ("quiet", "emptied", "dropped", "shortened"):
            cluster.query(f"CREATE TABLE {name} AS SELECT n, repeat('x', 100) t FROM generate_series(1, 1000) n")
        cluster.query(
            "CREATE TABLE kinds AS SELECT n, ARRAY[n, n % 7] a, point(n, n) p FROM generate_series(1, 2000) n"
        )
        for index in ("hash (n)", "gin (a)", "gist (p)", "brin (n)", "spgist (p)", "btree (n)"):
            cluster.query(f"CREATE INDEX ON kinds USING {index}")
        cluster.query("VACUUM")
        cluster.query("CHECKPOINT")
        tables = ["accounts", "quiet", "emptied", "dropped", "shortened", "kinds"]
        files = {name: cluster.query(f"SELECT pg_relation_filepath('{name}')")[0][0] for name in tables}
        back_up_during(cluster, directory / "backup", lambda: write_in_every_way(cluster))
        hashes = cluster.hashes()
        ((copied,),) = cluster.query("SELECT oid FROM pg_database WHERE datname = 'copied'")
    (said,) = json.loads((directory / "backup/backup_manifest").read_bytes())["WAL-Ranges"]
    span = WalRange(said["Timeline"], Lsn.parse(said["Start-LSN"]), Lsn.parse(said["End-LSN"]))
    yield Lab(installation, directory, files, hashes, span, copied)
    shutil.rmtree(directory)


def write_in_every_way(cluster: Cluster) -> None:
    strategy = "STRATEGY FILE_COPY" if cluster.installation.major >= 15 else ""
    for statement in (
        "UPDATE accounts SET balance = balance + 1 WHERE id % 3 = 0",
        "INSERT INTO kinds SELECT n, ARRAY[n, n % 7], point(n, n) FROM generate_series(3000, 4000) n",
        "DELETE FROM kinds WHERE n % 5 = 0",
        "VACUUM kinds",
        "TRUNCATE emptied",
        "DROP TABLE dropped",
        "DELETE FROM shortened WHERE n > 100",
        "VACUUM shortened",
        "CREATE TABLE fresh AS SELECT n FROM generate_series(1, 3000) n",
        "CREATE INDEX ON fresh USING gist (int4range(n, n + 1))",
        f"CREATE DATABASE copied {strategy}",
        "SELECT lo_from_bytea(0, repeat('z', 50000)::bytea)",
        "BEGIN; UPDATE accounts SET balance = 0 WHERE id < 50; PREPARE TRANSACTION 'two'",
        "COMMIT PREPARED 'two'",
        "VACUUM FULL kinds",
    ):
        cluster.query(statement)


# What the WAL does to pages


def dumped_pages(lab: Lab) -> dict[BlockId, bool]:
    """Return every page that pg_waldump names, and whether its first record holds an image of it."""
    start, end = str(lab.span.start), str(lab.span.end)
    dump = run_program(lab.installation, "pg_waldump", "-p", str(lab.backup / "pg_wal"), "-s", start, "-e", end)
    found: dict[BlockId, bool] = {}
    pattern = r"blkref #\d+: rel (\d+)/(\d+)/(\d+)(?: fork (\w+))? blk (\d+)( FPW)?"
    for tablespace, database, number, fork, block, image in re.findall(pattern, dump.stdout):
        relation = RelationFile(int(tablespace), int(database), int(number))
        page = BlockId(relation, ["main", "fsm", "vm", "init"].index(fork or "main"), int(block))
        found.setdefault(page, bool(image))
    return found


def test_every_page_that_the_wal_of_a_backup_names_is_written_whole_first(lab: Lab) -> None:
    named = dumped_pages(lab)
    assert sum(named.values()) > 100
    fates = lab.fates(*named)
    assert {page for page in named if fates.fate(page) is not Fate.REPAIRED} == set()
    # Asked for alone, records are searched for by the page's number.
    for page in list(named)[:: len(named) // 10]:
        assert lab.fates(page).fate(page) is Fate.REPAIRED, page


def test_pages_that_the_wal_does_not_name(lab: Lab) -> None:
    quiet, beyond = lab.block("quiet", 3), lab.block("accounts", 100_000)
    free_space, of_quiet = lab.block("accounts", 0)._replace(fork=1), quiet._replace(fork=2)
    removed = [lab.block("emptied", 3), lab.block("dropped", 3), lab.block("shortened", 15)]
    in_copy = BlockId(RelationFile(1663, lab.copied_database, 2619), 0, 1)
    fates = lab.fates(quiet, beyond, free_space, of_quiet, in_copy, *removed)
    assert [fates.fate(page) for page in (quiet, beyond, of_quiet)] == [Fate.UNTOUCHED] * 3
    # Dropped, cut off, copied again from another database; a map of free space is made of zeros and filled again.
    assert {fates.fate(page) for page in (*removed, in_copy, free_space)} == {Fate.REPAIRED}


def test_both_readers_keep_the_same_records(lab: Lab) -> None:
    start = lab.span.start // SEGMENT * SEGMENT
    names = sorted(path for path in (lab.backup / "pg_wal").iterdir() if len(path.name) == 24)[:2]
    content = b"".join(path.read_bytes() for path in names)
    compiled, plain = (
        reader(start, SEGMENT, with_blocks=True).feed(content) for reader in (CompiledReader, PlainReader)
    )
    assert len(plain) > 1000
    # The first word of the main data is for marks alone, which have no blocks.
    for word in (0, 1, 3, 4, 5, 6, 7):
        assert compiled.words[word::8].tolist() == plain.words[word::8].tolist()
    assert compiled.bodies == plain.bodies


# What is said of a backup


def tear(backup: Path, name: str, block: int, *, lsn: int | None = None, old_header: bool = False) -> None:
    """Leave half of a page as it was and spoil the other, and let the manifest agree with it."""
    path = backup / name
    with open(path, "r+b") as file:
        file.seek(block * PAGE + (0 if old_header else PAGE // 2))
        file.write(b"\x5a" * (PAGE // 2))
        if old_header or lsn is not None:
            file.seek(block * PAGE)
            value = lsn or 0x28
            file.write(struct.pack("<II", value >> 32, value & 0xFFFFFFFF))

    def edit(fields: dict[str, list[dict[str, str]]]) -> None:
        for entry in fields["Files"]:
            if entry["Path"] == name:
                entry["Checksum"] = checksum(path.read_bytes(), entry["Checksum-Algorithm"])

    rewrite_manifest(backup / "backup_manifest", edit)


def test_torn_pages_that_replay_writes_anew_are_no_damage(
    lab: Lab, workspace: Path, start_restored: Callable[..., Cluster]
) -> None:
    backup = workspace / "torn"
    copy(lab.backup, backup)
    # The LSN of a torn page is that of the old half or of the new one.
    tear(backup, lab.files["accounts"], 0, old_header=True)
    tear(backup, lab.files["accounts"], 5)
    verdict = ours("--summary", backup)
    assert verdict.output == GOOD, verdict.errors
    assert "2 pages were copied while the server wrote them" in verdict.errors
    restored = start_restored(lab.installation.major, backup)
    assert restored.hashes() == lab.hashes


def test_a_damaged_page_is_found_whatever_its_lsn_says(lab: Lab, workspace: Path) -> None:
    with set_aside(lab.backup, aside=workspace) as backup:
        during = (lab.span.start + int(lab.span.end or 0)) // 2
        tear(backup, lab.files["quiet"], 3, lsn=during)
        name = lab.files["quiet"]
        assert findings(backup) == [("problem", "page-checksum", name)]
        verdict = ours(backup)
        assert f'1 page with a wrong checksum in "{name}": block 3 ' in verdict.errors
        assert "the WAL of the backup does not write them anew" in verdict.errors
        # Without the WAL it cannot be told.
        assert findings("-n", backup) == [("warning", "page-unproved", name)]
        assert "verify again with the WAL: without -n, or with -w DIR" in ours("-n", backup).errors
        for segment in (backup / "pg_wal").glob("0*0*"):
            segment.unlink()
        assert [check for _, check, _ in findings(backup)] == ["wal-absent", "page-unproved"]
