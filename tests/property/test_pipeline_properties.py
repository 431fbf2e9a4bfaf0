"""What comes out does not depend on how bytes were cut, and fast ways give the slow ways' answers."""

from __future__ import annotations

import ctypes
import gzip
import io
import os
import struct
from collections.abc import Sequence

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from polarvault.model.compression import Compression
from polarvault.model.lsn import Lsn
from polarvault.pgfiles import manifest as manifests
from polarvault.pgfiles import pages
from polarvault.pgfiles.manifest import Manifest, ManifestFile, ManifestRange
from polarvault.pipeline.byte_sinks import Buffer, compressed
from polarvault.wire.copy_scanner import Control, CopyScanner, DataRun

CUTS = st.lists(st.integers(1, 40), min_size=1, max_size=20)
DATA = st.binary(max_size=60).map(lambda content: b"d" + content)
CONTROL = st.sampled_from([b"nbase.tar\0\0", b"m", b"p" + bytes(8)])


def copy_data(body: bytes) -> bytes:
    return b"d" + struct.pack(">I", len(body) + 4) + body


def scanned(stream: bytes, cuts: Sequence[int]) -> tuple[list[tuple[str, bytes]], bytes]:
    """Scan as the transport does, with buffers of the given sizes; return kinds and contents, and the rest."""
    scanner = CopyScanner(typed=True)
    found: list[tuple[str, bytes]] = []
    rest, position, turn = b"", 0, 0
    while True:
        size = cuts[turn % len(cuts)]
        turn += 1
        buffer = rest + stream[position : position + size]
        position += size
        pieces, start, ended = scanner.scan(memoryview(buffer), 0, len(buffer))
        rest = buffer[start:]
        for piece in pieces:
            if isinstance(piece, Control):
                found.append((("copy " if piece.is_copy else "") + piece.kind.decode(), piece.body))
            else:
                assert isinstance(piece, DataRun)
                content = b"".join(piece.views)
                if found and found[-1][0] == "data":
                    found[-1] = ("data", found[-1][1] + content)
                elif content:
                    found.append(("data", content))
        if ended:
            return found, rest + stream[position:]
        assert position < len(stream) + max(cuts), "the scanner did not see the end of the copy"


@given(st.lists(DATA | CONTROL, max_size=12), CUTS)
def test_copy_messages_do_not_depend_on_how_the_bytes_were_cut(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(copy_data, bodies)) + b"c\0\0\0\4" + b"Z\0\0\0\5I"
    assert scanned(stream, cuts) == scanned(stream, [len(stream)])
    found, rest = scanned(stream, cuts)
    assert b"".join(content for kind, content in found if kind == "data") == b"".join(
        body[1:] for body in bodies if body[:1] == b"d"
    )
    assert rest == b"Z\0\0\0\5I"


class Collected:
    """A byte sink that remembers."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.finished = False

    def write(self, views: Sequence[Buffer]) -> None:
        for view in views:
            self.content += view

    def write_zeros(self, count: int) -> None:
        self.content += bytes(count)

    def finish(self) -> None:
        self.finished = True


def decompressed(algorithm: str, content: bytes) -> bytes:
    if algorithm == "gzip":
        return gzip.decompress(content)
    if algorithm == "lz4":
        return lz4.frame.open(io.BytesIO(content)).read() if content else b""
    return zstandard.ZstdDecompressor().decompressobj().decompress(content)


@pytest.mark.parametrize("algorithm", ["gzip", "lz4", "zstd"])
@given(
    pieces=st.lists(st.integers(0, 700_000), max_size=4),
    zeros=st.integers(0, 1_200_000),
    level=st.sampled_from([None, 1, 6]),
    workers=st.integers(1, 3),
)
def test_what_is_compressed_in_chunks_is_one_ordinary_file(
    algorithm: str, pieces: list[int], zeros: int, level: int | None, workers: int
) -> None:
    below = Collected()
    sink = compressed(below, Compression(algorithm, "client", level, workers))
    plain = [os.urandom(size // 2) + bytes(size - size // 2) for size in pieces]
    sink.write(plain)
    sink.write_zeros(zeros)
    sink.finish()
    assert below.finished
    assert decompressed(algorithm, bytes(below.content)) == b"".join(plain) + bytes(zeros)


def wrong_pages(kernel: pages.Kernel, content: bytes, first_block: int, per_run: int = 1, gap: int = 0) -> list[int]:
    """Lay the pages out in runs with gaps between them, as message headers lie in a receive buffer."""
    count, run_bytes = len(content) // 8192, per_run * 8192
    laid_out = b"".join(content[at : at + run_bytes] + b"\xaa" * gap for at in range(0, len(content), run_bytes))
    raw = ctypes.create_string_buffer(laid_out, len(laid_out))
    bad = (ctypes.c_int64 * 16)()
    found = kernel(ctypes.addressof(raw), count, first_block, per_run, run_bytes + gap, ctypes.addressof(bad), 16)
    return list(bad[:found])


@given(
    st.integers(0, 2**31),
    st.lists(st.sampled_from(["right", "wrong", "new", "cleared"]), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_every_page_kernel_gives_the_reference_s_answer(first_block: int, kinds: list[str], per_run: int) -> None:
    content = bytearray()
    for number, kind in enumerate(kinds):
        if kind == "new":
            content += bytes(8192)
            continue
        page = bytearray(os.urandom(8192))
        # Without pd_upper a page looks new; the rest of its header says that it is not.
        page[14:16] = b"\0\0" if kind == "cleared" else b"\0\x10"
        stored = pages.page_checksum(page, first_block + number)
        page[8:10] = struct.pack("<H", stored if kind == "right" else stored ^ 1)
        content += page
    expected = [number for number, kind in enumerate(kinds) if kind in ("wrong", "cleared")]
    assert wrong_pages(pages.load_kernel(), bytes(content), first_block, per_run, 6) == expected
    assert wrong_pages(pages.numpy_kernel, bytes(content), first_block, per_run, 6) == expected


PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
ENTRIES = st.builds(
    lambda path, size, algorithm, encoded: ManifestFile(
        path, size, "2026-01-01 00:00:00 GMT", algorithm, "00ff" if algorithm else None, encoded
    ),
    PATHS, st.integers(0, 2**40), st.sampled_from([None, "CRC32C", "SHA256"]), st.booleans(),
)  # fmt: skip


@given(st.lists(ENTRIES, max_size=6), st.none() | st.integers(1, 2**63))
def test_a_manifest_survives_encoding_and_parsing(entries: list[ManifestFile], system_identifier: int | None) -> None:
    ranges = [ManifestRange(1, Lsn(0x2000028), Lsn(0x2000100))]
    original = Manifest(1 if system_identifier is None else 2, entries, ranges, system_identifier)
    assert manifests.parse_manifest(manifests.encode_manifest(original)) == original


@given(
    st.lists(PATHS.filter(lambda path: "://" not in path), unique=True, max_size=6),
    st.lists(PATHS.filter(lambda path: "://" not in path), unique=True, max_size=6),
)
def test_a_manifest_of_two_halves_is_split_where_they_meet(local: list[str], shared: list[str]) -> None:
    entries = [ManifestFile(path, 1, "", None, None) for path in [*local, *shared]]
    # A shared file that the local half has as well, sent right after it, is the case that only order can decide.
    first, second = manifests.split_by_half(Manifest(1, entries, []), local, shared)
    assert [entry.path for entry in first] == local
    assert [entry.path for entry in second] == shared
