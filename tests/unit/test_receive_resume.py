"""Where receiving goes on: after what the directory holds, and on the server's timelines."""

from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from polarvault.errors import IntegrityError, TimelineDiverged, UsageError
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.wal.history import HistoryEntry, TimelineHistory
from polarvault.wal.store import Cluster, StartPoint
from polarvault.walarchive.receive.histories import continues, on_servers_history
from polarvault.walarchive.store.resume import after_kept_wal
from support.wal_segments import SYSTEM_IDENTIFIER, segment_content

MB = 1 << 20
CLUSTER = Cluster(str(SYSTEM_IDENTIFIER), MB)


def segment(number: int, timeline: int = 1) -> WalSegment:
    return WalSegment(timeline, number, MB)


def keep(directory: Path, name: str, *, pages: int | None = None) -> None:
    """Write a segment in the form that the name's suffixes say."""
    stem, *suffixes = name.split(".")
    content = segment_content(WalSegment.parse(stem, MB), pages=pages)
    if "gz" in suffixes:
        content = gzip.compress(content, 1)
    elif "lz4" in suffixes:
        content = lz4.frame.compress(content)
    elif "zst" in suffixes:
        content = zstandard.ZstdCompressor().compress(content)
    (directory / name).write_bytes(content)


def any_segment(segment: WalSegment) -> bool:
    return True


def kept(directory: Path) -> tuple[StartPoint | None, list[str]]:
    warnings: list[str] = []
    return after_kept_wal(str(directory), CLUSTER, warnings.append, counts=any_segment), warnings


# What the directory holds


@pytest.mark.parametrize("suffix", ["", ".gz", ".lz4", ".zst"])
def test_a_whole_segment_is_followed_by_the_next(tmp_path: Path, suffix: str) -> None:
    keep(tmp_path, segment(3).file_name + suffix)
    keep(tmp_path, segment(4).file_name + suffix)
    assert kept(tmp_path) == (StartPoint(1, Lsn(5 * MB)), [])


@pytest.mark.parametrize("suffix", ["", ".gz", ".lz4", ".zst"])
def test_a_partial_segment_is_fetched_again_from_its_first_byte(tmp_path: Path, suffix: str) -> None:
    keep(tmp_path, segment(3).file_name + suffix)
    keep(tmp_path, segment(4).file_name + suffix + ".partial", pages=3)
    assert kept(tmp_path) == (StartPoint(1, Lsn(4 * MB)), [])


@pytest.mark.parametrize("suffix", ["", ".gz", ".lz4", ".zst"])
def test_segments_that_a_killed_receiver_did_not_finish_are_all_fetched_again(tmp_path: Path, suffix: str) -> None:
    keep(tmp_path, segment(3).file_name + suffix)
    for number in (4, 5, 6):
        keep(tmp_path, segment(number).file_name + suffix + ".partial", pages=3)
    assert kept(tmp_path) == (StartPoint(1, Lsn(4 * MB)), [])
    # In another form it is whole: an earlier run compressed, this one does not.
    keep(tmp_path, segment(4).file_name + ".gz")
    assert kept(tmp_path) == (StartPoint(1, Lsn(5 * MB)), [])


def test_a_partial_segment_that_somebody_removed_leaves_no_gap(tmp_path: Path) -> None:
    keep(tmp_path, segment(3).file_name)
    keep(tmp_path, segment(6).file_name + ".partial", pages=3)
    keep(tmp_path, segment(7).file_name + ".partial", pages=3)
    assert kept(tmp_path) == (StartPoint(1, Lsn(4 * MB)), [])
    # So far apart nobody ever had them open at a time: what is missing was not there at all, and stays so.
    (tmp_path / segment(3).file_name).unlink()
    assert kept(tmp_path) == (StartPoint(1, Lsn(6 * MB)), [])


def test_a_partial_segment_of_an_older_timeline_is_no_unfinished_one(tmp_path: Path) -> None:
    keep(tmp_path, segment(4).file_name + ".partial", pages=3)
    keep(tmp_path, segment(4, 2).file_name)
    keep(tmp_path, segment(5, 2).file_name + ".partial", pages=1)
    assert kept(tmp_path) == (StartPoint(2, Lsn(5 * MB)), [])


def test_whole_wins_over_partial_and_the_newer_timeline_over_the_older(tmp_path: Path) -> None:
    keep(tmp_path, segment(4).file_name)
    keep(tmp_path, segment(4).file_name + ".gz.partial", pages=2)
    assert kept(tmp_path) == (StartPoint(1, Lsn(5 * MB)), [])
    keep(tmp_path, segment(4, 2).file_name + ".partial", pages=2)
    assert kept(tmp_path) == (StartPoint(2, Lsn(4 * MB)), [])


@pytest.mark.parametrize("suffix", ["", ".gz", ".lz4", ".zst"])
def test_a_segment_of_a_wrong_length_is_skipped_with_a_warning(tmp_path: Path, suffix: str) -> None:
    keep(tmp_path, segment(3).file_name + suffix)
    keep(tmp_path, segment(4).file_name + suffix, pages=5)
    start, warnings = kept(tmp_path)
    assert start == StartPoint(1, Lsn(4 * MB))
    assert len(warnings) == 1
    assert f'{segment(4).file_name}{suffix}" has {5 * 8192} bytes instead of {MB}, skipping' in warnings[0]


def test_a_segment_that_was_cut_before_a_partial_one_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / (segment(4).file_name + ".gz")).write_bytes(b"")
    keep(tmp_path, segment(5).file_name + ".gz.partial", pages=2)
    start, (warning,) = kept(tmp_path)
    assert start == StartPoint(1, Lsn(4 * MB))
    assert "cannot be read" in warning


@pytest.mark.parametrize("suffix", ["", ".gz", ".lz4", ".zst"])
def test_a_partial_segment_without_a_byte_is_no_problem(tmp_path: Path, suffix: str) -> None:
    keep(tmp_path, segment(3).file_name)
    path = tmp_path / (segment(4).file_name + suffix + ".partial")
    path.write_bytes(b"")
    assert kept(tmp_path) == (StartPoint(1, Lsn(4 * MB)), [])
    if not suffix:
        os.truncate(path, MB)
        assert kept(tmp_path) == (StartPoint(1, Lsn(4 * MB)), [])


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    for name in (".polarvault-receivewal.lock", "00000002.history", "readme", segment(9).file_name + ".gz.partial.new"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / (segment(3).file_name + ".00000028.backup")).write_bytes(b"x")
    assert kept(tmp_path) == (None, [])


def test_wal_of_another_cluster_is_refused(tmp_path: Path) -> None:
    keep(tmp_path, segment(3).file_name + ".gz.partial", pages=1)
    with pytest.raises(UsageError, match="WAL of two clusters must not be mixed"):
        after_kept_wal(str(tmp_path), Cluster("42", MB), pytest.fail, counts=any_segment)


def test_another_segment_size_is_refused_or_named(tmp_path: Path) -> None:
    keep(tmp_path, segment(3).file_name + ".partial", pages=1)
    with pytest.raises(UsageError, match=f"is a segment of {MB} bytes, the server's have {16 * MB}"):
        after_kept_wal(str(tmp_path), Cluster(str(SYSTEM_IDENTIFIER), 16 * MB), pytest.fail, counts=any_segment)
    # 16 MB segments end in 000000FF at most, 1 MB ones in 00000FFF.
    (tmp_path / "0000000100000000000001FF").write_bytes(b"x")
    warnings: list[str] = []
    with pytest.raises(UsageError):
        after_kept_wal(str(tmp_path), Cluster(str(SYSTEM_IDENTIFIER), 16 * MB), warnings.append, counts=any_segment)
    assert "belongs to another segment size" in warnings[0]


@pytest.mark.parametrize("suffix", ["", ".gz", ".lz4", ".zst"])
def test_whole_segments_of_another_size_are_refused_before_they_are_overwritten(tmp_path: Path, suffix: str) -> None:
    keep(tmp_path, segment(3).file_name + suffix)
    cluster = Cluster(str(SYSTEM_IDENTIFIER), 4 * MB)
    with pytest.raises(UsageError, match=rf"is a segment of {MB} bytes, the server's have {4 * MB}"):
        after_kept_wal(str(tmp_path), cluster, lambda warning: None, counts=any_segment)


def test_a_whole_file_that_is_no_wal_is_refused(tmp_path: Path) -> None:
    (tmp_path / segment(3).file_name).write_bytes(bytes(MB))
    with pytest.raises(IntegrityError, match="does not begin with the first page"):
        kept(tmp_path)


# The server's timelines. A history is written as the switch points, in MB, of the timelines before its own.


def history(text: str) -> TimelineHistory:
    """Parse ``1@5 2@7 4``: timeline 4, which left 2 at 7 MB, which left 1 at 5 MB."""
    *before, own = text.split()
    entries = tuple(HistoryEntry(int(word.partition("@")[0]), Lsn(int(word.partition("@")[2]) * MB)) for word in before)
    return TimelineHistory(int(own), entries)


def moved(wanted: tuple[int, float], server: str, here: str | None) -> tuple[int, float] | str:
    """Return where receiving goes on; positions in MB."""
    point = StartPoint(wanted[0], Lsn(int(wanted[1] * MB)))
    try:
        start = on_servers_history(point, history(server), history(here) if here else None, MB)
    except TimelineDiverged as problem:
        return "old primary" if "old primary" in problem.message and problem.hint else "diverged"
    assert (start.remark is None) == (start == point)
    return start.timeline_id, start.lsn / MB


@pytest.mark.parametrize(
    ("wanted", "server", "here", "expected"),
    [
        # The server's own timeline, and an ancestor of it up to the fork.
        ((1, 5), "1", None, (1, 5)),
        ((2, 9), "1@5 2", "1@5 2", (2, 9)),
        ((2, 9), "1@5 2", None, (2, 9)),
        ((1, 5), "1@7 2", None, (1, 5)),
        ((1, 7), "1@7 2", None, (1, 7)),
        ((2, 6), "1@5 2@6 3", "1@5 2", (2, 6)),
        ((1, 2), "1@5 2@6 3", None, (1, 2)),
        # Past a fork: the standby had not received all of it.
        ((1, 8), "1@7 2", None, (2, 7)),
        ((1, 8), "1@5 2@7 3", None, (2, 5)),
        ((2, 8), "1@5 2@7 3", "1@5 2", (3, 7)),
        # A third server branched off the same timeline: before, at and after the point where ours did.
        ((2, 8), "1@4 3", "1@5 2", (3, 4)),
        ((2, 8), "1@5 3", "1@5 2", (3, 5)),
        ((2, 8), "1@6 3", "1@5 2", (1, 5)),
        ((3, 9), "1@5 2@8 4", "1@5 2@7 3", (2, 7)),
        ((3, 9), "1@5 2@6 4", "1@5 2@7 3", (4, 6)),
        ((3, 9), "1@5 4", "1@5 2@7 3", (4, 5)),
        # Two standbys were promoted to the same number.
        ((2, 8), "1@6 2", "1@5 2", "diverged"),
        ((2, 8), "1@4 2", "1@5 2", "diverged"),
        ((2, 8), "1@4 2@9 3", "1@5 2", "diverged"),
        ((3, 8), "1@5 2@6 3", "1@5 3", "diverged"),
        # Not related, as far as one can see.
        ((2, 8), "1@5 3", None, "diverged"),
        # The server has fallen behind.
        ((2, 8), "1", "1@5 2", "old primary"),
        ((3, 8), "1@5 2", "1@5 2@7 3", "old primary"),
        ((3, 8), "1@5 2", None, "old primary"),
    ],
)
def test_a_start_point_is_moved_onto_the_servers_history(
    wanted: tuple[int, float], server: str, here: str | None, expected: tuple[int, float] | str
) -> None:
    assert moved(wanted, server, here) == expected


def all_histories(newest: int) -> list[str]:
    """Return every history of timelines up to a number whose switches lie at 2, 3, ... MB."""
    found = []
    for own in range(1, newest + 1):
        for count in range(own):
            for before in itertools.combinations(range(1, own), count):
                if own > 1 and not (before and before[0] == 1):
                    continue
                for points in itertools.combinations_with_replacement(range(2, 6), count):
                    words = [f"{timeline}@{point}" for timeline, point in zip(before, points, strict=True)]
                    found.append(" ".join([*words, str(own)]))
    return found


def test_whatever_is_here_no_wal_of_the_servers_history_is_skipped() -> None:
    """Compare with a definition: everything here, and everything from the start point on, is the server's WAL."""
    tried = 0
    for here, server in itertools.product(all_histories(3), all_histories(4)):
        ours, theirs = history(here), history(server)
        for position in range(1, 8):
            if position * MB < ours.start:
                continue
            found = moved((ours.timeline_id, position), server, here)
            tried += 1
            same = [
                position for position in range(position)
                if ours.timeline_of(position * MB) == theirs.timeline_of(position * MB)
            ]  # fmt: skip
            if isinstance(found, str):
                # Refused only where the server is behind, or would use a number that means something else here.
                numbers = {r.timeline_id for r in ours.ranges} & {r.timeline_id for r in theirs.ranges} - {1}
                assert theirs.timeline_id < ours.timeline_id or numbers, (here, server, position)
                continue
            timeline, start = found
            # Up to the start everything that the server has is here.
            assert same[: int(start)] == list(range(int(start))), (here, server, position)
            stretch = theirs.range_of(timeline)
            assert stretch is not None, (here, server, position)
            # The server can send it: its last byte is not past the end of that timeline.
            assert stretch.end is None or start * MB <= stretch.end, (here, server, position)
    assert tried > 5000


def test_an_earlier_run_that_passed_the_fork_is_found() -> None:
    server = history("1@7 2@9 3")
    fork = StartPoint(2, Lsn(7 * MB))
    assert [
        (timeline, number)
        for timeline in (1, 2, 3, 4)
        for number in range(5, 12)
        if continues(fork, server, segment(number, timeline))
    ] == [(2, 7), (2, 8), (3, 7), (3, 8), (3, 9), (3, 10), (3, 11)]


def test_only_segments_that_count_are_looked_at(tmp_path: Path) -> None:
    for number in (4, 5, 6, 7):
        keep(tmp_path, segment(number).file_name)
    keep(tmp_path, segment(5, 2).file_name)
    keep(tmp_path, segment(6, 2).file_name + ".partial", pages=3)
    assert kept(tmp_path)[0] == StartPoint(1, Lsn(8 * MB))
    found = after_kept_wal(str(tmp_path), CLUSTER, pytest.fail, counts=lambda segment: segment.timeline_id == 2)
    assert found == StartPoint(2, Lsn(6 * MB))
