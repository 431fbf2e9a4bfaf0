"""Timeline histories: written and read, and every LSN on exactly one timeline."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from polarvault.errors import IntegrityError
from polarvault.model.lsn import Lsn
from polarvault.wal.history import HistoryEntry, TimelineHistory

_REASONS = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=20).map(str.strip)


@st.composite
def histories(draw: st.DrawFn) -> TimelineHistory:
    timelines = sorted(draw(st.sets(st.integers(1, 2**32 - 1), min_size=2, max_size=6)))
    switches = sorted(draw(st.lists(st.integers(0, 2**64 - 1), min_size=len(timelines) - 1, max_size=8)))
    entries = [
        HistoryEntry(timeline, Lsn(switch), draw(_REASONS))
        for timeline, switch in zip(timelines[:-1], switches, strict=False)
    ]
    return TimelineHistory(timelines[-1], tuple(entries))


@given(histories(), st.lists(st.sampled_from(["", "# a comment", "   "]), max_size=3))
def test_a_history_survives_being_written_and_read(history: TimelineHistory, noise: list[str]) -> None:
    lines = [f"{entry.timeline_id}\t{entry.switch_lsn}\t{entry.reason}" for entry in history.entries]
    content = "\n".join([*noise, *lines, *noise]) + "\n"
    assert TimelineHistory.parse(content.encode(), history.timeline_id) == history


@given(histories(), st.integers(0, 2**64 - 1))
def test_every_lsn_is_on_exactly_one_timeline(history: TimelineHistory, lsn: int) -> None:
    owners = [found.timeline_id for found in history.ranges if history.contains(found.timeline_id, lsn)]
    assert owners == [history.timeline_of(lsn)]


@given(st.binary(max_size=80), st.integers(2, 2**32 - 1))
def test_rubbish_is_refused_or_read_but_never_a_crash(content: bytes, timeline_id: int) -> None:
    with suppress(IntegrityError):
        assert TimelineHistory.parse(content, timeline_id).timeline_id == timeline_id
