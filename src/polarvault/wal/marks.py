"""Marks: the WAL records that recovery targets and plans look at, decoded when they are looked at.

Layouts (server: access/xact.h, access/xlog_internal.h, catalog/pg_control.h) are the same in all versions as far as
they are read here, but for what `polarvault.model.versions.RecordLayout` has. The main data of every kind of mark
begins with a 64-bit word: a time in microseconds since 2000-01-01 UTC, or an LSN.
"""

from __future__ import annotations

import functools
import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import overload

from polarvault.model import versions
from polarvault.model.lsn import Lsn
from polarvault.wal.records import RMGR_INFO_MASK, RMGR_TABLESPACE, RMGR_TRANSACTION, RMGR_XLOG, Record, find_main_data


class MarkKind(Enum):
    """What a mark says; online and shutdown checkpoints are told apart by `WalMark.name`."""

    COMMIT = "commit"
    ABORT = "abort"
    RESTORE_POINT = "restore point"
    CHECKPOINT = "checkpoint"
    END_OF_RECOVERY = "end of recovery"
    BACKUP_END = "end of backup"
    SEGMENT_SWITCH = "segment switch"
    PARAMETER_CHANGE = "parameter change"
    FULL_PAGE_WRITES_CHANGE = "full_page_writes change"
    TABLESPACE = "create tablespace"


@dataclass(frozen=True, slots=True)
class WalMark:
    """One mark; a field that its kind does not have is None (xid: 0).

    lsn is the record's first byte, what recovery_target_lsn is compared with; end_lsn is where the next record is
    looked for, the server's "end LSN" (a page boundary, or for a segment switch the next segment's start).
    """

    kind: MarkKind
    lsn: Lsn
    end_lsn: Lsn
    # COMMIT, ABORT: the transaction that ends, also if another session ends a prepared one.
    xid: int = 0
    # COMMIT, ABORT, RESTORE_POINT, END_OF_RECOVERY; aware, UTC.
    time: datetime | None = None
    # RESTORE_POINT: its name; CHECKPOINT: "online" or "shutdown"; PARAMETER_CHANGE: the new wal_level;
    # FULL_PAGE_WRITES_CHANGE: "on" or "off"; TABLESPACE: its directory.
    name: str | None = None
    # CHECKPOINT, END_OF_RECOVERY: the timeline from here on, and the one before.
    timeline_id: int | None = None
    previous_timeline_id: int | None = None
    # CHECKPOINT: the redo LSN; BACKUP_END: the backup's start LSN.
    lsn_argument: Lsn | None = None
    # PARAMETER_CHANGE: the new values of HOT_STANDBY_SETTINGS, in that order.
    hot_standby_values: tuple[int, ...] = ()


TIMED_KINDS = (MarkKind.COMMIT, MarkKind.ABORT, MarkKind.RESTORE_POINT, MarkKind.END_OF_RECOVERY)

ENTRY_BYTES = 64
ENTRY_WORDS = ENTRY_BYTES // 8
_LSN, _END_LSN, _FIRST_WORD, _XID, _CODE = range(5)

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
# In the order in which the record has them.
HOT_STANDBY_SETTINGS = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)
_WAL_LEVELS = ("minimal", "replica", "logical")
_CHECKPOINT_SHUTDOWN, _CHECKPOINT_ONLINE = 0x00, 0x10
XLOG_KINDS = {
    _CHECKPOINT_SHUTDOWN: MarkKind.CHECKPOINT,
    _CHECKPOINT_ONLINE: MarkKind.CHECKPOINT,
    0x40: MarkKind.SEGMENT_SWITCH,
    0x50: MarkKind.BACKUP_END,
    0x60: MarkKind.PARAMETER_CHANGE,
    0x70: MarkKind.RESTORE_POINT,
    0x80: MarkKind.FULL_PAGE_WRITES_CHANGE,
    0x90: MarkKind.END_OF_RECOVERY,
}
# Directories made and dropped; the lowest bits of both are the WAL's own.
TABLESPACE_KINDS = {0x00: MarkKind.TABLESPACE}
_COMMIT, _ABORT, _COMMIT_PREPARED, _ABORT_PREPARED = 0x00, 0x20, 0x30, 0x40
TRANSACTION_KINDS = {
    _COMMIT: MarkKind.COMMIT,
    _COMMIT_PREPARED: MarkKind.COMMIT,
    _ABORT: MarkKind.ABORT,
    _ABORT_PREPARED: MarkKind.ABORT,
}
# The topmost bit of a transaction record's info says that flags follow the time.
TRANSACTION_MASK, HAS_FLAGS = 0x70, 0x80
HAS_DATABASE, HAS_SUBTRANSACTIONS, HAS_RELATIONS, _HAS_INVALIDATIONS = 1, 2, 4, 8
_STATISTICS_SIZES = sorted({version.records.dropped_statistics_bytes for version in versions.VERSIONS.values()})
_HAS_PREPARED, _HAS_ORIGIN, _HAS_NAME, _HAS_DROPPED_STATISTICS = 16, 32, 128, 256

# All fields lie in the first bytes, but for the name of a directory, and for the xid of a prepared transaction, which
# stands behind all lists. It is not looked for behind more than 16 MB, which four million subtransactions would fill.
SMALL_BODY_BYTES, PREPARED_BODY_BYTES = 128, 1 << 24
# Headers of 33 blocks with images.
BLOCK_HEADERS_BYTES = 1024


def kind_of(rmgr: int, info: int) -> MarkKind | None:
    """Return which mark a record is, None for most records."""
    if rmgr == RMGR_TRANSACTION:
        return TRANSACTION_KINDS.get(info & TRANSACTION_MASK)
    if rmgr == RMGR_TABLESPACE:
        return TABLESPACE_KINDS.get(info & RMGR_INFO_MASK)
    return XLOG_KINDS.get(info & RMGR_INFO_MASK) if rmgr == RMGR_XLOG else None


def wanted_bytes(rmgr: int, info: int, *, with_blocks: bool = False) -> int:
    """Return how much of a record's body its mark, or its blocks, are decoded from; 0 for a record that is no mark."""
    if with_blocks:
        return PREPARED_BODY_BYTES if rmgr == RMGR_TRANSACTION else BLOCK_HEADERS_BYTES
    if kind_of(rmgr, info) is None:
        return 0
    return PREPARED_BODY_BYTES if is_prepared(rmgr, info) or rmgr == RMGR_TABLESPACE else SMALL_BODY_BYTES


def is_prepared(rmgr: int, info: int) -> bool:
    """Tell whether the record ends a prepared transaction."""
    return rmgr == RMGR_TRANSACTION and info & TRANSACTION_MASK in (_COMMIT_PREPARED, _ABORT_PREPARED)


def time_of(microseconds: int) -> datetime | None:
    """Convert a server timestamp; None for one outside Python's calendar, which only damage can cause."""
    try:
        return _EPOCH + timedelta(0, 0, microseconds)
    except OverflowError:
        return None


def timestamp_of(time: datetime) -> int:
    """Convert an aware time to the server's microseconds."""
    return (time - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class MarkRecord:
    """A record that is a mark, not decoded yet; the body is as long as `wanted_bytes` says, or shorter."""

    lsn: int
    end_lsn: int
    xid: int
    rmgr: int
    info: int
    magic: int
    body: bytes

    def decode(self) -> WalMark:
        """Return the mark; fields that a malformed body does not have are None (it has a wrong checksum, too)."""
        kind = kind_of(self.rmgr, self.info)
        if kind is None:
            raise ValueError(f"the record at {Lsn(self.lsn)} is no mark")
        try:
            at, length = find_main_data(self.body, self.magic)
            # The body may be cut: lengths then reach past its end.
            return self._decode(kind, self.body[at : at + length])
        except (ValueError, struct.error):
            return self._mark(kind)

    def _mark(self, kind: MarkKind, **fields: object) -> WalMark:
        return WalMark(kind, Lsn(self.lsn), Lsn(self.end_lsn), **fields)  # type: ignore[arg-type]

    def _decode(self, kind: MarkKind, main: bytes) -> WalMark:
        match kind:
            case MarkKind.COMMIT | MarkKind.ABORT:
                xid = self.xid
                if is_prepared(self.rmgr, self.info):
                    xid = prepared_xid(main, self.info, self.magic)
                return self._mark(kind, xid=xid, time=_time_at(main, 0))
            case MarkKind.RESTORE_POINT:
                name = main[8:72].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
                return self._mark(kind, time=_time_at(main, 0), name=name)
            case MarkKind.CHECKPOINT:
                redo, timeline_id, previous = struct.unpack_from("<QII", main)
                online = self.info & RMGR_INFO_MASK == _CHECKPOINT_ONLINE
                return self._mark(
                    kind, name="online" if online else "shutdown", lsn_argument=Lsn(redo),
                    timeline_id=timeline_id, previous_timeline_id=previous,
                )  # fmt: skip
            case MarkKind.END_OF_RECOVERY:
                timeline_id, previous = struct.unpack_from("<II", main, 8)
                return self._mark(kind, time=_time_at(main, 0), timeline_id=timeline_id, previous_timeline_id=previous)
            case MarkKind.BACKUP_END:
                return self._mark(kind, lsn_argument=Lsn(struct.unpack_from("<Q", main)[0]))
            case MarkKind.PARAMETER_CHANGE:
                *values, level = struct.unpack_from("<5iI", main)
                wal_level = _WAL_LEVELS[level] if level < len(_WAL_LEVELS) else None
                return self._mark(kind, name=wal_level, hot_standby_values=tuple(values))
            case MarkKind.TABLESPACE:
                # Behind its OID; empty for one inside the data directory (allow_in_place_tablespaces).
                return self._mark(kind, name=os.fsdecode(main[4:].split(b"\0", 1)[0]))
            case MarkKind.FULL_PAGE_WRITES_CHANGE:
                return self._mark(kind, name="on" if main[:1] != b"\0" else "off")
            case MarkKind.SEGMENT_SWITCH:
                return self._mark(kind)


def _time_at(main: bytes, offset: int) -> datetime | None:
    return time_of(struct.unpack_from("<q", main, offset)[0])


def prepared_xid(main: bytes, info: int, magic: int) -> int:
    """Return the xid of the prepared transaction that a COMMIT PREPARED or ABORT PREPARED record ends.

    The record's own xid is that of the session's transaction, which is none. Raises struct.error when the data ends
    before it.
    """
    if not info & HAS_FLAGS:
        return 0
    (flags,) = struct.unpack_from("<I", main, 8)
    if not flags & _HAS_PREPARED:
        return 0
    # Before the first page header the version is not known: then the size is right with which the record ends where
    # its data end.
    sizes = (versions.record_layout(magic).dropped_statistics_bytes,) if magic else _STATISTICS_SIZES
    candidates = [_prepared_xid_at(main, info, flags, size) for size in sizes]
    return next((xid for xid, fits in candidates if fits), candidates[0][0])


def _prepared_xid_at(main: bytes, info: int, flags: int, statistics_bytes: int) -> tuple[int, bool]:
    """Return the xid if dropped statistics have a size, and whether the data end where they then should."""
    is_commit = info & TRANSACTION_MASK == _COMMIT_PREPARED
    at = 12 + (8 if flags & HAS_DATABASE else 0)
    for flag, item_bytes in (
        (HAS_SUBTRANSACTIONS, 4),
        (HAS_RELATIONS, 12),
        (_HAS_DROPPED_STATISTICS, statistics_bytes),
        (_HAS_INVALIDATIONS if is_commit else 0, 16),
    ):
        if flags & flag:
            at += 4 + struct.unpack_from("<I", main, at)[0] * item_bytes
    if at + 4 > len(main):
        return 0, False
    (xid,) = struct.unpack_from("<I", main, at)
    at += 4
    if flags & _HAS_NAME:
        at = main.find(b"\0", at) + 1
    if flags & _HAS_ORIGIN:
        at += 16
    return xid, at == len(main)


class Marks(Sequence[WalMark]):
    """Marks in the order of the WAL, decoded on access: that takes Python longer than a reader needs to find them.

    They come as entries of eight 64-bit words: LSN, end LSN, the first 8 bytes of the main data, xid, info and resource
    manager (16 bits), page magic and above its 16 bits the record's length, and offset and length of the record's body
    (as much as there is of it) in `bodies`. Other records may be among them (`polarvault.wal.blocks`).
    """

    def __init__(self, entries: bytes | bytearray, bodies: bytes | bytearray) -> None:
        self.words = memoryview(entries).cast("q")
        self.bodies = bodies

    @classmethod
    def of_records(cls, records: Iterable[Record], *, with_blocks: bool = False) -> Marks:
        """Return those records that are marks, or all of them."""
        entries, bodies = array("q"), bytearray()
        for record in records:
            if with_blocks or kind_of(record.rmgr, record.info) is not None:
                code = record.rmgr << 8 | record.info
                magic = record.magic | record.total_bytes << 16
                entries.extend((record.lsn, record.end_lsn, _first_word(record), record.xid, code, magic))
                entries.extend((len(bodies), len(record.body)))
                bodies += record.body
        return cls(entries.tobytes(), bodies)

    def __len__(self) -> int:
        return len(self.words) // ENTRY_WORDS

    @overload
    def __getitem__(self, index: int) -> WalMark: ...
    @overload
    def __getitem__(self, index: slice) -> list[WalMark]: ...
    def __getitem__(self, index: int | slice) -> WalMark | list[WalMark]:
        numbers = range(len(self))[index]
        return self._decode(numbers) if isinstance(numbers, int) else [self._decode(number) for number in numbers]

    def __iter__(self) -> Iterator[WalMark]:
        return map(self._decode, range(len(self)))

    def select(
        self, kinds: Iterable[MarkKind], *, not_before: datetime | None = None, xid: int | None = None
    ) -> list[WalMark]:
        """Return the marks of some kinds, only those that have this time or a later one, only those of one transaction.

        What is passed over is not decoded: a million marks take 0.1 s.
        """
        is_asked = _codes_of(frozenset(kinds))
        codes = self._column(_CODE)
        if not_before is not None:
            since = timestamp_of(not_before)
            is_asked = is_asked & _codes_of(frozenset(TIMED_KINDS))
            numbers = [n for n, (code, time) in enumerate(zip(codes, self._column(_FIRST_WORD), strict=True))
                       if time >= since and code in is_asked]  # fmt: skip
        else:
            numbers = [n for n, code in enumerate(codes) if code in is_asked]
        if xid is not None:
            xids = self._column(_XID)
            numbers = [n for n in numbers if xids[n] == xid or is_prepared(codes[n] >> 8, codes[n] & 0xFF)]
        return [mark for mark in map(self._decode, numbers) if xid in (None, mark.xid)]

    def outline(
        self,
        kinds: Iterable[MarkKind],
        *,
        not_before: datetime | None = None,
        xid: int | None = None,
        around: Iterable[int] = (),
    ) -> list[WalMark]:
        """Return the marks of some kinds, but of a run of commits and aborts only the first, the last and the latest.

        Those that have the time or a later one, and those of the transaction, are all there. All marks are returned
        when an LSN of `around` lies among them. To see which transactions there are takes a million of them 0.2 s, to
        decode them 3 s.
        """
        if not len(self):
            return []
        first, last = self.words[_LSN], self.words[_END_LSN - ENTRY_WORDS]
        if any(first <= lsn <= last for lsn in around):
            return self.select(kinds)
        since = None if not_before is None else timestamp_of(not_before)
        is_asked, is_plain_end = _codes_of(frozenset(kinds)), _plain_ends()
        numbers: list[int] = []
        run: _Run | None = None
        columns = zip(self._column(_CODE), self._column(_FIRST_WORD), self._column(_XID), strict=True)
        for number, (code, time, its_xid) in enumerate(columns):
            if code not in is_asked:
                continue
            if code in is_plain_end and (since is None or time < since) and its_xid != xid:
                run = run or _Run(number, number, number, time)
                run.last = number
                if time > run.latest_time:
                    run.latest, run.latest_time = number, time
                continue
            numbers += [*(run.numbers() if run else ()), number]
            run = None
        return [self._decode(number) for number in [*numbers, *(run.numbers() if run else ())]]

    def earliest_end(self) -> WalMark | None:
        """Return the commit or abort with the earliest time, of those that are no prepared transaction's."""
        plain = _plain_ends()
        columns = zip(self._column(_CODE), self._column(_FIRST_WORD), strict=True)
        times = [(time, number) for number, (code, time) in enumerate(columns) if code in plain]
        return self._decode(min(times)[1]) if times else None

    def _column(self, word: int) -> list[int]:
        return self.words[word::ENTRY_WORDS].tolist()

    def _decode(self, number: int) -> WalMark:
        first = number * ENTRY_WORDS
        lsn, end_lsn, word, xid, code, magic, at, length = self.words[first : first + ENTRY_WORDS].tolist()
        kind = _plain_ends().get(code)
        if kind is not None and word:
            # Nearly all marks; this is three times as fast as looking into the body, which holds no more.
            return WalMark(kind, Lsn(lsn), Lsn(end_lsn), xid, time_of(word))
        body = bytes(self.bodies[at : at + length])
        return MarkRecord(lsn, end_lsn, xid, code >> 8, code & 0xFF, magic & 0xFFFF, body).decode()


@dataclass(slots=True)
class _Run:
    """Marks of transactions, one after the other, by their numbers."""

    first: int
    last: int
    latest: int
    latest_time: int

    def numbers(self) -> list[int]:
        return sorted({self.first, self.last, self.latest})


@functools.cache
def _plain_ends() -> dict[int, MarkKind]:
    """Return the kinds of commits and aborts of transactions that were not prepared, by resource manager and info."""
    codes = _codes_of(frozenset({MarkKind.COMMIT, MarkKind.ABORT}))
    return {
        code: TRANSACTION_KINDS[code & TRANSACTION_MASK] for code in codes if not is_prepared(code >> 8, code & 0xFF)
    }


@functools.cache
def _codes_of(kinds: frozenset[MarkKind]) -> frozenset[int]:
    """Return the values of resource manager and info that the kinds have."""
    codes = range((RMGR_TABLESPACE + 1) << 8)
    return frozenset(code for code in codes if kind_of(code >> 8, code & 0xFF) in kinds)


def _first_word(record: Record) -> int:
    """Return the first 8 bytes of the main data, signed, or 0 if there are fewer."""
    try:
        at, _ = find_main_data(record.body, record.magic)
        return int(struct.unpack_from("<q", record.body, at)[0])
    except (ValueError, struct.error):
        return 0
