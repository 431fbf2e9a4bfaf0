from __future__ import annotations

import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from polarvault.machine_code.compiling import accepted_source
from polarvault.model.lsn import Lsn
from polarvault.wal.compiled.state import Crc32cMethod
from polarvault.wal.compiled.walker import walker_source
from polarvault.wal.records import RMGR_TABLESPACE, RecordReader
from polarvault.wal.scan import MarkKind, PlainReader, WalMark, WalScanner
from support.wal_bytes import CONTINUES, OVERWRITES, TRANSACTION, XLOG, WalBuilder, make_record

NOON = datetime(2026, 1, 2, 12, 0, 0, 123456, tzinfo=UTC)
NOON_US = (NOON - datetime(2000, 1, 1, tzinfo=UTC)).days * 86_400_000_000 + 43_200_123_456
TIME = struct.pack("<q", NOON_US)


def scan(wal: WalBuilder, *, start: int | None = None, check_crc: bool = True) -> tuple[list[WalMark], WalScanner]:
    first = wal.start if start is None else start
    content = memoryview(wal.content)[first - wal.start :]
    scanner = WalScanner(Lsn(first), wal.segment_bytes, check_crc=check_crc)
    marks = list(scanner.feed(content))
    # The fallback is no different.
    plain = PlainReader(first, wal.segment_bytes, check_crc=check_crc)
    assert list(plain.feed(content)) == marks
    assert (plain.next_lsn, plain.record_count) == (scanner.next_lsn, scanner.record_count)
    assert scanner.end_reason == (None if plain.end is None else str(plain.end))
    return marks, scanner


def reason(wal: WalBuilder) -> str | None:
    return scan(wal)[1].end_reason


def only_mark(wal: WalBuilder) -> WalMark:
    (mark,), scanner = scan(wal)
    assert (scanner.next_lsn, scanner.end_reason) == (wal.lsn, None)
    assert (mark.lsn, mark.end_lsn) == wal.records[-1]
    return mark


def test_a_commit_has_its_transaction_and_its_time():
    wal = WalBuilder()
    wal.add(b"no mark")
    wal.add_main(TIME, rmgr=TRANSACTION, info=0x00, xid=42)
    mark = only_mark(wal)
    assert (mark.kind, mark.xid, mark.time) == (MarkKind.COMMIT, 42, NOON)


def test_an_abort_that_came_from_elsewhere_has_its_transaction_and_its_time():
    wal = WalBuilder()
    wal.add_main(TIME, rmgr=TRANSACTION, info=0x20, xid=43, before=b"\xfd\x01\x00\xfc\x07\x00\x00\x00")
    mark = only_mark(wal)
    assert (mark.kind, mark.xid, mark.time) == (MarkKind.ABORT, 43, NOON)


@pytest.mark.parametrize(("magic", "statistics"), [(0xD110, 12), (0xD116, 12), (0xD118, 16), (0xD122, 16)])
@pytest.mark.parametrize(("info", "invalidations"), [(0xB0, 2), (0xC0, 0)])
@pytest.mark.parametrize("named", [False, True])
def test_the_end_of_a_prepared_transaction_has_the_prepared_xid(magic, statistics, info, invalidations, named):
    flags = 1 | 2 | 4 | 16 | 256 | (8 if invalidations else 0) | (32 | 128 if named else 0)
    main = TIME + struct.pack("<III", flags, 5, 1663)
    main += struct.pack("<I3I", 3, 101, 102, 103)
    main += struct.pack("<I", 2) + bytes(24)
    main += struct.pack("<I", 3) + b"\x07" * 3 * statistics
    main += struct.pack("<I", invalidations) + bytes(16 * invalidations) if invalidations else b""
    main += struct.pack("<I", 99) + (b"a name\0" + bytes(16) if named else b"")
    wal = WalBuilder(magic=magic)
    first = wal.add(b"no mark")
    wal.add_main(main, rmgr=TRANSACTION, info=info)
    mark = only_mark(wal)
    assert (mark.kind, mark.xid) == (MarkKind.COMMIT if info == 0xB0 else MarkKind.ABORT, 99)
    # From the middle of a page on, no header tells the version.
    assert scan(wal, start=first)[0] == [mark]


def test_marks_of_the_wal_itself_have_their_fields():
    wal = WalBuilder()
    wal.add_main(struct.pack("<QII", 0x1000028, 3, 2) + bytes(72), rmgr=XLOG, info=0x00)
    wal.add_main(struct.pack("<QII", 0x1000030, 3, 3) + bytes(72), rmgr=XLOG, info=0x10)
    wal.add_main(TIME + b"before the upgrade".ljust(64, b"\0"), rmgr=XLOG, info=0x70)
    wal.add_main(TIME + struct.pack("<III", 5, 4, 1), rmgr=XLOG, info=0x90)
    wal.add_main(struct.pack("<Q", 0x1000060), rmgr=XLOG, info=0x50)
    wal.add_main(struct.pack("<6I2?", 100, 8, 10, 0, 64, 0, False, False), rmgr=XLOG, info=0x60)
    wal.add_main(b"\0", rmgr=XLOG, info=0x80)
    long_name = "/srv/" + "ü" * 100
    wal.add_main(struct.pack("<I", 16384) + long_name.encode() + b"\0", rmgr=RMGR_TABLESPACE, info=0x00)
    wal.add_main(struct.pack("<I", 16384), rmgr=RMGR_TABLESPACE, info=0x10)
    # PolarDB's own kind, and one that only 17 knows: neither is a mark.
    wal.add_main(struct.pack("<I", 13), rmgr=XLOG, info=0xF0)
    wal.add_main(struct.pack("<I", 1), rmgr=XLOG, info=0xE0)
    marks, scanner = scan(wal)
    assert scanner.next_lsn == wal.lsn
    plain = [
        (m.kind, m.time, m.name, m.timeline_id, m.previous_timeline_id, m.lsn_argument and int(m.lsn_argument))
        for m in marks
    ]
    assert plain == [
        (MarkKind.CHECKPOINT, None, "shutdown", 3, 2, 0x1000028),
        (MarkKind.CHECKPOINT, None, "online", 3, 3, 0x1000030),
        (MarkKind.RESTORE_POINT, NOON, "before the upgrade", None, None, None),
        (MarkKind.END_OF_RECOVERY, NOON, None, 5, 4, None),
        (MarkKind.BACKUP_END, None, None, None, None, 0x1000060),
        (MarkKind.PARAMETER_CHANGE, None, "minimal", None, None, None),
        (MarkKind.FULL_PAGE_WRITES_CHANGE, None, "off", None, None, None),
        (MarkKind.TABLESPACE, None, long_name, None, None, None),
    ]
    assert marks[5].hot_standby_values == (100, 8, 10, 0, 64)


def test_the_rest_of_a_switched_segment_is_passed_over():
    wal = WalBuilder()
    lsn = wal.add(rmgr=XLOG, info=0x40)
    wal.content[5000:6000] = b"rubbish".ljust(1000, b"?")
    after = wal.add_main(TIME, rmgr=TRANSACTION, info=0, xid=5)
    marks, scanner = scan(wal)
    assert [(m.kind, m.lsn, m.end_lsn) for m in marks] == [
        (MarkKind.SEGMENT_SWITCH, lsn, 2 << 20),
        (MarkKind.COMMIT, after, wal.lsn),
    ]
    assert (scanner.next_lsn, scanner.end_reason) == (wal.lsn, None)


def test_records_longer_than_a_segment_are_read():
    wal = WalBuilder()
    for size in (0, 1, 8000, 20_000, 3_000_000, 5):
        wal.add(bytes(range(256)) * (size // 256) + bytes(size % 256))
    wal.add_main(TIME, rmgr=TRANSACTION, info=0, xid=9)
    reader = RecordReader(wal.start, wal.segment_bytes)
    assert [(r.lsn, r.end_lsn) for r in reader.feed(wal.content)] == wal.records
    assert scan(wal)[0][0].xid == 9


def test_reading_begins_behind_a_record_that_began_before():
    wal = WalBuilder()
    long = wal.add(bytes(3_000_000))
    commit = wal.add_main(TIME, rmgr=TRANSACTION, info=0, xid=9)
    for segment in (2, 3):
        marks, scanner = scan(wal, start=segment << 20)
        assert [m.lsn for m in marks] == [commit]
        assert scanner.next_lsn == wal.lsn
    assert scan(wal, start=long)[0][0].lsn == commit
    assert scan(wal, start=commit)[0][0].lsn == commit


def test_a_record_that_a_crash_cut_off_and_the_server_overwrote_is_passed_over():
    wal = WalBuilder()
    before = wal.add(b"whole")
    wal.write(make_record(bytes(20_000), rmgr=10, info=0, xid=1, previous=before)[: 16_000 - len(wal.content)])
    wal.fill_page()
    assert len(wal.content) == 16_384
    wal.begin_page_if_due(OVERWRITES)
    commit = wal.add_main(TIME, rmgr=TRANSACTION, info=0, xid=9)
    marks, scanner = scan(wal)
    assert [m.lsn for m in marks] == [commit]
    assert (scanner.next_lsn, scanner.end_reason) == (wal.lsn, None)


def test_a_start_at_which_nothing_can_begin_is_refused():
    for start in (0x1000004, 0x1000008):
        with pytest.raises(ValueError, match="can begin at 0/100000"):
            WalScanner(Lsn(start), 1 << 20)
    with pytest.raises(ValueError, match="not a WAL segment size"):
        WalScanner(Lsn(0), 12345)


def finished() -> WalBuilder:
    """A page and a half of records."""
    wal = WalBuilder()
    for number in range(12):
        wal.add(bytes([number]) * 1001)
    return wal


def test_wal_ends_where_zeros_stand():
    wal = finished()
    end = wal.lsn
    wal.content += bytes(1000)
    marks, scanner = scan(wal)
    assert marks == []
    assert (scanner.next_lsn, scanner.end_reason) == (end, f"zeros at {Lsn(end)}")


def test_wal_that_just_stops_may_go_on():
    wal = finished()
    last, end = wal.records[-1]
    # Padding is all that is missing.
    del wal.content[-7:]
    assert (scan(wal)[1].next_lsn, reason(wal)) == (end, None)
    del wal.content[-1:]
    assert (scan(wal)[1].next_lsn, reason(wal)) == (last, None)


def test_wal_ends_where_a_checksum_is_wrong():
    wal = finished()
    lsn = wal.add(b"damaged", crc=0x12345678)
    _, scanner = scan(wal)
    assert scanner.next_lsn == lsn
    assert scanner.end_reason is not None
    assert f"record at {Lsn(lsn)} has a wrong checksum: 12345678 is stored" in scanner.end_reason
    assert scan(wal, check_crc=False)[1].end_reason is None


def test_wal_ends_where_the_chain_of_records_breaks():
    wal = finished()
    wal.previous = 0x100028
    lsn = wal.add(b"of another chain")
    last = wal.records[-2][0]
    assert reason(wal) == f"the record at {Lsn(lsn)} follows one at 0/100028, but the last one was at {Lsn(last)}"


def test_wal_ends_where_a_recycled_segment_has_its_old_content():
    wal = WalBuilder(segment=9)
    wal.add_up_to(10 << 20)
    old = WalBuilder(segment=3)
    old.add(b"old")
    wal.content += old.content
    _, scanner = scan(wal)
    assert scanner.next_lsn == 10 << 20
    assert scanner.end_reason == "the page at 0/A00000 is old content of a recycled segment, written for 0/300000"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("magic", 0xD116, "has magic D116"),
        ("magic", 0, "zeros at 0/200000, where a page begins"),
        ("timeline", 1, "is of timeline 1, after a page of timeline 2"),
        ("system", 78, "belongs to the system 78, not to 77"),
    ],
)
def test_wal_ends_where_a_segment_of_other_wal_begins(field, value, said):
    wal = WalBuilder(timeline=2)
    wal.add_up_to(2 << 20)
    setattr(wal, field, value)
    wal.add(b"more")
    assert said in (reason(wal) or "")


@pytest.mark.parametrize(
    ("flags", "remaining", "said"),
    [
        (0, 0, "the page at 0/102000 does not continue the record before it"),
        (CONTINUES, 5, "the page at 0/102000 continues a record with 5 bytes left, not 7872"),
        (0x40, 0, "the page at 0/102000 has flags 0040"),
    ],
)
def test_wal_ends_where_a_record_is_not_continued(flags, remaining, said):
    wal = WalBuilder()
    wal.write(make_record(bytes(16_000), rmgr=10, info=0, xid=0, previous=1)[: 8192 - 40])
    wal.add_page_header(flags, remaining)
    wal.content += bytes(100)
    _, scanner = scan(wal)
    assert said in (scanner.end_reason or "")


def test_wal_ends_where_a_page_continues_what_was_not_begun():
    wal = WalBuilder()
    wal.add_up_to(wal.start + 8192)
    wal.add_page_header(CONTINUES, 50)
    assert reason(wal) == "the page at 0/102000 continues a record, but none was begun"


@pytest.mark.parametrize(("length", "rmgr", "said"), [(23, 10, "length 23 at"), (30, 22, "manager 22")])
def test_wal_ends_where_a_record_header_makes_no_sense(length, rmgr, said):
    wal = finished()
    wal.content += struct.pack("<IIQBBxxI", length, 0, wal.previous, 0, rmgr, 0)
    assert said in (reason(wal) or "")


def test_marks_come_in_any_number_and_size():
    wal = WalBuilder()
    for xid in range(10_000):
        wal.add_main(TIME, rmgr=TRANSACTION, info=0, xid=xid)
    subtransactions = struct.pack("<II300000I", 2 | 16, 300_000, *range(300_000))
    wal.add_main(TIME + subtransactions + struct.pack("<I", 99), rmgr=TRANSACTION, info=0xB0)
    wal.add_main(TIME, rmgr=TRANSACTION, info=0, xid=5)
    marks, scanner = scan(wal)
    assert [m.xid for m in marks] == [*range(10_000), 99, 5]
    assert (scanner.next_lsn, scanner.record_count) == (wal.lsn, 10_002)


def test_marks_are_selected_by_kind_time_and_transaction():
    wal = WalBuilder()
    later = struct.pack("<q", NOON_US + 1)
    wal.add_main(TIME, rmgr=TRANSACTION, info=0x00, xid=5)
    wal.add_main(TIME + b"name".ljust(64, b"\0"), rmgr=XLOG, info=0x70)
    wal.add_main(struct.pack("<QII", 0x1000028, 1, 1), rmgr=XLOG, info=0x10)
    wal.add_main(later, rmgr=TRANSACTION, info=0x20, xid=6)
    wal.add_main(later + struct.pack("<II", 16, 5), rmgr=TRANSACTION, info=0xB0)
    marks = WalScanner(Lsn(wal.start), wal.segment_bytes).feed(memoryview(wal.content))
    commit, point, checkpoint, abort, prepared = marks
    assert marks[-1] == prepared
    assert marks[1:3] == [point, checkpoint]
    ends = (MarkKind.COMMIT, MarkKind.ABORT)
    assert marks.select(MarkKind) == list(marks)
    assert marks.select(ends) == [commit, abort, prepared]
    assert marks.select(ends, xid=5) == [commit, prepared]
    assert marks.select(MarkKind, not_before=NOON) == [commit, point, abort, prepared]
    assert marks.select(MarkKind, not_before=NOON + timedelta(microseconds=1)) == [abort, prepared]
    assert marks.select(ends, not_before=NOON + timedelta(microseconds=1), xid=6) == [abort]


def test_a_system_without_a_compiler_reads_wal_as_well():
    wal = WalBuilder()
    wal.add_main(TIME, rmgr=TRANSACTION, info=0, xid=5)
    program = (
        "import sys; sys.modules['llvmlite'] = None\n"
        "from polarvault.wal.scan import Lsn, WalScanner\n"
        f"(mark,) = WalScanner(Lsn({wal.start}), {wal.segment_bytes}).feed({bytes(wal.content)!r})\n"
        "print(mark.xid, mark.time)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (said.stderr, said.stdout) == ("", f"5 {NOON}\n")


def test_the_reader_compiles_for_arm():
    llvm = pytest.importorskip("llvmlite.binding")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError as missing:
        pytest.skip(f"this llvmlite compiles for no other CPU: {missing}")
    module = llvm.parse_assembly(accepted_source(walker_source(Crc32cMethod.ARM)))
    module.verify()
    assembly = target.create_target_machine(features="+crc").emit_assembly(module)
    assert "crc32cx" in assembly
    assert "crc32cb" in assembly
