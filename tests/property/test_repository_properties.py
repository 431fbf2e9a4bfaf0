"""The bytes of repositories: what is written is read back; what is not, is refused and never a traceback."""

from __future__ import annotations

import contextlib
import random
from datetime import UTC, datetime

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarvault.errors import IntegrityError, ObjectDamaged
from polarvault.repository.format import columns, names
from polarvault.repository.format.chunks import PIECE_PAGES, ChunkKind, ChunkRef
from polarvault.repository.format.envelope import Encoder, decode, unencoded
from polarvault.repository.format.packs import PackedChunk, encode_footer, parse_footer
from polarvault.repository.index import sums
from polarvault.repository.index.files import FileKind, FileRow, cut_rows, encode_files, parse_files
from polarvault.repository.index.root import FilesChunk, Part, PartArea, encode_root, parse_root
from polarvault.repository.index.tables import (
    Overlay,
    ParsedTable,
    Piece,
    Table,
    encode_patch,
    encode_table,
    newest_pages,
    page_runs,
)
from polarvault.repository.writing.work import merge_overlays

LABELS = ["20261125T224401Z-k3f9", "20261126T000000Z-0000"]
refs = st.builds(
    ChunkRef,
    st.sampled_from(LABELS),
    st.integers(0, 999_999),
    st.integers(0, 65_535),
    st.integers(48, (1 << 32) - 1),
    st.integers(1, 4 << 20),
    st.integers(0, 4 << 20),
    st.binary(min_size=32, max_size=32),
)
bitmaps = st.integers(1, (1 << PIECE_PAGES) - 1)


@st.composite
def overlays(draw: st.DrawFn) -> Overlay:
    bitmap = draw(bitmaps)
    return Overlay(draw(refs), bitmap, draw(st.integers(0, PIECE_PAGES - bitmap.bit_count())))


pieces = st.builds(Piece, refs, st.binary(min_size=16, max_size=16), st.lists(overlays(), max_size=7).map(tuple))
tables = st.builds(Table, st.lists(pieces, min_size=1, max_size=40), st.lists(refs, min_size=1, max_size=8).map(tuple))


@given(st.lists(st.integers(0, 2**64 - 1)), st.sampled_from([1, 2, 4, 8]), st.integers(1, 31))
def test_columns_come_back(numbers: list[int], size: int, number: int) -> None:
    column = numpy.array([value % (1 << 8 * size) for value in numbers], f"<u{size}")
    wide = numpy.frombuffer(bytes(32 * len(numbers)), numpy.uint8).reshape(len(numbers), 32)
    found = columns.Columns(columns.encode({number: column, 40: wide}), "x")
    assert found.numbers(number, size, len(numbers)).tolist() == column.tolist()
    assert found.bytes_of(40, 32, len(numbers)).tobytes() == wide.tobytes()


@given(tables)
@settings(max_examples=60)
def test_whole_tables_come_back(table: Table) -> None:
    parsed = ParsedTable(memoryview(encode_table(table)), "x")
    assert parsed.below is None
    assert parsed.whole() == table


@given(tables, tables, refs, st.data())
@settings(max_examples=80)
def test_a_patch_makes_the_same_table(whole: Table, other: Table, ref: ChunkRef, data: st.DataObject) -> None:
    chosen = [
        data.draw(st.sampled_from([old, Piece(old.base, new.hash, new.overlays), new]))
        for old, new in zip(whole.pieces, other.pieces, strict=False)
    ]
    table = Table(chosen + whole.pieces[len(chosen) : len(chosen) + data.draw(st.integers(0, 40))], other.sums)
    patch = encode_patch(table, ref, whole)
    if patch is not None:
        parsed = ParsedTable(memoryview(patch), "x")
        assert parsed.below == ref
        assert parsed.over(whole) == table


@given(bitmaps, st.lists(bitmaps, max_size=7), st.integers(1, PIECE_PAGES))
def test_overlays_are_merged_so_that_every_page_stays_the_newest(changed: int, earlier: list[int], pages: int) -> None:
    everything = (1 << pages) - 1
    changed &= everything
    ref = ChunkRef(LABELS[0], 0, 0, 48, 1, 1, bytes(32))
    old = tuple(Overlay(ref, bitmap, 0) for bitmap in earlier)
    needed, kept = merge_overlays(old, changed, everything)
    assert needed & changed == changed
    assert len(kept) + 1 <= 7
    # Who shows each page, before and after: the parent's overlay by position, "new", or the base.
    for page in range(pages):
        before = next((n for n in reversed(range(len(old))) if old[n].bitmap >> page & 1), "base")
        after = next((o for o in reversed(kept) if o.bitmap >> page & 1), None)
        if not needed >> page & 1:
            assert (old[before] if before != "base" else None) is after


@given(st.lists(overlays(), max_size=7), st.integers(1, PIECE_PAGES))
def test_every_page_is_in_exactly_one_place(found: list[Overlay], pages: int) -> None:
    left, taken = newest_pages(Piece(ChunkRef(LABELS[0], 0, 0, 48, 1, 1, bytes(32)), bytes(16), tuple(found)), pages)
    places = [left, *(bitmap for _, bitmap in taken)]
    assert sum(places) == (1 << pages) - 1
    assert sum(bitmap.bit_count() for bitmap in places) == pages
    for overlay, bitmap in taken:
        runs = page_runs(overlay.bitmap, bitmap, overlay.first)
        listed = [(page + n, place + n) for page, place, count in runs for n in range(count)]
        of_chunk = [page for page in range(PIECE_PAGES) if overlay.bitmap >> page & 1]
        assert listed == [(page, overlay.first + n) for n, page in enumerate(of_chunk) if bitmap >> page & 1]


@given(st.binary(min_size=16, max_size=16 * 200), st.lists(st.integers(0, 10_000), max_size=30))
def test_patches_of_sums_add_up(content: bytes, changes: list[int]) -> None:
    first = numpy.frombuffer(content[: len(content) // 16 * 16], numpy.uint8).reshape(-1, 16)
    chunks = [(memoryview(sums.encode_sums(first)), "x")]
    now = first
    for change in changes[:7]:
        now = numpy.concatenate([now.copy(), now[: change % 3]])
        now[change % len(now)] ^= 1
        patch = sums.encode_patch(now, sums.parse_sums(chunks, len(now))[: len(now) - change % 3])
        chunks = [*chunks, (memoryview(patch), "x")] if patch else [(memoryview(sums.encode_sums(now)), "x")]
        assert sums.parse_sums(chunks, len(now)).tobytes() == now.tobytes()
    assert sums.parse_sums(chunks, 3).shape == (3, 16)


@st.composite
def rows(draw: st.DrawFn) -> list[FileRow]:
    word = st.binary(min_size=1, max_size=20).filter(lambda text: b"\0" not in text and b"/" not in text)
    paths = draw(st.sets(word.filter(lambda text: text not in (b".", b"..")), max_size=20))
    found = []
    for path in sorted(paths):
        kind = draw(st.sampled_from(FileKind))
        size = draw(st.sampled_from([0, 1, 65_536, 65_537, 1 << 30, (1 << 30) + 1])) if kind is FileKind.FILE else 0
        mtime = draw(st.integers(-(1 << 63), (1 << 63) - 1))
        link = draw(word) if kind is FileKind.SYMLINK else b""
        if 0 < size <= 65_536:
            bundle = ChunkRef(LABELS[1], 1, 2, 99, 100, 1 << 20, draw(st.binary(min_size=32, max_size=32)))
            digest = draw(st.binary(min_size=16, max_size=16))
            found.append(
                FileRow(1, path, kind, 0o600, size, mtime, link, bundle, draw(st.integers(0, 900_000)), digest)
            )
        else:
            own = tuple(draw(refs) for _ in range(-(-size // (1 << 30))))
            found.append(FileRow(1, path, kind, 0o600, size, mtime, link, tables=own))
    return found


@given(rows())
@settings(max_examples=60)
def test_files_come_back(listed: list[FileRow]) -> None:
    assert parse_files(memoryview(encode_files(listed)), "x") == listed


def test_a_new_file_changes_one_chunk_of_rows() -> None:
    listed = [FileRow(0, b"base/5/%07d" % number, FileKind.FILE, 0o600, 0, 0) for number in range(50_000)]
    more = sorted([*listed, FileRow(0, b"base/5/0025000x", FileKind.FILE, 0o600, 0, 0)], key=lambda row: row.key)
    before = [encode_files(chunk) for chunk in cut_rows(iter(listed))]
    after = [encode_files(chunk) for chunk in cut_rows(iter(more))]
    assert 20 < len(before) < 200
    assert len(set(after) - set(before)) <= 2


@given(st.lists(st.tuples(refs, st.integers(0, 8192)), max_size=20), st.integers(0, 0xFFFFFFFF))
def test_roots_come_back(listed: list[tuple[ChunkRef, int]], oid: int) -> None:
    parts = (Part(PartArea.SHARED), Part(PartArea.TABLESPACE, oid, "/srv/\N{SNOWMAN}"))
    files = tuple(FilesChunk(ref, count) for ref, count in listed)
    root = parse_root(memoryview(encode_root(parts, files)), "x")
    assert (root.parts, root.files) == (parts, files)


@given(st.lists(st.tuples(st.sampled_from(ChunkKind), st.integers(1, 99), st.binary(min_size=32, max_size=32))))
def test_footers_come_back_and_leave_no_gap(listed: list[tuple[ChunkKind, int, bytes]]) -> None:
    chunks, at = [], 48
    for kind, size, digest in listed:
        chunks.append(PackedChunk(kind, at, size, size, digest))
        at += size
    content = memoryview(encode_footer(chunks))
    assert parse_footer("x", content, count=len(chunks), end=at) == chunks
    with pytest.raises(ObjectDamaged):
        parse_footer("x", content, count=len(chunks), end=at + 1)


@given(st.binary(max_size=5000), st.integers(-5, 22))
def test_envelopes_come_back_and_are_bounded(raw: bytes, level: int) -> None:
    for content in (Encoder(level).encode(raw), unencoded(raw)):
        assert decode(content, most_bytes=len(raw), what="x") == raw
        if raw:
            with pytest.raises(ObjectDamaged):
                decode(content, most_bytes=len(raw) - 1, what="x")


PARSERS = [
    lambda content: ParsedTable(content, "x").whole(),
    lambda content: parse_files(content, "x"),
    lambda content: parse_root(content, "x"),
    lambda content: sums.parse_sums([(content, "x")], 100),
    lambda content: parse_footer("x", content, count=2, end=200),
    lambda content: decode(content, most_bytes=1000, what="x"),
]


@given(st.integers(0, len(PARSERS) - 1), st.binary(max_size=200))
def test_anything_is_parsed_or_refused(parser: int, content: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        PARSERS[parser](memoryview(content))


@given(tables, rows(), st.integers(0, 2**32))
@settings(max_examples=100)
def test_what_was_changed_on_the_way_is_parsed_or_refused(table: Table, listed: list[FileRow], seed: int) -> None:
    chance = random.Random(seed)
    for parser, content in ((0, encode_table(table)), (1, encode_files(listed)), (3, encode_files(listed))):
        changed = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            if changed:
                changed[chance.randrange(min(len(changed), chance.choice([8, 60, 100_000])))] = chance.randrange(256)
        try:
            PARSERS[parser](memoryview(bytes(changed)))
        except IntegrityError:
            continue


@given(st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)), st.binary(min_size=4, max_size=4))
def test_labels_tell_the_time_they_were_made(moment: datetime, letters: bytes) -> None:
    started = moment.replace(tzinfo=UTC, microsecond=0)
    label = names.make_label(started, lambda length: letters)
    assert names.is_label(label)
    assert names.label_time(label) == started
    assert not any(map(names.is_label, (label[:-1], label + "x", label.lower(), "../" + label, label + "\n")))
