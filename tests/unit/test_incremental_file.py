"""Files of incremental backups as the server sends them, cut anywhere, and as no server does."""

from __future__ import annotations

import random
import struct

import pytest

from polarvault.backup.increments import WholeFile, label_without_parent, whole_manifest
from polarvault.errors import RemoteProtocolError
from polarvault.pgfiles.incremental_file import IncrementalReader, full_name
from polarvault.pgfiles.manifest import Manifest, ManifestFile, parse_manifest

PAGE = 8192
MAGIC = 0xD3AE1F0D


def made(blocks: list[int], truncated: int, *, magic: int = MAGIC, count: int | None = None) -> bytes:
    head = struct.pack("<III", magic, len(blocks) if count is None else count, truncated)
    head += struct.pack(f"<{len(blocks)}I", *blocks)
    if blocks:
        head += bytes(-len(head) % PAGE)
    return head + b"".join(bytes([block % 251]) * PAGE for block in blocks)


def read(content: bytes, *, cut: int = 1 << 20, size: int | None = None) -> tuple[int, dict[int, bytes]]:
    reader = IncrementalReader("base/5/INCREMENTAL.1", len(content) if size is None else size, segment_blocks=131072)
    found = {}
    for at in range(0, len(content), cut):
        for block, page in reader.feed(memoryview(content)[at : at + cut]):
            found[block] = bytes(page)
    reader.end()
    assert reader.header is not None
    return reader.header.length, found


@pytest.mark.parametrize("cut", [1, 7, 4096, 8192, 8193, 1 << 20])
@pytest.mark.parametrize("blocks", [[], [0], [5], [0, 1, 2, 77], list(range(0, 2500, 2))])
def test_blocks_come_as_they_were_sent(blocks: list[int], cut: int) -> None:
    if cut < 4096:
        blocks = blocks[:3]
    length, found = read(made(blocks, 40), cut=cut)
    assert length == max([40, *(block + 1 for block in blocks)])
    assert found == {block: bytes([block % 251]) * PAGE for block in blocks}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (made([1, 2], 9, magic=1), "does not begin as one"),
        (made([2, 1], 9), "out of order"),
        (made([1, 1], 9), "out of order"),
        (made([1], 131073), "claims 131073 blocks"),
        (made([131072], 0), "claims 131073 blocks"),
        (made([1], 9, count=200_000), "claims 200000 blocks"),
        (made([1, 2], 9, count=3), "its header asks for"),
        (made([1, 2], 9)[:-1], "its header asks for"),
        (made([1, 2], 9) + b"x", "its header asks for"),
        (made([], 9)[:5], "ends too early"),
        (b"", "ends too early"),
    ],
)
def test_what_no_server_sends_is_refused(content: bytes, what: str) -> None:
    with pytest.raises(RemoteProtocolError, match=what):
        read(content)


def test_a_file_that_was_cut_is_refused() -> None:
    content = made([1, 2], 9)
    with pytest.raises(RemoteProtocolError, match="ends too early"):
        read(content[:-100], size=len(content))


def test_noise_is_refused_and_nothing_else_happens() -> None:
    chance = random.Random(7)
    for _ in range(300):
        content = bytearray(made([1, 5, 9], 20))
        for _ in range(chance.randrange(1, 4)):
            content[chance.randrange(30)] ^= 1 << chance.randrange(8)
        try:
            read(bytes(content))
        except RemoteProtocolError:
            continue


def test_names() -> None:
    assert full_name("base/5/INCREMENTAL.16384.1") == "base/5/16384.1"
    assert full_name("INCREMENTAL.x") == "x"
    assert full_name("base/INCREMENTAL.5/16384") is None
    assert full_name("base/5/16384") is None


def test_a_label_loses_the_lines_for_which_no_server_would_start() -> None:
    label = b"START WAL LOCATION: 0/2 (file x)\nLABEL: y\nINCREMENTAL FROM LSN: 0/1\nINCREMENTAL FROM TLI: 1\n"
    assert label_without_parent(label) == b"START WAL LOCATION: 0/2 (file x)\nLABEL: y\n"


def test_the_manifest_becomes_that_of_a_full_backup() -> None:
    def entry(path: str, size: int, checksum: str) -> ManifestFile:
        return ManifestFile(path, size, "2026-11-26 00:00:00 GMT", "CRC32C", checksum)

    sent = Manifest(2, [entry("base/5/INCREMENTAL.1", 12, "0a"), entry("base/5/INCREMENTAL.2", 16384, "0b"),
                        entry("PG_VERSION", 3, "0c")], [], 7)  # fmt: skip
    parent = Manifest(2, [entry("base/5/1", 81920, "01020304"), entry("base/5/2", 81920, "05060708")], [], 7)
    whole = {
        "base/5/INCREMENTAL.1": WholeFile("base/5/1", 81920, is_parents=True),
        "base/5/INCREMENTAL.2": WholeFile("base/5/2", 90112),
    }
    files = parse_manifest(whole_manifest(sent, whole, parent)).files
    assert [(one.path, one.size, one.checksum) for one in files] == [
        ("base/5/1", 81920, "01020304"), ("base/5/2", 90112, None), ("PG_VERSION", 3, "0c"),
    ]  # fmt: skip
