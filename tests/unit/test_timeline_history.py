"""Timeline histories: what servers write, and what a crash or an editor leaves of it."""

from __future__ import annotations

import re

import pytest

from polarvault.errors import IntegrityError
from polarvault.model.lsn import Lsn
from polarvault.wal.history import HistoryEntry, TimelineHistory, TimelineRange, history_file_name

# As a PostgreSQL 15 wrote it after two promotions, with a comment and a blank line by hand.
WRITTEN = b"""1\t0/2A000028\tno recovery target specified

# restored on a Tuesday
2\t0/2C0000D8\tbefore 2000-01-01 00:00:00+00
"""


def test_every_stretch_of_wal_has_one_timeline() -> None:
    history = TimelineHistory.parse(WRITTEN, 3)
    first, second = Lsn.parse("0/2A000028"), Lsn.parse("0/2C0000D8")
    assert history.entries[0] == HistoryEntry(1, first, "no recovery target specified")
    assert history.ranges == (
        TimelineRange(1, Lsn(0), first),
        TimelineRange(2, first, second),
        TimelineRange(3, second, None),
    )
    assert history.ancestors == history.ranges[:2]
    assert history.start == second
    assert [history.timeline_of(lsn) for lsn in (0, first - 1, first, second - 1, second, 2**64 - 1)] == [
        1, 1, 2, 2, 3, 3,
    ]  # fmt: skip


def test_wal_that_a_timeline_wrote_after_the_switch_is_no_part_of_the_history() -> None:
    history = TimelineHistory.parse(WRITTEN, 3)
    switch = Lsn.parse("0/2A000028")
    assert history.contains(1, switch - 1)
    assert not history.contains(1, switch)
    assert history.contains(2, switch)
    assert not history.contains(4, switch)
    assert history.contains_up_to(1, switch)
    assert not history.contains_up_to(1, switch + 1)


def test_a_cluster_that_never_switched_has_one_open_range() -> None:
    history = TimelineHistory(1)
    assert history.ranges == (TimelineRange(1, Lsn(0), None),)
    assert history.ancestors == ()
    assert history.timeline_of(0) == 1
    assert history.contains_up_to(1, 0)


def test_a_reason_may_be_missing_and_blanks_may_be_any() -> None:
    assert TimelineHistory.parse(b" 1  0/28 \r\n", 2).entries == (HistoryEntry(1, Lsn(0x28), ""),)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it names no ancestor"),
        (b"# nothing\n\n", "it names no ancestor"),
        (b"1\t0/28\tx\n\0\0\0\0\0\0\n", r"line 2: '\x00\x00\x00\x00\x00\x00' is not a timeline"),
        (b"one\t0/28\tx\n", "line 1: 'one\\t0/28\\tx' is not a timeline"),
        (b"1\t0-28\tx\n", "line 1: '1\\t0-28\\tx' is not a timeline"),
        (b"# c\n1\n", "line 2: '1' is not a timeline"),
        (b"0\t0/28\tx\n", "line 1: 0 is not a timeline"),
        (b"9999999999\t0/28\tx\n", "line 1: 9999999999 is not a timeline"),
        (b"1\t0/28\tx\n4\t0/30\tx\n", "line 2: timeline 4 cannot be an ancestor of timeline 4"),
        (b"2\t0/28\tx\n1\t0/30\tx\n", "line 2: timeline 1 follows timeline 2"),
        (b"1\t0/28\tx\n2\t0/20\tx\n", "line 2: the switch at 0/20 lies before the one at 0/28"),
        (b"1" * 100 + b"\n", f"line 1: '{'1' * 60}...' is not a timeline"),
    ],
)
def test_a_damaged_file_is_refused_with_the_line(content: bytes, says: str) -> None:
    with pytest.raises(IntegrityError, match=re.escape(f"history 00000004.history is damaged: {says}")):
        TimelineHistory.parse(content, 4)


def test_the_file_s_name_is_hexadecimal() -> None:
    assert history_file_name(26) == "0000001A.history"
