"""WAL that ends is told from WAL that is damaged, by what follows in the segment."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.recovery.ends import Continuation, find_continuation
from polarvault.recovery.survey import find_end
from polarvault.recovery.wal.chain import BackupSpan, ChainSegment, WalChain
from polarvault.recovery.wal.stock import WalStock
from polarvault.wal.history import TimelineHistory
from polarvault.wal.scan import PlainReader
from support.wal_bytes import PAGE, XLOG, WalBuilder

MB = 1 << 20
SWITCH = 0x40


def written(records: int = 120, *, longest: int = 900, segment: int = 1, seed: int = 5) -> WalBuilder:
    builder, chosen = WalBuilder(segment=segment), random.Random(seed)
    for _ in range(records):
        builder.add(chosen.randbytes(chosen.randrange(1, longest)))
    return builder


def judge(content: bytes, *, start: int = MB, timeline: int = 1, cut: int = 100_000) -> Continuation | None:
    """Read a segment to its end, then look at what follows; the pieces are cut anywhere."""
    reader = PlainReader(start, MB)
    reader.feed(content)
    assert reader.end is not None
    views = (memoryview(content)[at : at + cut] for at in range(0, len(content), cut))
    return find_continuation(views, Lsn(start), reader.end, lambda lsn: timeline)


def whole(builder: WalBuilder, rest: bytes = b"") -> bytearray:
    content = bytearray(builder.content)
    return content + rest[len(content) : MB] + bytes(MB - max(len(content), len(rest[:MB])))


@pytest.mark.parametrize("cut", [1000, PAGE, 100_000, MB])
@pytest.mark.parametrize("at", [40, 4096, 8192, 8200, 3 * PAGE + 8, 3 * PAGE + 500])
def test_damage_is_certain_where_pages_of_this_very_segment_follow(at: int, cut: int) -> None:
    builder = written()
    content = whole(builder)
    assert len(builder.content) > 5 * PAGE
    content[at : at + 16] = b"\xff" * 16
    found = judge(bytes(content), cut=cut)
    assert found is not None
    assert found.is_certain
    assert found.lsn < builder.lsn


@pytest.mark.parametrize("hole", [PAGE, 3 * PAGE])
def test_a_hole_of_zeros_is_damage_and_zeros_to_the_end_are_none(hole: int) -> None:
    builder = written()
    content = whole(builder)
    content[PAGE : PAGE + hole] = bytes(hole)
    found = judge(bytes(content))
    assert found is not None
    assert found.is_certain
    content[PAGE:] = bytes(MB - PAGE)
    assert judge(bytes(content)) is None


def test_old_pages_of_a_recycled_segment_are_no_continuation() -> None:
    old, new = written(900, segment=1), written(20, segment=4)
    content = whole(new, bytes(old.content))
    assert judge(bytes(content), start=4 * MB) is None
    # On the page of the end as well the old records point before it.
    end = len(new.content)
    assert content[end : end + 100] == old.content[end : end + 100]


def test_pages_of_the_timeline_that_was_left_here_are_no_continuation() -> None:
    # A future segment of the old timeline, with content of its own, becomes one of the new timeline at a promotion.
    content = whole(written())
    content[len(content) // 2 :] = bytes(MB - len(content) // 2)
    content[PAGE : PAGE + 16] = b"\xff" * 16
    assert judge(bytes(content), timeline=2) is None
    found = judge(bytes(content), timeline=1)
    assert found is not None


@pytest.mark.parametrize("pages", [0, 1, 2, 5])
def test_a_record_that_was_torn_is_an_ordinary_end_however_many_pages_it_reached(pages: int) -> None:
    builder = written(10)
    before = builder.lsn
    builder.add(bytes(range(250)) * 400)
    reached = (before % MB) // PAGE * PAGE + pages * PAGE + 3000
    content = bytes(builder.content[: max(reached, before % MB + 30)])
    assert judge(content.ljust(MB, b"\0")) is None


@pytest.mark.parametrize("left", [30, 2000, PAGE, 3 * PAGE + 100])
def test_a_record_that_began_in_the_segment_before_is_torn_here(left: int) -> None:
    # As a receiver leaves it that was killed: the rest of the last page it wrote is zeros.
    builder = written(30)
    builder.add(bytes(2 * MB - builder.lsn - 500))
    builder.begin_page_if_due()
    builder.add(random.Random(3).randbytes(500 + 4 * PAGE))
    second = bytes(builder.content[MB:])
    reader = PlainReader(MB, MB)
    reader.feed(bytes(builder.content[:MB]))
    cut = second[:left].ljust(MB, b"\0")
    reader.feed(cut)
    assert reader.end is not None
    assert find_continuation([memoryview(cut)], Lsn(2 * MB), reader.end, lambda lsn: 1) is None


def test_a_switch_behind_a_damaged_record_of_the_only_page_proves_damage_and_a_record_alone_does_not() -> None:
    builder = WalBuilder()
    for number in range(4):
        builder.add(bytes([number]) * 60)
    third = 40 + 2 * 88
    hole = whole(builder)
    hole[third : third + 88] = bytes(88)
    found = judge(bytes(hole))
    # A server that was killed in the middle of several commits leaves the same.
    assert found is not None
    assert not found.is_certain
    builder.add(rmgr=XLOG, info=SWITCH)
    switched = whole(builder)
    switched[third : third + 88] = bytes(88)
    found = judge(bytes(switched))
    assert found is not None
    assert found.is_certain


def test_rubbish_behind_the_end_is_no_continuation() -> None:
    chosen = random.Random(11)
    for _ in range(30):
        builder = written(12, seed=chosen.randrange(1000))
        content = whole(builder)
        content[len(builder.content) :] = chosen.randbytes(MB - len(builder.content))
        assert judge(bytes(content)) is None
    # Not even with a header in front that only looks like one.
    page = (len(builder.content) // PAGE + 2) * PAGE
    content[page : page + 24] = struct.pack("<HHIQI4x", 0xD118, 0, 1, MB + page + PAGE, 0)
    assert judge(bytes(content)) is None


class StockWithReceiver(WalStock):
    """One segment, of which a receiver has written `sizes` bytes when it is read for the first time, the second, ..."""

    def __init__(self, content: bytes, *sizes: int) -> None:
        self._content, self._sizes = content, list(sizes)

    def read(self, file: ChainSegment, *, piece_bytes: int = MB) -> Iterator[memoryview]:
        size = self._sizes.pop(0) if len(self._sizes) > 1 else self._sizes[0]
        yield memoryview(self._content[:size] + bytes(MB - size))


@pytest.mark.parametrize("damaged", [False, True])
def test_wal_that_a_receiver_writes_while_it_is_read_is_no_damage(damaged: bool) -> None:
    builder = written()
    content = whole(builder)
    if damaged:
        content[2 * PAGE + 100] ^= 1
    segment = WalSegment(1, 1, MB)
    file = ChainSegment(segment, "/wal/1.partial", partial=True, size_bytes=MB)
    chain = WalChain(TimelineHistory(1), (file,), WalSegment(1, 2, MB))
    stock = StockWithReceiver(bytes(content), 3 * PAGE + 500, 6 * PAGE, MB)
    end = find_end(stock, chain, BackupSpan("/backup", segment.start, 1, None, 1, MB))
    assert (end.is_broken, end.is_damaged) == (damaged, damaged)
    assert segment.start < end.lsn < segment.start + 3 * PAGE + 500
