"""Segment arithmetic holds at every legal segment size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment, is_segment_size

_SIZES = st.integers(20, 30).map(lambda power: 1 << power)
_LSNS = st.integers(0, 2**64 - 1)
_TIMELINES = st.integers(1, 2**32 - 1)


@given(_LSNS)
def test_an_lsn_survives_being_written_and_read(value: int) -> None:
    assert Lsn.parse(str(Lsn(value))) == value


@given(_LSNS, _TIMELINES, _SIZES)
def test_a_segment_holds_the_lsn_it_was_asked_for(lsn: int, timeline: int, size: int) -> None:
    segment = WalSegment.holding(lsn, timeline, size)
    assert segment.start <= lsn < segment.end
    assert segment.end - segment.start == size


@given(_LSNS, _TIMELINES, _SIZES)
def test_a_name_leads_back_to_its_segment(lsn: int, timeline: int, size: int) -> None:
    segment = WalSegment.holding(lsn, timeline, size)
    assert len(segment.file_name) == 24
    assert WalSegment.parse(segment.file_name, size) == segment


@given(st.integers(0, 2**63), _TIMELINES, _SIZES)
def test_names_sort_as_positions_do(lsn: int, timeline: int, size: int) -> None:
    segment = WalSegment.holding(lsn, timeline, size)
    assert segment.file_name < segment.next().file_name
    assert segment.next().start == segment.end


@given(st.integers(0, 2**32 - 2), _TIMELINES, _SIZES)
def test_the_last_segment_of_4_gib_is_followed_by_the_first_of_the_next(high: int, timeline: int, size: int) -> None:
    """A name's last field never reaches what 4 GiB hold, so it starts again there and the middle one counts up."""
    last = WalSegment.parse(f"{timeline:08X}{high:08X}{(2**32 // size) - 1:08X}", size)
    assert last.end == Lsn((high + 1) << 32)
    assert last.next().file_name == f"{timeline:08X}{high + 1:08X}{0:08X}"
    assert WalSegment.holding(last.end - 1, timeline, size) == last


@given(st.integers(0, 2**63), _TIMELINES, _SIZES, st.integers(1, 300))
def test_names_of_a_run_are_all_different_and_lead_back(lsn: int, timeline: int, size: int, count: int) -> None:
    segment = WalSegment.holding(lsn, timeline, size)
    names = []
    for _ in range(count):
        names.append(segment.file_name)
        segment = segment.next()
    assert len(set(names)) == count
    assert sorted(names) == names
    assert [WalSegment.parse(name, size).number for name in names] == [
        WalSegment.holding(lsn, timeline, size).number + step for step in range(count)
    ]


@given(st.integers(-(2**40), 2**40))
def test_legal_sizes_are_the_powers_of_two_that_initdb_accepts(size: int) -> None:
    assert is_segment_size(size) == (size in {1 << power for power in range(20, 31)})
