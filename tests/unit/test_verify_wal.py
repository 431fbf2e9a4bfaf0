"""The WAL of a backup, record by record: made by hand, damaged in every way, read from memory and from tar files."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
import zstandard

from polarvault.backupset.model import Area, Part
from polarvault.backupset.wal.of_backup import tar_wal
from polarvault.model.finding import Finding, Severity
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.verify.facts.judge import WalRange
from polarvault.verify.wal.check import WalVerdict, check_wal
from support.memory_wal import MemoryWal
from support.small_files import label_bytes
from support.wal_bytes import HEAP, PAGE, XLOG, WalBuilder

MB = 1 << 20


memory = MemoryWal.of_segments


@dataclass
class Made:
    """A backup's WAL: the builder's segments, the range, and the label."""

    wal: WalBuilder
    span: WalRange
    label: BackupLabel

    @property
    def segments(self) -> dict[str, bytes]:
        content = bytes(self.wal.content).ljust(-(-len(self.wal.content) // MB) * MB, b"\0")
        first = self.wal.start // MB
        return {
            WalSegment(self.wal.timeline, first + n, MB).file_name: content[n * MB : (n + 1) * MB]
            for n in range(len(content) // MB)
        }

    def check(self, contents: dict[str, bytes] | None = None, **more: Any) -> WalVerdict:
        source = more.pop("source", None) or memory(self.segments if contents is None else contents)
        ranges = more.pop("ranges", [self.span])
        return check_wal(ranges, source, **{"segment_size_bytes": MB, "label": self.label} | more)

    def record_in(self, segment: int) -> int:
        """Return the LSN of a record that lies wholly inside one of the segments, counted from 0."""
        start = self.wal.start + segment * MB
        return next(lsn for lsn, end in self.wal.records if lsn > start + 5 * PAGE and end < start + MB)

    def damage(self, *positions: int, mask: int = 4) -> dict[str, bytes]:
        """Flip a bit at these LSNs."""
        contents = {name: bytearray(content) for name, content in self.segments.items()}
        for position in positions:
            contents[WalSegment.holding(position, self.wal.timeline, MB).file_name][position % MB] ^= mask
        return {name: bytes(content) for name, content in contents.items()}


def make(segments: int = 3, *, seed: int = 1, end: bool = True, taken_from: str = "primary", **how: Any) -> Made:
    """Make WAL over some segments: records of all sizes, the checkpoint near the beginning, the backup's end last."""
    numbers, wal = random.Random(seed), WalBuilder(**how)
    for _ in range(5):
        wal.add(bytes(100))
    redo = wal.add_main(struct.pack("<I", 0), rmgr=XLOG, info=0xE0)
    checkpoint = wal.add_main(struct.pack("<QII", redo, wal.timeline, wal.timeline) + bytes(64), rmgr=XLOG, info=0x10)
    while wal.lsn < wal.start + segments * MB - 100_000:
        wal.add(numbers.randbytes(numbers.choice([30, 200, 3000, 20_000])), rmgr=HEAP)
    if end:
        wal.add_main(struct.pack("<Q", redo), rmgr=XLOG, info=0x50)
    stop = wal.lsn
    for _ in range(20):
        wal.add(bytes(100))
    name = WalSegment.holding(redo, wal.timeline, MB).file_name
    text = label_bytes(
        start=str(Lsn(redo)),
        segment=name,
        checkpoint=str(Lsn(checkpoint)),
        timeline=wal.timeline,
        taken_from=taken_from,
    )
    return Made(wal, WalRange(wal.timeline, Lsn(redo), Lsn(stop)), parse_backup_label(text))


@pytest.fixture(scope="module")
def made() -> Made:
    return make()


def problems(verdict: WalVerdict) -> list[Finding]:
    return [finding for finding in verdict.findings if finding.severity is Severity.PROBLEM]


def checks(verdict: WalVerdict) -> list[str]:
    return [finding.check for finding in problems(verdict)]


def inner_records(made: Made) -> list[tuple[int, int]]:
    return [(lsn, end) for lsn, end in made.wal.records if made.span.start <= lsn < (made.span.end or 0)]


def test_good_wal_is_good(made: Made) -> None:
    verdict = made.check()
    assert [(f.severity, f.check) for f in verdict.findings] == [
        (Severity.OK, "wal-records"),
        (Severity.OK, "wal-checkpoint"),
        (Severity.OK, "wal-backup-end"),
    ]
    assert (verdict.segments, verdict.records) == (3, len(inner_records(made)))
    assert verdict.is_complete


@pytest.mark.parametrize("piece_bytes", [PAGE, 3 * PAGE, MB])
def test_every_damaged_record_is_named_however_the_wal_is_cut(made: Made, piece_bytes: int) -> None:
    numbers = random.Random(piece_bytes)
    chosen: list[tuple[int, int]] = []
    for record in numbers.sample(inner_records(made)[3:], 20):
        # The rest of a page behind damage is passed over, so each gets pages of its own.
        if all(abs(record[0] - lsn) > 60_000 for lsn, _ in chosen):
            chosen.append(record)
    # Byte 24 begins the body, behind any part of the header; page headers are damaged in another test.
    verdict = made.check(source=memory(made.damage(*(lsn + 5 for lsn, _ in chosen)), piece_bytes=piece_bytes))
    found = problems(verdict)
    assert {finding.check for finding in found} == {"wal-damaged"}
    assert len(found) == len(chosen)
    for finding, (lsn, _) in zip(found, sorted(chosen), strict=True):
        assert f"at {Lsn(lsn)} " in finding.message
        assert f"byte {lsn % MB} " in finding.message
        assert finding.subject == WalSegment.holding(lsn, 1, MB).file_name


def test_a_record_that_is_damaged_in_the_next_segment_is_named_where_it_begins() -> None:
    made = make(1)
    made.wal.add(random.Random(1).randbytes(3 * MB))
    lsn, end = made.wal.records[-1]
    made.wal.add(bytes(50))
    span = WalRange(1, made.span.start, Lsn(made.wal.lsn))
    verdict = made.check(made.damage(end - 30), ranges=[span])
    (found,) = problems(verdict)
    assert f"the record at {Lsn(lsn)} has a wrong checksum" in found.message
    assert found.subject == WalSegment.holding(lsn, 1, MB).file_name
    assert verdict.segments == 4


@pytest.mark.parametrize(
    ("offset", "mask"), [(0, 4), (0, 8), (2, 1), (2, 16), (4, 4), (8, 4)],
    ids=["magic", "magic of 15", "continues", "flags", "timeline", "address"],
)  # fmt: skip
@pytest.mark.parametrize("page", [2, 60, 128, 200])
def test_a_damaged_page_header_is_named_once(made: Made, page: int, offset: int, mask: int) -> None:
    position = made.wal.start + page * PAGE + offset
    found = problems(made.check(made.damage(position, mask=mask)))
    # Zeros and old content end a segment: then the next segment is where reading goes on.
    assert [finding.check for finding in found] == ["wal-damaged"]
    assert WalSegment.holding(position - 9000, 1, MB).file_name <= found[0].subject


def test_a_page_that_lies_about_what_it_continues_is_named_once(made: Made) -> None:
    # Reading goes on with that page, at a place where no record begins; what follows on it says nothing new.
    pages = range(made.wal.start + 2 * PAGE, made.span.end or 0, PAGE)
    continuing = [page for page in pages if made.wal.content[page - made.wal.start + 2] & 1]
    for page in random.Random(2).sample(continuing, 20):
        found = problems(made.check(made.damage(page + 16, mask=32)))
        assert [finding.check for finding in found] == ["wal-damaged"]
        assert f"the page at {Lsn(page)} continues a record with" in found[0].message


def test_damage_behind_the_end_is_nobodys_business(made: Made) -> None:
    assert made.span.end is not None
    assert problems(made.check(made.damage(made.span.end + 5, made.span.end + 500))) == []


def test_damage_before_the_start_is_nobodys_business(made: Made) -> None:
    assert problems(made.check(made.damage(made.wal.records[1][0] + 30))) == []


def test_a_damaged_first_page_counts_even_if_reading_begins_behind_it(made: Made) -> None:
    # The server looks at it to see whose segment this is.
    (found,) = problems(made.check(made.damage(made.wal.start)))
    assert "magic" in found.message


def test_a_segment_full_of_rubbish_is_given_up_and_the_next_one_read(made: Made) -> None:
    contents = made.segments
    name = sorted(contents)[1]
    rubbish = random.Random(1).randbytes(MB - PAGE)
    contents[name] = contents[name][:PAGE] + rubbish
    verdict = made.check(contents)
    assert len(problems(verdict)) == 11
    assert "too much damage" in problems(verdict)[-1].message
    assert {finding.subject for finding in problems(verdict)} == {name}
    assert verdict.segments == 3


def test_zeros_in_the_middle_are_damage(made: Made) -> None:
    contents = made.segments
    name = sorted(contents)[1]
    contents[name] = contents[name][: MB // 2] + bytes(MB // 2)
    (found,) = problems(made.check(contents))
    assert found.check == "wal-damaged"
    assert "zeros" in found.message
    assert found.subject == name


def test_zeros_up_to_the_end_are_the_end_of_the_wal(made: Made) -> None:
    lsn, _ = next(record for record in reversed(inner_records(made)[:-5]) if record[0] % PAGE < 7000)
    content = bytes(made.wal.content[: lsn - made.wal.start]).ljust(3 * MB, b"\0")
    contents = {name: content[n * MB : (n + 1) * MB] for n, name in enumerate(made.segments)}
    (found,) = problems(made.check(contents))
    assert found.check == "wal-ends-early"
    assert f"zeros at {Lsn(lsn)}" in found.message
    assert "WAL ends before end of online backup" in (found.meaning or "")


def test_a_recycled_segment_is_the_end_of_the_wal(made: Made) -> None:
    contents = made.segments
    names = sorted(contents)
    contents[names[2]] = contents[names[0]]
    (found,) = problems(made.check(contents))
    assert (found.check, found.subject) == ("wal-ends-early", names[2])
    assert "recycled" in found.message


def test_missing_segments_are_named_as_runs() -> None:
    made = make(6)
    names = sorted(made.segments)
    contents = {name: content for name, content in made.segments.items() if name in (names[0], names[3], names[4])}
    first, second = problems(made.check(contents))
    assert (first.check, first.subject) == ("wal-missing", names[1])
    assert f"{names[1]} to {names[2]}, 2 segments," in first.message
    assert f"WAL from {Lsn(made.wal.start + MB)} to {Lsn(made.wal.start + 3 * MB)}" in first.message
    assert second.subject == names[5]
    assert "timeline 1" in second.message


def test_millions_of_missing_segments_are_not_looked_for_one_by_one() -> None:
    # A wrong digit in the end's LSN.
    made = make(2)
    end = Lsn(made.wal.start + (1 << 45))
    (found,) = (found for found in problems(made.check(ranges=[WalRange(1, Lsn(made.wal.start), end)]))
                if found.check == "wal-missing")  # fmt: skip
    assert f", {(1 << 25) - len(made.segments)} segments, are not in memory" in found.message


def test_damage_behind_a_missing_segment_is_found(made: Made) -> None:
    names = sorted(made.segments)
    contents = made.damage(made.record_in(2) + 5)
    del contents[names[1]]
    assert checks(made.check(contents)) == ["wal-missing", "wal-damaged"]


@pytest.mark.parametrize("source", [None, MemoryWal()], ids=["none", "empty"])
def test_no_wal_at_all_is_one_finding_with_the_next_step(made: Made, source: MemoryWal | None) -> None:
    verdict = check_wal([made.span], source, segment_size_bytes=MB, label=made.label)
    (found,) = verdict.findings
    assert found.check == "wal-absent"
    assert "WAL parsing failed for timeline 1" in found.message
    assert "-w DIR" in (found.advice or "")
    assert "-n" in (found.advice or "")


@pytest.mark.parametrize(("number", "length"), [(1, MB // 2 + 100), (1, 0), (2, 3 * PAGE)])
def test_a_segment_that_was_cut_is_named_with_what_is_missing(made: Made, number: int, length: int) -> None:
    contents = made.segments
    name = sorted(contents)[number]
    contents[name] = contents[name][:length]
    (found,) = problems(made.check(contents))
    assert (found.check, found.subject) == ("wal-size", name)
    assert f"holds {length} of {MB} bytes" in found.message


def test_a_segment_that_was_cut_behind_the_end_is_a_warning(made: Made) -> None:
    contents = made.segments
    name = sorted(contents)[2]
    contents[name] = contents[name][: (made.span.end or 0) % MB]
    verdict = made.check(contents)
    assert problems(verdict) == []
    assert [f.check for f in verdict.findings if f.severity is Severity.WARNING] == ["wal-size"]
    assert "wal-backup-end" in [f.check for f in verdict.findings if f.is_ok]


def test_a_segment_of_another_cluster_is_named(made: Made) -> None:
    contents = made.segments
    name = sorted(contents)[1]
    contents[name] = make(3, system=78).segments[name]
    (found,) = problems(made.check(contents))
    assert (found.check, found.subject) == ("wal-foreign", name)
    assert "belongs to the system 78, not to 77" in found.message


def test_all_wal_of_another_cluster_is_noticed_by_the_manifest_or_pg_control(made: Made) -> None:
    assert checks(made.check(system_identifier=99)) == ["wal-foreign"] * 3


def test_a_compressed_segment_under_a_plain_name_is_called_compressed(made: Made) -> None:
    names = sorted(made.segments)
    for compression, compress in (("gz", gzip.compress), ("zst", zstandard.compress), ("lz4", lz4.frame.compress)):
        contents = dict(made.segments)
        contents[names[1]] = compress(contents[names[1]])
        found = problems(made.check(contents))[0]
        assert (found.check, found.subject) == ("wal-unreadable", names[1])
        assert f"{names[1]} is compressed ({compression})" in found.message
        assert f".{compression}" in (found.advice or "")
        assert not [other for other in problems(made.check(contents)) if other.check == "wal-damaged"]


def test_segments_of_another_size_are_named(made: Made) -> None:
    other = bytes(WalBuilder(segment=1, segment_bytes=2 * MB).content)
    wal = WalBuilder(segment=1, segment_bytes=2 * MB)
    wal.add(bytes(100))
    contents = made.segments
    name = sorted(contents)[1]
    contents[name] = bytes(wal.content).ljust(MB, b"\0")
    assert other == b""
    (found,) = problems(made.check(contents))
    assert (found.check, found.subject) == ("wal-foreign", name)


def test_the_segment_size_is_taken_from_the_first_segment_when_pg_control_is_gone(made: Made) -> None:
    assert problems(made.check(segment_size_bytes=None)) == []


def test_what_cannot_be_read_is_a_finding_and_the_rest_is_read(made: Made) -> None:
    names = sorted(made.segments)
    contents = made.damage(made.record_in(2) + 5)
    source = memory(contents, broken=frozenset({names[1]}))
    assert checks(made.check(source=source)) == ["wal-unreadable", "wal-damaged"]


def test_the_end_of_backup_record_has_to_be_inside() -> None:
    (found,) = problems(make(end=False).check())
    assert found.check == "wal-backup-end"
    assert "WAL ends before end of online backup" in (found.meaning or "")


def test_the_end_of_backup_record_of_another_backup_does_not_count(made: Made) -> None:
    other = parse_backup_label(label_bytes(start="0/100030", segment="000000010000000000000001", timeline=1))
    assert "wal-backup-end" in checks(made.check(label=other))


def test_the_checkpoint_has_to_be_where_the_label_says(made: Made) -> None:
    wrong = parse_backup_label(
        label_bytes(start=str(made.span.start), checkpoint=str(Lsn(made.wal.records[8][0])), timeline=1,
                    segment=made.label.start_segment)
    )  # fmt: skip
    (found,) = problems(made.check(label=wrong))
    assert found.check == "wal-checkpoint"
    assert "no checkpoint record" in found.message


def test_a_record_that_goes_on_beyond_the_end_is_damage(made: Made) -> None:
    lsn, end = inner_records(made)[-1]
    contents = made.segments
    name = WalSegment.holding(lsn, 1, MB).file_name
    content = bytearray(contents[name])
    assert lsn // PAGE == end // PAGE
    struct.pack_into("<I", content, lsn % MB, 200)
    contents[name] = bytes(content)
    (found,) = problems(made.check(contents))
    assert f"the record at {Lsn(lsn)} goes on beyond {made.span.end}" in found.message


def test_without_a_manifest_the_label_and_the_end_of_backup_record_are_the_range(made: Made) -> None:
    verdict = made.check(ranges=[])
    assert problems(verdict) == []
    assert verdict.records >= len(inner_records(made))
    assert checks(make(end=False).check(ranges=[])) == ["wal-ends-early"]
    names = sorted(made.segments)
    assert checks(made.check({name: made.segments[name] for name in names[:2]}, ranges=[])) == ["wal-backup-end"]


def switched() -> tuple[Made, dict[str, bytes], list[WalRange]]:
    """A standby that followed a timeline switch in the second segment while it was backed up."""
    made = make(2, end=False, taken_from="standby")
    switch = made.wal.lsn
    old = made.segments
    made.wal.timeline = 2
    for _ in range(3000):
        made.wal.add(bytes(500))
    made.wal.timeline = 1
    both = made.segments
    contents = {name if n < 1 else "00000002" + name[8:]: both[name] for n, name in enumerate(sorted(both))}
    contents |= old
    # The manifest names the newest timeline first.
    ranges = [WalRange(2, Lsn(switch), Lsn(made.wal.lsn)), WalRange(1, made.span.start, Lsn(switch))]
    return made, contents, ranges


def test_every_timeline_of_the_manifest_is_read() -> None:
    made, contents, ranges = switched()
    verdict = made.check(contents, ranges=ranges)
    assert problems(verdict) == []
    assert [f.subject for f in verdict.findings if f.check == "wal-records"] == ["timeline 1", "timeline 2"]
    position = made.wal.records[-10][0]
    name = "00000002" + WalSegment.holding(position, 1, MB).file_name[8:]
    damaged = bytearray(contents[name])
    damaged[position % MB + 30] ^= 1
    (found,) = problems(made.check(contents | {name: bytes(damaged)}, ranges=ranges))
    assert found.subject == name


def test_the_new_timelines_copy_of_the_switched_segment_is_as_good() -> None:
    made, contents, ranges = switched()
    del contents["000000010000000000000002"]
    assert problems(made.check(contents, ranges=ranges)) == []
    del contents["000000020000000000000002"]
    assert checks(made.check(contents, ranges=ranges)) == ["wal-missing", "wal-missing"]


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        (MB + 0x51, MB + 0x2000, "no record and no page can begin at 0/100051"),
        (MB + PAGE + 8, 2 * MB, "no record and no page can begin"),
        (2 * MB, MB, "before it begins"),
        (MB, 1 << 60, "more WAL than any backup needs"),
    ],
)
def test_a_range_that_no_backup_can_have_is_a_finding(made: Made, start: int, end: int, words: str) -> None:
    (found,) = made.check(ranges=[WalRange(1, Lsn(start), Lsn(end))]).findings
    assert found.check == "wal-range"
    assert words in found.message


def test_a_timeline_that_was_left_where_it_began_needs_no_wal(made: Made) -> None:
    assert problems(made.check(ranges=[made.span, WalRange(2, Lsn(9 * MB), Lsn(9 * MB))])) == []


def test_progress_is_told_and_reading_can_be_ended(made: Made) -> None:
    told: list[int] = []
    verdict = made.check(advance=told.append)
    assert sum(told) == verdict.bytes_read
    verdict = made.check(stop=lambda: True)
    assert not verdict.is_complete
    assert verdict.segments == 1


# Tar files


def write_tar(path: Path, contents: dict[str, bytes], *, prefix: str = "", order: list[str] | None = None) -> Path:
    with io.BytesIO() as plain:
        with tarfile.open(fileobj=plain, mode="w") as archive:
            for name in order or sorted(contents):
                for member, content in ((f"{prefix}{name}", contents[name]), (f"{prefix}x{name}.done", b"abc")):
                    entry = tarfile.TarInfo(member)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
        bytes_of_tar = plain.getvalue()
    path.write_bytes(gzip.compress(bytes_of_tar, 1) if path.suffix == ".gz" else bytes_of_tar)
    return path


def part_of(path: Path, area: Area) -> Part:
    return Part(area, str(path), is_tar=True, compression="gz" if path.suffix == ".gz" else None)


@pytest.mark.parametrize("file_name", ["base.tar", "base.tar.gz"])
def test_the_wal_in_a_tar_is_read_whatever_the_order_of_its_members(made: Made, tmp_path: Path, file_name: str) -> None:
    contents = made.damage(made.record_in(2) + 5)
    names = sorted(contents)
    path = write_tar(tmp_path / file_name, contents, prefix="pg_wal/", order=[names[2], names[0], names[1]])
    verdict = made.check(source=tar_wal(part_of(path, Area.LOCAL)))
    (found,) = problems(verdict)
    assert (found.check, found.subject) == ("wal-damaged", names[2])
    assert f"{path}: pg_wal/{names[2]}" in found.message
    assert verdict.records > 0


@pytest.mark.parametrize("file_name", ["pg_wal.tar", "pg_wal.tar.gz"])
def test_a_segment_that_is_not_in_the_tar_is_missing(made: Made, tmp_path: Path, file_name: str) -> None:
    contents = made.damage(made.record_in(2) + 5)
    names = sorted(contents)
    del contents[names[1]]
    path = write_tar(tmp_path / file_name, contents)
    source = tar_wal(part_of(path, Area.WAL))
    verdict = made.check(source=source, segment_size_bytes=None)
    assert [(f.check, f.subject) for f in problems(verdict)] == [("wal-missing", names[1]), ("wal-damaged", names[2])]
    assert str(path) in problems(verdict)[0].message


@pytest.mark.parametrize("file_name", ["pg_wal.tar", "pg_wal.tar.gz"])
def test_a_tar_that_was_cut_is_one_finding(made: Made, tmp_path: Path, file_name: str) -> None:
    path = write_tar(tmp_path / file_name, made.segments)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 5])
    verdict = made.check(source=tar_wal(part_of(path, Area.WAL)))
    assert "wal-unreadable" in checks(verdict)
    assert checks(verdict).count("wal-unreadable") == 1
    assert "wal-missing" not in checks(verdict)


@pytest.mark.parametrize("file_name", ["pg_wal.tar", "pg_wal.tar.gz"])
@pytest.mark.parametrize("has_manifest", [True, False])
@pytest.mark.parametrize("has_control", [True, False])
@pytest.mark.parametrize("length", [0, 1, 728, MB + 1024, -MB])
def test_a_cut_tar_ends_the_search_for_segments(
    made: Made, tmp_path: Path, file_name: str, length: int, has_manifest: bool, has_control: bool
) -> None:
    # Every segment that a cut tar is asked for might be behind the cut: up to the last of all numbers.
    path = write_tar(tmp_path / file_name, made.segments)
    content = path.read_bytes()
    # Compressed WAL is short: the same share of it.
    keep = length if file_name.endswith(".tar") or length <= 1 else length % max(1, len(content) // 2)
    path.write_bytes(content[:keep])
    verdict = made.check(
        source=tar_wal(part_of(path, Area.WAL)),
        ranges=[made.span] if has_manifest else [],
        segment_size_bytes=MB if has_control else None,
    )
    assert problems(verdict)


@pytest.mark.parametrize("file_name", ["pg_wal.tar", "pg_wal.tar.gz"])
def test_millions_of_segments_behind_a_cut_are_not_looked_for_one_by_one(
    made: Made, tmp_path: Path, file_name: str
) -> None:
    path = write_tar(tmp_path / file_name, made.segments)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 5])
    span = WalRange(1, Lsn(made.wal.start), Lsn(made.wal.start + (1 << 49)))
    assert checks(made.check(source=tar_wal(part_of(path, Area.WAL)), ranges=[span])).count("wal-unreadable") == 1
