"""The compiled WAL reader is the plain one, only faster: for any WAL, any cut and any damage."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from datetime import UTC, datetime

import google_crc32c
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from polarvault.machine_code.compiling import CompiledModule
from polarvault.wal.compiled.crc32c import host_method
from polarvault.wal.compiled.reader import CompiledReader
from polarvault.wal.compiled.state import Crc32cMethod
from polarvault.wal.compiled.walker import walker_source
from polarvault.wal.marks import MarkKind
from polarvault.wal.scan import PlainReader
from support.wal_bytes import OVERWRITES, TRANSACTION, XLOG, WalBuilder, make_record

METHODS = sorted({host_method(), Crc32cMethod.TABLES}, key=str)
TIME = struct.pack("<q", 812345678901234)

_SIZES = st.one_of(st.integers(0, 70), st.integers(7900, 8300), st.integers(0, 30_000))
_INFOS = st.integers(0, 255)


def _plain(wal: WalBuilder, size: int, rmgr: int) -> None:
    wal.add(bytes(range(256)) * (size // 256) + bytes(size % 256), rmgr=rmgr, xid=size)


def _transaction(wal: WalBuilder, info: int, flags: int, counts: list[int]) -> None:
    main = TIME + struct.pack("<I", flags) + (bytes(8) if flags & 1 else b"")
    for count, item in zip(counts, (4, 12, 16, 16), strict=True):
        main += struct.pack("<I", count) + bytes(count * item)
    wal.add_main(main + b"\x63\0\0\0gid\0", rmgr=TRANSACTION, info=info, xid=7)


def _overwritten(wal: WalBuilder, size: int) -> None:
    """A record that a crash cut off at a page's end, and the page that the server wrote in its place."""
    wal.begin_page_if_due()
    left = 8192 - len(wal.content) % 8192
    record = make_record(bytes(left + size), rmgr=10, info=0, xid=0, previous=wal.previous)
    wal.write(record[:left])
    wal.begin_page_if_due(OVERWRITES)


_STEPS: st.SearchStrategy[Callable[[WalBuilder], object]] = st.one_of(
    st.builds(lambda size, rmgr: lambda wal: _plain(wal, size, rmgr), _SIZES, st.sampled_from([2, 10, 21, 128, 255])),
    st.builds(lambda info: lambda wal: wal.add_main(TIME, rmgr=TRANSACTION, info=info, xid=9), _INFOS),
    st.builds(
        lambda info, flags, counts: lambda wal: _transaction(wal, info, flags, counts),
        st.sampled_from([0x80, 0xA0, 0xB0, 0xC0]), st.integers(0, 511),
        st.lists(st.integers(0, 3000), min_size=4, max_size=4),
    ),
    st.builds(
        lambda main, info, before: lambda wal: wal.add_main(main, rmgr=XLOG, info=info, before=before),
        st.binary(max_size=400), _INFOS.filter(lambda info: info & 0xF0 != 0x40), st.sampled_from([b"", b"\xfd\0\0"]),
    ),
    # A right checksum says nothing about the contents.
    st.builds(
        lambda body, rmgr, info: lambda wal: wal.add(body, rmgr=rmgr, info=info),
        st.binary(max_size=60), st.sampled_from([XLOG, TRANSACTION]), _INFOS.filter(lambda info: info & 0xF0 != 0x40),
    ),
    st.builds(lambda size: lambda wal: _overwritten(wal, size), st.integers(1, 9000)),
)  # fmt: skip


@st.composite
def wals(draw: st.DrawFn) -> tuple[WalBuilder, int]:
    """WAL and where to begin: at its first byte, on a later page or at a record."""
    wal = WalBuilder(magic=draw(st.sampled_from([0xD106, 0xD110, 0xD118, 0xD122])))
    for step in draw(st.lists(_STEPS, min_size=1, max_size=25)):
        step(wal)
    if draw(st.integers(0, 9)) == 0:
        wal.add(rmgr=XLOG, info=0x40)
        for step in draw(st.lists(_STEPS, max_size=5)):
            step(wal)
    pages = len(wal.content) // 8192
    starts = [st.just(wal.start), st.integers(0, pages).map(lambda page: wal.start + page * 8192)]
    if wal.records:
        starts.append(st.sampled_from([lsn for lsn, _ in wal.records]))
    return wal, draw(st.one_of(starts))


@st.composite
def damages(draw: st.DrawFn, length: int) -> Callable[[bytearray], None]:
    """A change to WAL of a length: flipped bits, a cut, zeros to the end, or old content to the end."""
    at = draw(st.integers(0, length - 1))
    kind = draw(st.sampled_from(["none", "flip", "flip", "cut", "zeros", "old"]))
    if kind == "flip":
        flips = [(at, draw(st.integers(1, 255))), (draw(st.integers(0, length - 1)), draw(st.integers(1, 255)))]
        flips = flips[: draw(st.integers(1, 2))]

    def apply(content: bytearray) -> None:
        if kind == "flip":
            for position, bits in flips:
                content[position] ^= bits
        elif kind == "cut":
            del content[at:]
        elif kind == "zeros":
            content[at:] = bytes(length - at)
        elif kind == "old":
            content[at:] = content[: length - at]

    return apply


def pieces(content: bytes | bytearray, cuts: list[int]) -> list[bytes]:
    found, start = [], 0
    for cut in cuts:
        found.append(bytes(content[start : start + cut]))
        start += cut
    return [*found, bytes(content[start:])]


_CUTS = st.lists(st.one_of(st.integers(0, 3), st.integers(8, 50), st.integers(8180, 8260), st.integers(0, 60_000)))


def outcome(reader: PlainReader | CompiledReader, parts: list[bytes]) -> tuple[object, ...]:
    """Everything that a reader says."""
    fed = [reader.feed(part) for part in parts]
    marks = [mark for marks in fed for mark in marks]
    since = datetime(2020, 1, 1, tzinfo=UTC)
    late = [mark for marks in fed for mark in marks.select(MarkKind, not_before=since)]
    return marks, late, reader.next_lsn, reader.end, reader.record_count


@pytest.mark.parametrize("method", METHODS)
@given(data=st.data(), check_crc=st.booleans())
def test_the_compiled_reader_gives_the_plain_one_s_answer(
    method: Crc32cMethod, data: st.DataObject, check_crc: bool
) -> None:
    wal, start = data.draw(wals())
    content = wal.content[start - wal.start :]
    if content:
        data.draw(damages(len(content)))(content)
    whole = outcome(PlainReader(start, wal.segment_bytes, check_crc=check_crc), [bytes(content)])
    cut = pieces(content, data.draw(_CUTS))
    for reader in (
        CompiledReader(start, wal.segment_bytes, check_crc=check_crc, method=method),
        PlainReader(start, wal.segment_bytes, check_crc=check_crc),
    ):
        assert outcome(reader, cut) == whole


@given(wals())
def test_wal_that_is_whole_is_read_to_its_end(made: tuple[WalBuilder, int]) -> None:
    wal, start = made
    # Not on a zero page behind a segment switch.
    assume(start == wal.lsn or wal.content[start - wal.start])
    reader = CompiledReader(start, wal.segment_bytes)
    reader.feed(wal.content[start - wal.start :])
    assert reader.end is None
    after = [(lsn, end) for lsn, end in wal.records if lsn >= start]
    # The last record may lie across `start`, or its place have been overwritten.
    assert reader.record_count in (len(after), len(after) + 1)
    if after:
        assert reader.next_lsn >= after[-1][1]


@given(wals(), st.integers(0, 3000))
def test_byte_by_byte_is_no_different(made: tuple[WalBuilder, int], length: int) -> None:
    wal, start = made
    content = bytes(wal.content[start - wal.start :][:length])
    single = [content[n : n + 1] for n in range(len(content))]
    whole = outcome(PlainReader(start, wal.segment_bytes), [content])
    assert outcome(CompiledReader(start, wal.segment_bytes), single) == whole
    assert outcome(PlainReader(start, wal.segment_bytes), single) == whole


@pytest.mark.parametrize("method", METHODS)
@given(parts=st.lists(st.binary(max_size=70)))
def test_the_compiled_checksum_is_crc32c(method: Crc32cMethod, parts: list[bytes]) -> None:
    function = _crc32c_function(method)
    register = 0xFFFFFFFF
    for part in parts:
        memory = ctypes.create_string_buffer(part)
        register = function(register, ctypes.addressof(memory), len(part))
    assert register ^ 0xFFFFFFFF == google_crc32c.value(b"".join(parts))


_modules: dict[Crc32cMethod, CompiledModule] = {}


def _crc32c_function(method: Crc32cMethod) -> Callable[[int, int, int], int]:
    if method not in _modules:
        _modules[method] = CompiledModule(walker_source(method))
    return ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * 3)(_modules[method].address("crc32c"))
