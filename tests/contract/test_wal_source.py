"""What every source of WAL has to answer, whoever keeps the WAL and however; and that its users need no more."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from polarvault.backupset.model import Area, Part
from polarvault.backupset.wal.of_backup import tar_wal
from polarvault.backupset.wal.tars import SpooledWal
from polarvault.errors import IntegrityError, StorageFailed
from polarvault.model.finding import Severity
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.recovery.search import TargetSearch
from polarvault.recovery.survey import check_chain, scan
from polarvault.recovery.target import RecoveryTarget, TargetKind
from polarvault.recovery.wal.chain import BackupSpan, follow
from polarvault.recovery.wal.stock import WalStock
from polarvault.repository.wal.source import RepositoryWalSource
from polarvault.verify.facts.backup import WalRange
from polarvault.verify.wal.check import check_wal
from polarvault.wal.source import WalSource, segment_numbers
from polarvault.walarchive.fetch import Fetcher
from polarvault.walarchive.restore_command import restore_command
from polarvault.walfiles.choice import find, history_of
from polarvault.walfiles.directory import WalDirectory
from polarvault.walfiles.search_list import SearchList
from support.memory_wal import MB, MemoryWal
from support.repositories import new_repository
from support.wal_bytes import PAGE, WalBuilder
from support.wal_segments import PAGE_BYTES, SYSTEM_IDENTIFIER, segment_content

Files = Mapping[str, bytes]
HISTORY = b"1\t0/300028\tno recovery target specified\n"
WHOLE = [WalSegment(1, number, MB) for number in (2, 3, 5)]
SHORT = WalSegment(1, 6, MB)
SHORT_BYTES = 5 * PAGE_BYTES
NEWER = WalSegment(2, 3, MB)
HELD: Files = {
    **{segment.file_name: segment_content(segment) for segment in (*WHOLE, NEWER)},
    SHORT.file_name: segment_content(SHORT, pages=5),
    "00000002.history": HISTORY,
}


def directory(path: Path, files: Files, *, pg_wal: bool = False, packed: bool = False) -> WalDirectory:
    path.mkdir()
    if pg_wal:
        (path / "archive_status").mkdir()
    for name, content in files.items():
        is_short = len(name) == 24 and len(content) < MB
        suffix = (".gz" if packed else "") + (".partial" if is_short and not pg_wal else "")
        kept = content.ljust(MB, b"\0") if is_short and not packed else content
        (path / (name + suffix)).write_bytes(gzip.compress(kept, 1) if packed else kept)
    return WalDirectory(str(path))


def tar(
    path: Path, files: Files, *, prefix: str = "", area: Area = Area.WAL, packed: bool = False, is_known: bool = False
) -> WalSource:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in sorted(files.items(), reverse=True):
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    path.write_bytes(gzip.compress(plain.getvalue(), 1) if packed else plain.getvalue())
    histories = {name: content for name, content in files.items() if name.endswith(".history")}
    known = (list(files), histories) if is_known else None
    return tar_wal(Part(area, str(path), is_tar=True, compression="gz" if packed else None), known=known)


def spooled(path: Path, files: Files) -> WalSource:
    wal = SpooledWal("standard input")
    for name, content in files.items():
        take = wal.begin(name, len(content))
        assert take is not None
        take(content)
    return wal


def memory(files: Files) -> MemoryWal:
    """Return a source that has every segment in slices of odd lengths."""
    made = MemoryWal(files={name: content for name, content in files.items() if name.endswith(".history")})
    for name, content in files.items():
        if not name.endswith(".history"):
            segment = WalSegment.parse(name, MB)
            for offset in range(0, len(content), 333_333):
                made.add(segment.timeline_id, segment.start + offset, content[offset : offset + 333_333])
    return made


def in_repository(files: Files, *, encrypted: bool = False) -> WalSource:
    """Return a source that has every segment in ranges of odd lengths, some of which overlap."""
    wal = new_repository(encrypted=encrypted).wal("shop", SYSTEM_IDENTIFIER, MB)
    for name, content in files.items():
        if name.endswith(".history"):
            wal.put_file(int(name[:8], 16), name, content)
            continue
        segment = WalSegment.parse(name, MB)
        for offset in range(0, len(content), 333_333):
            begin = max(0, offset - 1000)
            wal.put_range(segment.timeline_id, segment.start + begin, content[begin : offset + 333_333])
    return RepositoryWalSource(wal, place="shop in memory", fetch_options=["--repo", "memory"])


def two_places(path: Path, files: Files) -> WalSource:
    path.mkdir()
    names = sorted(files)
    first = {name: files[name] for name in names[::2]}
    rest = {name: files[name] for name in names[1::2]} | {names[0]: files[names[0]]}
    return SearchList([directory(path / "first", first, packed=True), memory(rest)])


Make = Callable[[Path, Files], WalSource]
SOURCES: dict[str, Make] = {
    "directory": directory,
    "compressed directory": lambda path, files: directory(path, files, packed=True),
    "pg_wal": lambda path, files: directory(path, files, pg_wal=True),
    "tar": tar,
    "compressed tar": lambda path, files: tar(path, files, packed=True),
    "compressed tar of a known backup": lambda path, files: tar(path, files, packed=True, is_known=True),
    "tar of a data directory": lambda path, files: tar(path, files, prefix="pg_wal/", area=Area.LOCAL),
    "tar that went by": spooled,
    "memory": lambda path, files: memory(files),
    "repository": lambda path, files: in_repository(files),
    "encrypted repository": lambda path, files: in_repository(files, encrypted=True),
    "several places": two_places,
}


# What a recovery can be served from, and what several users may read at once; others come with a backup.
ARCHIVES = {
    kind: SOURCES[kind] for kind in ("directory", "compressed directory", "memory", "repository", "several places")
}


@pytest.fixture(params=SOURCES.values(), ids=SOURCES.keys())
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Files], WalSource]]:
    """A function that makes a source which holds these files."""
    made: list[WalSource] = []

    def make_one(files: Files) -> WalSource:
        made.append(request.param(tmp_path / "wal", files))
        return made[-1]

    yield make_one
    for source in made:
        source.close()
        if isinstance(source, SpooledWal):
            source.discard()


@pytest.fixture(params=ARCHIVES.values(), ids=ARCHIVES.keys())
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Files], WalSource]:
    """A function that makes a WAL archive which holds these files."""
    return lambda files: cast("WalSource", request.param(tmp_path / "wal", files))


def content_of(source: WalSource, name: str) -> bytes:
    (copy, *_) = source.copies(name)
    return b"".join(map(bytes, copy.views()))


def test_timelines_and_ranges_are_listed(make: Callable[[Files], WalSource]) -> None:
    source = make(HELD)
    assert list(source.timelines()) == [1, 2]
    assert list(segment_numbers(source.ranges(1, MB), MB)) == [2, 3, 5, 6]
    assert [(held.start, held.end) for held in source.ranges(2, MB)] == [(NEWER.start, NEWER.end)]
    (first, second) = source.ranges(1, MB)
    assert (first.start, first.end, second.start) == (WHOLE[0].start, WHOLE[1].end, WHOLE[2].start)
    assert SHORT.start + SHORT_BYTES <= second.end <= SHORT.end
    assert list(source.ranges(3, MB)) == []


def test_nothing_is_found_where_nothing_is(make: Callable[[Files], WalSource]) -> None:
    source = make(HELD)
    for name in (WalSegment(1, 4, MB).file_name, WalSegment(3, 2, MB).file_name, "00000003.history"):
        assert list(source.copies(name)) == []
    assert find(source, WalSegment(1, 4, MB)) is None
    assert history_of(source, 3) is None
    assert source.foreign_form(WalSegment(1, 4, MB).file_name) is None


def test_every_segment_is_read_in_any_order_and_again(make: Callable[[Files], WalSource]) -> None:
    source = make(HELD)
    source.expect(lambda name: name != WHOLE[0].file_name)
    for segment in (*WHOLE, NEWER, *reversed(WHOLE)):
        copy = find(source, segment)
        assert copy is not None
        look = copy.look_at_start()
        assert look.header is not None
        assert look.problem is None
        assert look.header.page_address == segment.start
        assert copy.size_bytes in (None, MB)
        assert not copy.partial
        assert copy.stored_bytes() is not None
        assert segment.file_name in copy.where
        assert b"".join(map(bytes, copy.views())) == HELD[segment.file_name]
        assert content_of(source, segment.file_name) == HELD[segment.file_name]
    source.finish()
    source.close()


def test_pieces_begin_at_pages_and_may_leave_out_what_is_passed_over(make: Callable[[Files], WalSource]) -> None:
    source, skip = make(HELD), 40 * PAGE_BYTES + 17
    for segment in WHOLE:
        (copy, *_) = source.copies(segment.file_name)
        whole, expected = bytearray(MB), HELD[segment.file_name]
        ends = []
        for offset, view in copy.pieces(skip):
            assert offset % PAGE_BYTES == 0
            whole[offset : offset + len(view)] = view
            ends.append((offset, offset + len(view)))
        assert ends[0][0] == 0
        assert ends[-1][1] == MB
        assert whole[:PAGE_BYTES] == expected[:PAGE_BYTES]
        assert whole[skip:] == expected[skip:]


def test_a_segment_that_ends_early_is_read_up_to_there(make: Callable[[Files], WalSource]) -> None:
    source = make(HELD)
    copy = find(source, SHORT)
    assert copy is not None
    assert not copy.is_final
    content = b"".join(map(bytes, copy.views()))
    assert content[:SHORT_BYTES] == HELD[SHORT.file_name]
    assert not content[SHORT_BYTES:].strip(b"\0")


def test_a_history_is_found_by_its_timeline(make: Callable[[Files], WalSource]) -> None:
    source = make(HELD)
    source.finish()
    assert history_of(source, 2) == HISTORY
    assert content_of(source, "00000002.history") == HISTORY


def test_the_first_page_of_some_segment_tells_the_size(make: Callable[[Files], WalSource]) -> None:
    source = make(HELD)
    header = source.first_header()
    assert header is not None
    assert (header.segment_size_bytes, header.system_identifier) == (MB, SYSTEM_IDENTIFIER)
    assert content_of(source, WHOLE[0].file_name) == HELD[WHOLE[0].file_name]
    assert source.lack() is None


@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_a_place_that_is_away_is_never_an_empty_one(tmp_path: Path, kind: str) -> None:
    source: WalSource = MemoryWal(is_away=True) if kind == "memory" else WalDirectory(str(tmp_path / "gone"))
    for question in (source.timelines, lambda: source.ranges(1, MB), source.first_header, source.lack):
        with pytest.raises(StorageFailed):
            question()
    with pytest.raises(StorageFailed):
        Fetcher([source], grace_s=0).fetch(WHOLE[0].file_name, str(tmp_path / "target"))


# Its users


def test_a_recovery_is_served_by_any_archive(archive: Callable[[Files], WalSource], tmp_path: Path) -> None:
    fetcher, target = Fetcher([archive(HELD)], grace_s=0), tmp_path / "RECOVERYXLOG"
    for segment in (WHOLE[0], WHOLE[2]):
        assert fetcher.fetch(segment.file_name, str(target))
        assert target.read_bytes() == HELD[segment.file_name]
    assert fetcher.fetch(SHORT.file_name, str(target))
    assert target.read_bytes() == HELD[SHORT.file_name].ljust(MB, b"\0")
    assert fetcher.fetch("00000002.history", str(target))
    assert target.read_bytes() == HISTORY
    assert not fetcher.fetch(WalSegment(1, 4, MB).file_name, str(target))


def test_a_fetch_goes_on_with_the_next_place_unless_that_would_end_recovery(tmp_path: Path) -> None:
    said: list[str] = []
    away, target = MemoryWal(place="away", is_away=True), tmp_path / "RECOVERYXLOG"
    fetcher = Fetcher([away, memory(HELD)], grace_s=0, warn=said.append)
    assert fetcher.fetch(WHOLE[0].file_name, str(target))
    assert len(said) == 1
    assert "it is away" in said[0]
    with pytest.raises(StorageFailed, match="it is away"):
        fetcher.fetch(WalSegment(1, 4, MB).file_name, str(target))


def written(segments: int = 3) -> tuple[WalBuilder, Files]:
    """Return WAL in records over some segments, the last one unfinished, and those by name."""
    wal = WalBuilder()
    while wal.lsn < wal.start + segments * MB - 200_000:
        wal.add(bytes(len(wal.records) % 5000))
    names = [WalSegment(1, number, MB).file_name for number in range(1, segments + 1)]
    contents = [bytes(wal.content[at * MB : (at + 1) * MB]) for at in range(segments)]
    contents[-1] = contents[-1].ljust(-(-len(contents[-1]) // PAGE) * PAGE, b"\0")
    return wal, dict(zip(names, contents, strict=True))


def test_the_survey_before_a_recovery_reads_what_came_with_the_backup(make: Callable[[Files], WalSource]) -> None:
    wal, files = written()
    survey(wal, WalStock(SearchList([]), make(files), MB))


def test_the_survey_before_a_recovery_reads_any_archive(archive: Callable[[Files], WalSource]) -> None:
    wal, files = written()
    survey(wal, WalStock(archive(files), SearchList([]), MB))


def survey(wal: WalBuilder, stock: WalStock) -> None:
    """Read all WAL of a stock; its end must be found."""
    span = BackupSpan("/backup", Lsn(wal.records[3][0]), 1, Lsn(wal.records[9][0]), 1, MB)
    histories, _ = stock.histories()
    chain = check_chain(stock, follow(histories[1], span, stock.files(1)), wal.system)
    assert [file.segment.number for file in chain.files] == [1, 2, 3]
    search = TargetSearch(RecoveryTarget(TargetKind.LATEST), span.start_lsn, span.start_lsn, span.end_lsn)
    end = scan(stock, chain, search, lambda done, total: None)
    assert end is not None
    assert end.lsn == wal.lsn
    assert not end.is_broken


def test_every_record_of_a_backup_is_checked_in_any_source(make: Callable[[Files], WalSource]) -> None:
    wal, files = written()
    damaged = dict(files)
    name = sorted(files)[1]
    damaged[name] = files[name][: MB // 2] + b"\xff" + files[name][MB // 2 + 1 :]
    span = WalRange(1, Lsn(wal.records[3][0]), Lsn(wal.records[-5][0]))
    verdict = check_wal([span], make(damaged), segment_size_bytes=None)
    problems = [found for found in verdict.findings if found.severity is Severity.PROBLEM]
    assert [(found.check, found.subject) for found in problems] == [("wal-damaged", name)]


def test_a_range_that_is_listed_and_gone_is_an_error_and_not_the_end_of_the_wal(tmp_path: Path) -> None:
    repository = new_repository()
    wal = repository.wal("shop", SYSTEM_IDENTIFIER, MB)
    content = HELD[WHOLE[0].file_name]
    for offset in range(0, MB, MB // 2):
        wal.put_range(1, WHOLE[0].start + offset, content[offset : offset + MB // 2])
    (copy,) = RepositoryWalSource(wal, place="shop in memory").copies(WHOLE[0].file_name)
    assert copy.is_final
    views = copy.views()
    next(views)
    *_, last = repository.store.list_objects("clusters/shop/wal")
    repository.store.delete(last.name)
    with pytest.raises(StorageFailed, match="although the repository has listed it") as refused:
        list(views)
    assert not isinstance(refused.value.__cause__, FileNotFoundError)


def test_ranges_that_overlap_and_differ_are_never_served(tmp_path: Path) -> None:
    wal = new_repository().wal("shop", SYSTEM_IDENTIFIER, MB)
    content = HELD[WHOLE[0].file_name]
    wal.put_range(1, WHOLE[0].start, content[:600_000])
    wal.put_range(1, WHOLE[0].start + 500_000, bytes(100) + content[500_100:])
    with pytest.raises(IntegrityError, match="differ"):
        Fetcher([RepositoryWalSource(wal, place="shop")], grace_s=0).fetch(WHOLE[0].file_name, str(tmp_path / "target"))


def test_the_restore_command_names_every_place() -> None:
    command = restore_command(SearchList([WalDirectory("/wal/a"), MemoryWal(place="b"), WalDirectory("/wal/c d")]))
    assert "wal fetch --wal /wal/a --memory b --wal '/wal/c d' %f" in command
