"""Planning a recovery from the outline of the marks is planning it from all of them."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from polarvault.model.lsn import Lsn
from polarvault.recovery.search import WATCHED_KINDS, TargetSearch
from polarvault.recovery.target import RecoveryTarget, TargetKind
from polarvault.wal.scan import MarkKind, WalScanner
from support.wal_bytes import TRANSACTION, XLOG, WalBuilder

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
# Small numbers, so that times, transactions and names meet.
_SMALL = st.integers(1, 8)
_STEPS = st.one_of(
    st.tuples(st.sampled_from([0x00, 0x20]), _SMALL, _SMALL),
    st.tuples(st.sampled_from([0x00, 0x20, 0xB0]), _SMALL, _SMALL),
    st.tuples(st.just(0x70), _SMALL, _SMALL),
    st.tuples(st.just(0x50), _SMALL, _SMALL),
)


def _write(wal: WalBuilder, info: int, time: int, number: int) -> None:
    if info == 0x70:
        wal.add_main(struct.pack("<q", time) + str(number).encode().ljust(64, b"\0"), rmgr=XLOG, info=info)
    elif info == 0x50:
        wal.add_main(struct.pack("<Q", wal.start + 40 if number < 5 else 0), rmgr=XLOG, info=info)
    elif info == 0xB0:
        wal.add_main(struct.pack("<qII", time, 16, number), rmgr=TRANSACTION, info=info)
    else:
        wal.add_main(struct.pack("<q", time), rmgr=TRANSACTION, info=info, xid=number)


@given(
    st.lists(_STEPS, min_size=1, max_size=60), st.data(), st.sampled_from([*TargetKind]), _SMALL, st.booleans(),
)  # fmt: skip
def test_the_outline_decides_as_all_marks_do(
    steps: list[tuple[int, int, int]], data: st.DataObject, kind: TargetKind, number: int, inclusive: bool
) -> None:
    wal = WalBuilder()
    for step in steps:
        _write(wal, *step)
    lsns = st.sampled_from([Lsn(lsn + shift) for lsn, _ in wal.records for shift in (-8, 0, 8)])
    target = RecoveryTarget(
        kind,
        time=EPOCH + timedelta(microseconds=number) if kind is TargetKind.TIME else None,
        xid=number if kind is TargetKind.XID else None,
        lsn=data.draw(lsns) if kind is TargetKind.LSN else None,
        name=str(number) if kind is TargetKind.NAME else None,
        inclusive=inclusive,
    )
    start, consistent = data.draw(lsns), data.draw(st.one_of(st.none(), lsns))
    found = []
    cut = data.draw(st.integers(0, len(wal.content)))
    for whole in (True, False):
        search = TargetSearch(target, Lsn(wal.start), start, consistent)
        scanner = WalScanner(Lsn(wal.start), wal.segment_bytes)
        for piece in (wal.content[:cut], wal.content[cut:]):
            marks = scanner.feed(memoryview(piece))
            if whole:
                search.take(marks.select(WATCHED_KINDS))
            else:
                search.take_scanned(marks)
        found.append(search)
    assert found[0] == found[1]


def test_the_outline_of_many_transactions_is_short() -> None:
    wal = WalBuilder()
    for number in range(1000):
        _write(wal, 0x00, 500 - abs(number - 300), number)
    marks = WalScanner(Lsn(wal.start), wal.segment_bytes).feed(memoryview(wal.content))
    assert [m.xid for m in marks.outline(MarkKind)] == [0, 300, 999]
    late = EPOCH + timedelta(microseconds=499)
    assert [m.xid for m in marks.outline(MarkKind, not_before=late, xid=7)] == [
        0,
        6,
        7,
        8,
        298,
        299,
        300,
        301,
        302,
        999,
    ]
    assert marks.outline(MarkKind, around=[wal.lsn]) == list(marks)
    assert len(marks.outline([MarkKind.ABORT])) == 0
