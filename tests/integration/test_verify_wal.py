"""The check of every WAL record beside the real pg_verifybackup, on backups of real servers."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polarvault.backupset.model import Area, Part
from polarvault.backupset.wal.of_backup import tar_wal
from polarvault.instance.model import Binaries
from polarvault.model.finding import Finding, Severity, worst
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.pgfiles.control import ControlFile, parse_control
from polarvault.verify.facts.judge import BackupFacts, WalRange, judge_facts
from polarvault.verify.wal.check import WalVerdict, check_wal
from polarvault.wal.source import WalSource
from polarvault.walfiles.directory import WalDirectory
from support.backups import back_up, back_up_with_postgres, open_plain, run_program
from support.busy_backups import back_up_during, write_wal
from support.cluster import Cluster
from support.polar_cluster import PolarCluster
from support.receiving import end_of_wal
from support.servers import ServerPool, missing_reason
from support.verifying import ours
from support.waiting import wait_until
from support.waldump import DumpedRecord, waldump

pytestmark = pytest.mark.postgres

MB = 1 << 20
KEEP_WAL = {"wal_keep_size": "1GB"}
PAGE = 8192


@dataclass(frozen=True)
class Backup:
    """What check_wal and judge_facts are told of a backup, and where its WAL is."""

    path: Path
    shared: Path
    installation: Binaries
    ranges: tuple[WalRange, ...]
    label: BackupLabel
    control: ControlFile

    @classmethod
    def load(cls, path: Path, installation: Binaries, *, shared: Path | None = None) -> Backup:
        manifest = json.loads((path / "backup_manifest").read_text())
        ranges = [
            WalRange(r["Timeline"], Lsn.parse(r["Start-LSN"]), Lsn.parse(r["End-LSN"])) for r in manifest["WAL-Ranges"]
        ]
        label, control = _small_files(path, shared or path)
        return cls(path, shared or path, installation, tuple(ranges), parse_backup_label(label), parse_control(control))

    @property
    def wal(self) -> Path:
        return self.path / "pg_wal"

    def check(self, source: WalSource | Path | None = None, **more: object) -> WalVerdict:
        if isinstance(source, Path):
            source = WalDirectory(str(source))
        return check_wal(
            self.ranges, source, segment_size_bytes=self.control.wal_segment_size, label=self.label,
            control=self.control,
        )  # fmt: skip

    def facts(self) -> list[Finding]:
        """Judge the small files of a plain backup."""
        manifest = json.loads((self.path / "backup_manifest").read_text())
        links = {int(link.name): (os.readlink(link), link.is_dir()) for link in (self.path / "pg_tblspc").iterdir()}
        return judge_facts(
            BackupFacts(
                control=(self.shared / "global/pg_control").read_bytes(), control_path="global/pg_control",
                label=(self.path / "backup_label").read_bytes(), label_path="backup_label",
                version=(self.path / "PG_VERSION").read_bytes(),
                manifest_system_identifier=manifest.get("System-Identifier"), wal_ranges=self.ranges,
                tablespace_map=None, tablespace_links=links, tablespace_tars=frozenset(), is_tar=False,
                is_polardb=self.shared != self.path,
            )
        )  # fmt: skip

    def theirs(self, wal: Path | None = None) -> tuple[bool, str]:
        """Ask pg_verifybackup about the WAL; the files' checksums are not of interest here."""
        place = [] if wal is None else ["-w", str(wal)]
        finished = run_program(self.installation, "pg_verifybackup", "-s", *place, str(self.path))
        return finished.returncode == 0, finished.stdout + finished.stderr

    def same_verdict(self, wal: Path) -> list[Finding]:
        """Compare our verdict with theirs; return our problems."""
        found = problems(self.check(wal))
        good, said = self.theirs(wal)
        assert good == (not found), (said, found)
        assert good or "WAL parsing failed for timeline" in said
        return found


def _small_files(path: Path, shared: Path) -> tuple[bytes, bytes]:
    if (path / "backup_label").exists():
        return (path / "backup_label").read_bytes(), (shared / "global/pg_control").read_bytes()
    contents = {}
    for tar in [*path.glob("base.tar*"), *path.glob("data.tar*")]:
        with open_plain(tar) as plain, tarfile.open(fileobj=plain, mode="r|") as archive:
            for member in archive:
                if member.name in ("backup_label", "global/pg_control"):
                    content = archive.extractfile(member)
                    assert content is not None
                    contents[member.name] = content.read()
    return contents["backup_label"], contents["global/pg_control"]


def problems(verdict: WalVerdict) -> list[Finding]:
    return [finding for finding in verdict.findings if finding.severity is Severity.PROBLEM]


def is_good(verdict: WalVerdict) -> bool:
    good = worst(verdict.findings) is Severity.OK
    assert not good or {"wal-records", "wal-checkpoint"} <= {finding.check for finding in verdict.findings}
    return good


@dataclass
class Source:
    """A server with small segments and a plain backup of it whose WAL fills several of them."""

    cluster: Cluster
    backup: Backup

    def records(self) -> list[DumpedRecord]:
        """Return the records between the backup's start and end, by pg_waldump, but for the first."""
        (span,) = self.backup.ranges
        dump = waldump(self.cluster.installation, self.backup.wal, span.start, MB, timeline_id=span.timeline_id)
        return [record for record in dump.records if span.end is None or record.lsn < span.end][1:]

    def copy(self, workspace: Path) -> Path:
        return Path(shutil.copytree(self.backup.wal, workspace / "wal"))

    def segments(self) -> list[WalSegment]:
        """Return the segments that hold the backup's WAL."""
        (span,) = self.backup.ranges
        assert span.end is not None
        return [WalSegment(span.timeline_id, n, MB) for n in range(span.start // MB, (span.end - 1) // MB + 1)]


def write_with_room(cluster: Cluster) -> None:
    """Write WAL that ends in the first half of a segment: some tests damage what is behind the end of the backup."""
    write_wal(cluster, 4)
    while end_of_wal(cluster) % MB > MB // 2:
        cluster.query("SELECT count(pg_logical_emit_message(false, '', repeat('x', 4000))) FROM generate_series(1, 50)")


@pytest.fixture(scope="module")
def make_source(servers: ServerPool) -> Iterator[Callable[[int], Source]]:
    """A function that returns the source of a version; tests only read it."""
    made: dict[int, Source] = {}

    def make(major: int) -> Source:
        if major not in servers.installations:
            pytest.skip(missing_reason(major))
        if major not in made:
            directory = servers.directory / f"verify_wal{major}"
            cluster = Cluster.made(servers.installations[major], directory, wal_segment_mb=1, settings=KEEP_WAL)
            path = back_up_during(cluster, directory / "fetched", lambda: write_with_room(cluster), "-X", "fetch")
            made[major] = Source(cluster, Backup.load(path, cluster.installation))
        return made[major]

    yield make
    for source in made.values():
        source.cluster.remove()


@pytest.fixture(params=[15, 18, 19], ids=["pg15", "pg18", "pg19"])
def source(request: pytest.FixtureRequest, make_source: Callable[[int], Source]) -> Source:
    """The source of each version in turn."""
    return make_source(request.param)


def next_page(lsn: int) -> int:
    return (lsn // PAGE + 1) * PAGE


def flip(wal: Path, lsn: int, numbers: random.Random, segment: WalSegment) -> None:
    with open(wal / segment.file_name, "r+b") as file:
        file.seek(lsn % MB)
        (byte,) = file.read(1)
        file.seek(lsn % MB)
        file.write(bytes([byte ^ 1 << numbers.randrange(8)]))


def test_a_good_backup_is_good(source: Source) -> None:
    verdict = source.backup.check(source.backup.wal)
    assert is_good(verdict), verdict.findings
    assert source.backup.theirs()[0]
    assert verdict.segments == len(source.segments()) >= 4
    assert verdict.records == len(source.records()) + 1
    assert [(f.check, f.is_ok) for f in source.backup.facts()] == [
        ("control", True),
        ("version", True),
        ("label", True),
    ]


@pytest.mark.parametrize(
    "options", [["-Fp"], ["-Ft", "-X", "fetch"], ["-Ft", "-z"], ["-Ft", "-z", "-X", "fetch"]], ids=" ".join
)
def test_every_form_of_a_backup_is_good(source: Source, workspace: Path, options: list[str]) -> None:
    cluster = source.cluster
    path = back_up_during(cluster, workspace / "backup", lambda: write_wal(cluster, 2), *options)
    backup = Backup.load(path, cluster.installation)
    wal: WalSource
    if options == ["-Fp"]:
        wal = WalDirectory(str(backup.wal))
        assert backup.theirs()[0]
    else:
        (tar,) = [*path.glob("pg_wal.tar*")] or [*path.glob("base.tar*")]
        area = Area.WAL if tar.name.startswith("pg_wal") else Area.LOCAL
        wal = tar_wal(Part(area, str(tar), is_tar=True, compression="gz" if tar.suffix == ".gz" else None))
    verdict = backup.check(wal)
    assert is_good(verdict), verdict.findings
    assert verdict.segments >= 3


@pytest.mark.parametrize("seed", [1, 2])
def test_every_damaged_record_is_found_and_located(source: Source, workspace: Path, seed: int) -> None:
    numbers = random.Random(seed)
    wal = source.copy(workspace)
    chosen: dict[int, DumpedRecord] = {}
    for record in numbers.sample(source.records(), 60):
        # Behind damage a page is passed over; and a record on one page has no page header in between.
        on_one_page = record.lsn % PAGE + record.total_bytes <= PAGE
        if on_one_page and not chosen.keys() & {record.lsn // PAGE + n for n in (-1, 0, 1)}:
            chosen[record.lsn // PAGE] = record
    for record in list(chosen.values())[:12]:
        # pg_waldump misses a length that reaches beyond the end of the backup, so its 4 bytes are another test's.
        position = record.lsn + numbers.randrange(4, record.total_bytes)
        flip(wal, position, numbers, WalSegment.holding(record.lsn, 1, MB))
    found = source.backup.same_verdict(wal)
    assert len(found) == 12
    for finding, record in zip(found, sorted(list(chosen.values())[:12], key=lambda r: r.lsn), strict=True):
        assert finding.check == "wal-damaged"
        assert f"record at {record.lsn} " in finding.message
        assert f"byte {record.lsn % MB} of" in finding.message
        assert finding.subject == WalSegment.holding(record.lsn, 1, MB).file_name


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_flipped_bit_anywhere_in_a_record_gets_the_verdict_of_pg_verifybackup(
    source: Source, workspace: Path, seed: int
) -> None:
    numbers = random.Random(seed)
    wal = source.copy(workspace)
    (span,) = source.backup.ranges
    assert span.end is not None
    # On the last page pg_waldump misses a length that reaches beyond it.
    last_page = (span.end - 1) // PAGE * PAGE
    record = numbers.choice([r for r in source.records() if r.lsn + r.total_bytes <= min(last_page, next_page(r.lsn))])
    flip(wal, record.lsn + numbers.randrange(record.total_bytes), numbers, WalSegment.holding(record.lsn, 1, MB))
    assert source.backup.same_verdict(wal)


def test_the_length_of_the_last_record_is_checked_too(source: Source, workspace: Path) -> None:
    wal = source.copy(workspace)
    last = source.records()[-1]
    (span,) = source.backup.ranges
    assert span.end is not None
    with open(wal / WalSegment.holding(last.lsn, 1, MB).file_name, "r+b") as file:
        file.seek(last.lsn % MB)
        file.write((last.total_bytes + 64).to_bytes(4, "little"))
    (found,) = problems(source.backup.check(wal))
    assert f"the record at {last.lsn} goes on beyond {span.end}" in found.message


def test_damage_behind_the_end_of_the_backup_is_not_complained_about(source: Source, workspace: Path) -> None:
    wal = source.copy(workspace)
    (span,) = source.backup.ranges
    assert span.end is not None
    numbers = random.Random(1)
    for distance in (0, 1, 30, 3000, 20_000):
        if (span.end + distance) // MB == (span.end - 1) // MB:
            flip(wal, span.end + distance, numbers, source.segments()[-1])
    for name in [path.name for path in wal.iterdir() if path.is_file()]:
        if name > source.segments()[-1].file_name:
            (wal / name).unlink()
    assert source.backup.same_verdict(wal) == []


def test_missing_segments_are_named(make_source: Callable[[int], Source], workspace: Path) -> None:
    # Only one version: pg_waldump waits five seconds for a segment that is not there.
    source = make_source(18)
    wal = source.copy(workspace)
    missing = source.segments()[1:3]
    for segment in missing:
        (wal / segment.file_name).unlink()
    (found,) = source.backup.same_verdict(wal)
    assert found.check == "wal-missing"
    assert f"{missing[0].file_name} to {missing[1].file_name}, 2 segments, are not in {wal}" in found.message
    assert f"(timeline 1, WAL from {missing[0].start} to {missing[1].end})" in found.message


@pytest.mark.parametrize(("which", "length"), [(1, 300_000), (-1, 0)])
def test_a_segment_that_was_cut_is_named(source: Source, workspace: Path, which: int, length: int) -> None:
    wal = source.copy(workspace)
    segment = source.segments()[which]
    with open(wal / segment.file_name, "r+b") as file:
        file.truncate(length)
    (found,) = source.backup.same_verdict(wal)
    assert (found.check, found.subject) == ("wal-size", segment.file_name)
    assert f"holds {length} of {MB} bytes" in found.message


def test_a_segment_that_was_cut_behind_the_end_is_a_warning(source: Source, workspace: Path) -> None:
    wal = source.copy(workspace)
    (span,) = source.backup.ranges
    assert span.end is not None
    with open(wal / source.segments()[-1].file_name, "r+b") as file:
        file.truncate((span.end - 1) % MB // PAGE * PAGE + PAGE)
    assert source.backup.same_verdict(wal) == []
    assert "wal-size" in {f.check for f in source.backup.check(wal).findings if f.severity is Severity.WARNING}


def test_a_segment_of_zeros_is_found(source: Source, workspace: Path) -> None:
    wal = source.copy(workspace)
    segment = source.segments()[1]
    (wal / segment.file_name).write_bytes(bytes(MB))
    (found,) = source.backup.same_verdict(wal)
    assert (found.check, found.subject) == ("wal-damaged", segment.file_name)


def test_a_segment_of_another_cluster_is_named(source: Source, workspace: Path, servers: ServerPool) -> None:
    wal = source.copy(workspace)
    segment = source.segments()[1]
    other = Cluster.made(source.cluster.installation, workspace / "other", wal_segment_mb=1, settings=KEEP_WAL)
    try:
        write_wal(other, 6)
        # initdb writes the first segments of every cluster; behind them the names of both are the same.
        shutil.copy(other.data / "pg_wal" / segment.file_name, wal / segment.file_name)
    finally:
        other.remove()
    (found,) = source.backup.same_verdict(wal)
    assert (found.check, found.subject) == ("wal-foreign", segment.file_name)
    assert f"not to {source.backup.control.system_identifier}" in found.message


def test_wal_that_ends_early_is_told_from_damage(source: Source, workspace: Path) -> None:
    wal = source.copy(workspace)
    record = next(r for r in reversed(source.records()[:-5]) if r.lsn % PAGE < 8000)
    with open(wal / WalSegment.holding(record.lsn, 1, MB).file_name, "r+b") as file:
        file.seek(record.lsn % MB)
        file.write(bytes(MB - record.lsn % MB))
    found = source.backup.same_verdict(wal)
    assert [finding.check for finding in found] == ["wal-ends-early"]
    assert f"zeros at {record.lsn}" in found[0].message


def test_a_backup_without_wal_needs_an_archive(source: Source, workspace: Path) -> None:
    cluster = source.cluster
    path = back_up_during(cluster, workspace / "bare", lambda: write_wal(cluster, 2), "-X", "none")
    backup = Backup.load(path, cluster.installation)
    (found,) = backup.same_verdict(backup.wal)
    assert found.check == "wal-absent"
    assert "WAL parsing failed for timeline 1" in found.message
    assert [finding.check for finding in backup.check(None).findings] == ["wal-absent"]
    archive = workspace / "archive"
    archive.mkdir()
    for segment in sorted((cluster.data / "pg_wal").glob("0000*")):
        (archive / f"{segment.name}.gz").write_bytes(gzip.compress(segment.read_bytes(), 1))
    verdict = backup.check(archive)
    assert is_good(verdict), verdict.findings
    (archive / f"{WalSegment.holding(backup.ranges[0].start, 1, MB).next().file_name}.gz").write_bytes(b"no gzip")
    assert [finding.check for finding in problems(backup.check(archive))] == ["wal-unreadable"]


def test_without_a_manifest_the_wal_is_read_to_the_end_of_backup_record(source: Source) -> None:
    backup = source.backup
    verdict = check_wal(
        [], WalDirectory(str(backup.wal)), segment_size_bytes=None, label=backup.label, control=backup.control
    )
    assert is_good(verdict), verdict.findings
    assert verdict.records >= len(source.records())


def stream_from(primary: Cluster, directory: Path) -> Cluster:
    """Make a standby of a server, primary or standby itself, and start it."""
    primary.account.make_directory(directory)
    primary.run("pg_basebackup", "-d", primary.conninfo(), "-c", "fast", "-N", "-R", "-D", str(directory / "data"))
    standby = Cluster.adopt(primary.installation, directory / "data", directory)
    standby.start()
    return standby


def wait_until_level(standby: Cluster, primary: Cluster) -> None:
    ((lsn,),) = primary.query("SELECT pg_current_wal_lsn()")
    wait_until(
        lambda: standby.query("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn])[0][0], "the standby is level"
    )


def test_the_backup_of_a_standby_is_good_also_across_a_timeline_switch(
    make_source: Callable[[int], Source], workspace: Path
) -> None:
    primary = make_source(18).cluster
    with stream_from(primary, workspace / "first") as first, stream_from(first, workspace / "second") as second:

        def fail_over() -> None:
            write_wal(primary, 2)
            wait_until_level(first, primary)
            first.promote()
            write_wal(first, 2)
            first.query("CHECKPOINT")
            wait_until_level(second, first)
            # A restartpoint moves the minimum recovery point, and so the end of the backup, to the new timeline.
            second.query("CHECKPOINT")

        quiet = Backup.load(back_up_with(second, workspace / "quiet"), primary.installation)
        assert quiet.label.is_from_standby
        assert quiet.same_verdict(quiet.wal) == []
        assert "wal-minimum-recovery" in {f.check for f in quiet.check(quiet.wal).findings if f.is_ok}
        backup = Backup.load(
            back_up_during(second, workspace / "backup", fail_over, "-X", "fetch"), primary.installation
        )
    assert [span.timeline_id for span in backup.ranges] == [2, 1]
    # The whole command sees no contradiction either, not in the history file of the later timeline.
    assert ours(workspace / "backup").is_good
    assert ours(workspace / "quiet").is_good
    assert is_good(backup.check(backup.wal))
    assert worst(backup.facts() + quiet.facts()) is Severity.OK
    assert backup.same_verdict(backup.wal) == []
    last = WalSegment.holding((backup.ranges[0].end or 1) - 1, 2, MB)
    with open(backup.wal / last.file_name, "r+b") as file:
        file.truncate(0)
    (found,) = backup.same_verdict(backup.wal)
    assert (found.check, found.subject) == ("wal-size", last.file_name)


def back_up_with(cluster: Cluster, target: Path) -> Path:
    back_up_with_postgres(cluster, target, "-X", "fetch")
    return target


@pytest.mark.polardb
def test_a_fetched_backup_of_an_idle_polardb_ends_early(polardb: PolarCluster, workspace: Path) -> None:
    # The server reads the WAL file before the end-of-backup record is in it.
    back_up_with_postgres(polardb, workspace / "backup", "-Ft", "-X", "fetch")
    backup = Backup.load(workspace / "backup", polardb.installation)
    tar = workspace / "backup/data.tar"
    (found,) = problems(backup.check(tar_wal(Part(Area.SHARED, str(tar), is_tar=True))))
    assert found.check == "wal-ends-early"
    assert "WAL ends before end of online backup" in (found.meaning or "")


@pytest.mark.polardb
def test_both_halves_of_polardb_are_good_with_the_wal_of_the_shared_one(polardb: PolarCluster, workspace: Path) -> None:
    local, shared = workspace / "local", workspace / "shared"
    back_up(polardb, local, "--polardata", str(shared))
    backup = Backup.load(local, polardb.installation, shared=shared)
    assert is_good(backup.check(shared / "pg_wal"))
    assert worst(backup.facts()) is Severity.OK


@pytest.mark.polardb
def test_the_backup_of_a_read_only_node_is_recognised(
    make_polardb: Callable[..., PolarCluster], workspace: Path
) -> None:
    primary = make_polardb(settings={"full_page_writes": "on"})
    replica = primary.add_replica("reader")
    try:
        # Our own basebackup refuses it; the server does not.
        local, shared = workspace / "local", workspace / "shared"
        finished = run_program(
            replica.installation, "polar_basebackup", "-d", replica.conninfo(), "-c", "fast", "-N", "-X", "none",
            "-D", str(local), f"--polardata={shared}",
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        found = Backup.load(local, replica.installation, shared=shared).facts()
    finally:
        replica.remove()
    (wrong,) = [finding for finding in found if not finding.is_ok]
    assert wrong.check == "label-control"
    assert "contains data inconsistent with control file" in (wrong.meaning or "")
