"""Which timeline recovery follows and which segments it reads: the server's rules, without a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from polarvault.errors import TimelineDiverged, WalGap
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.recovery.wal.chain import (
    BackupSpan,
    ChainSegment,
    WalChain,
    choose_timeline,
    divergence,
    follow,
    settled_timeline,
)
from polarvault.wal.history import HistoryEntry, TimelineHistory

MB = 1 << 20
SIZES = [MB, 16 * MB, 1024 * MB]


def history(timeline_id: int, *switches: tuple[int, int]) -> TimelineHistory:
    return TimelineHistory(timeline_id, tuple(HistoryEntry(t, Lsn(lsn)) for t, lsn in switches))


def span(start: int, end: int | None, *, timeline_id: int = 1, size: int = MB) -> BackupSpan:
    return BackupSpan("/b", Lsn(start), timeline_id, None if end is None else Lsn(end), timeline_id, size)


def files(*names: tuple[int, int], size: int = MB, partial: Iterable[tuple[int, int]] = ()) -> Mapping:  # type: ignore[type-arg]
    """Segments by timeline and number."""
    return {
        (t, n): ChainSegment(WalSegment(t, n, size), f"/w/{t}-{n}", partial=(t, n) in partial, size_bytes=size)
        for t, n in names
    }


def numbers(chain: WalChain) -> list[tuple[int, int]]:
    return [(file.segment.timeline_id, file.segment.number) for file in chain.files]


@pytest.mark.parametrize("size", SIZES)
def test_segments_follow_one_another_until_one_is_missing(size: int) -> None:
    there = files((1, 2), (1, 3), (1, 4), size=size)
    chain = follow(TimelineHistory(1), span(2 * size + 40, None, size=size), there)
    assert numbers(chain) == [(1, 2), (1, 3), (1, 4)]
    assert (chain.missing.number, chain.later, chain.has_gap, chain.end) == (5, None, False, 5 * size)
    assert chain.size_bytes == 3 * size
    assert [file.segment.number for file in chain.since(3 * size)] == [3, 4]


def test_a_segment_behind_the_missing_one_makes_a_gap() -> None:
    chain = follow(TimelineHistory(1), span(2 * MB, None), files((1, 2), (1, 4), (1, 5), (1, 1)))
    assert numbers(chain) == [(1, 2)]
    assert chain.has_gap
    assert chain.missing.file_name == "000000010000000000000003"
    assert chain.later is not None
    assert chain.later.segment.number == 4


def test_nothing_at_all_is_an_empty_chain_that_ends_where_the_backup_begins() -> None:
    chain = follow(TimelineHistory(1), span(2 * MB + 40, None), {})
    assert (chain.files, chain.missing.number, chain.end, chain.has_gap) == ((), 2, 2 * MB, False)


def test_the_newest_timeline_that_had_begun_is_taken_for_each_segment() -> None:
    lines = history(3, (1, 3 * MB + 500), (2, 5 * MB))
    there = files((1, 2), (1, 3), (2, 3), (2, 4), (1, 4), (2, 5), (3, 5), (3, 6))
    chain = follow(lines, span(2 * MB, 2 * MB + 900), there)
    assert numbers(chain) == [(1, 2), (2, 3), (2, 4), (3, 5), (3, 6)]
    assert (chain.limit, chain.missing.timeline_id) == (None, 3)


def test_an_old_timelines_file_is_read_only_up_to_the_switch() -> None:
    lines = history(2, (1, 3 * MB + 500))
    chain = follow(lines, span(2 * MB, 2 * MB + 900), files((1, 2), (1, 3), (1, 4), (2, 4)))
    assert numbers(chain) == [(1, 2), (1, 3)]
    assert (chain.limit, chain.end) == (3 * MB + 500, 3 * MB + 500)
    assert chain.missing.file_name == "000000020000000000000003"
    assert chain.has_gap


def test_a_switch_at_a_segments_first_byte_needs_nothing_of_the_old_timeline_there() -> None:
    chain = follow(history(2, (1, 3 * MB)), span(2 * MB, 2 * MB + 900), files((1, 2), (2, 3)))
    assert numbers(chain) == [(1, 2), (2, 3)]


KNOWN = {
    1: TimelineHistory(1),
    2: history(2, (1, 3 * MB)),
    3: history(3, (1, 5 * MB)),
    4: history(4, (1, 3 * MB), (2, 9 * MB)),
}


@pytest.mark.parametrize(
    ("end", "wanted", "chosen"),
    [
        (2 * MB, "latest", 4),
        (3 * MB, "latest", 4),  # A backup that ends exactly at the switch is inside.
        (3 * MB + 8, "latest", 3),
        (5 * MB + 8, "latest", 1),
        (2 * MB, "current", 1),
        (2 * MB, 2, 2),
        (2 * MB, 1, 1),
        (None, "latest", 4),
    ],
)
def test_the_newest_timeline_that_holds_the_backups_end_is_the_latest(
    end: int | None, wanted: str | int, chosen: int
) -> None:
    found, warnings = choose_timeline(wanted, span(MB, end), KNOWN)
    assert found.timeline_id == chosen
    if wanted == "latest":
        diverged = [t for t in KNOWN if t > 1 and divergence(KNOWN[t], span(MB, end)) is not None]
        assert [int(warning.split()[1]) for warning in warnings] == diverged


def test_a_timeline_that_left_too_early_is_named_with_where() -> None:
    with pytest.raises(TimelineDiverged) as caught:
        choose_timeline(2, span(MB, 4 * MB), KNOWN)
    assert "timeline 2 cannot be reached" in caught.value.message
    assert "it left timeline 1 at 0/300000, before the end of the backup at 0/400000" in caught.value.message


def test_a_timeline_of_another_branch_is_named() -> None:
    with pytest.raises(TimelineDiverged, match="does not contain timeline 3"):
        choose_timeline(4, span(MB, 6 * MB, timeline_id=3), KNOWN)


def test_an_unknown_timeline_names_the_known_ones() -> None:
    with pytest.raises(WalGap, match=r"no 00000007\.history") as caught:
        choose_timeline(7, span(MB, 2 * MB), KNOWN)
    assert caught.value.hint == "timelines that are known: 1, 2, 3, 4"


def test_a_backup_of_a_later_timeline_without_a_history_file_stays_on_it() -> None:
    found, _ = choose_timeline("latest", span(MB, 2 * MB, timeline_id=9), {1: TimelineHistory(1)})
    assert (found.timeline_id, found.entries) == (9, ())


def test_a_stop_on_an_ancestor_is_reached_on_that_ancestor() -> None:
    there = files((1, 2), (1, 3), (2, 3), (2, 4))
    whole = span(2 * MB, 2 * MB + 900)
    chain = follow(KNOWN[2], whole, there)
    assert numbers(chain) == [(1, 2), (2, 3), (2, 4)]
    assert settled_timeline(chain, whole, KNOWN, there, Lsn(2 * MB + 1000)).history.timeline_id == 1
    assert settled_timeline(chain, whole, KNOWN, there, Lsn(3 * MB)).history.timeline_id == 1
    assert settled_timeline(chain, whole, KNOWN, there, Lsn(3 * MB + 8)) is chain


def test_a_stop_on_an_ancestor_whose_last_segment_is_gone_stays_as_it_was() -> None:
    lines = {1: TimelineHistory(1), 2: history(2, (1, 3 * MB + 5000))}
    there = files((1, 2), (2, 3))
    whole = span(2 * MB, 2 * MB + 900)
    chain = follow(lines[2], whole, there)
    assert settled_timeline(chain, whole, lines, there, Lsn(3 * MB + 4000)) is chain
