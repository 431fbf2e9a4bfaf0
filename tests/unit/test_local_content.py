"""One file of the data directory as it is read: torn, shortened, divided, cloned."""

from __future__ import annotations

import hashlib
import os
import struct

import google_crc32c
import pytest

from polarvault.pgfiles.pages import PAGE_BYTES, page_checksum
from polarvault.pipeline.page_check import PageJudge
from polarvault.taking.local.content import PageReader, Reading, SourceFile

PATH = "base/5/16384"
START_LSN = 1 << 32


def made_page(block: int, *, lsn: int = 0, seed: bytes = b"x") -> bytes:
    """Return a page with its right checksum."""
    body = bytearray(seed * PAGE_BYTES)[:PAGE_BYTES]
    body[:24] = struct.pack("<IIHHHHHHI", lsn >> 32, lsn & 0xFFFFFFFF, 0, 0, 28, 8192, 8192, 0x2004, 0)
    body[8:10] = struct.pack("<H", page_checksum(bytes(body), block))
    return bytes(body)


class ChangingFile:
    """A file of which some reads see something else first."""

    def __init__(self, content: bytes, first_reads: dict[int, list[bytes]] | None = None) -> None:
        self.content = content
        self.first_reads = first_reads or {}
        self.is_closed = False

    def size(self) -> int:
        return len(self.content)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        got = bytearray(self.content[offset : offset + len(buffer)])
        for at, versions in self.first_reads.items():
            if versions and offset <= at < offset + len(got):
                got[at - offset : at - offset + PAGE_BYTES] = versions.pop(0)
        buffer[: len(got)] = got
        return len(got)

    def close(self) -> None:
        self.is_closed = True


def reading(algorithm: str | None = "CRC32C", *, pages: bool = True) -> Reading:
    judge = PageJudge(start_lsn=START_LSN, wal_repairs_torn_pages=True)
    reader = PageReader(judge, relation_segment_bytes=1 << 30) if pages else None
    return Reading(algorithm, reader, lambda count: None, lambda: None)


def read(
    file: ChangingFile, how: Reading, *, size: int | None = None, parts: int = 1
) -> tuple[bytes, list[str | None]]:
    """Read a file in parts, the last one first; return its bytes and what it was told to be."""
    told: list[str | None] = []
    size = file.size() if size is None else size
    content = SourceFile(file, how, path=PATH, shown=PATH, size=size, ended=told.append)
    step = size // parts // PAGE_BYTES * PAGE_BYTES or max(size, 1)
    buffer = memoryview(bytearray(size))
    for start in reversed(range(0, size, step)):
        length = min(step, size - start)
        content.part(start, length).read_into(buffer[start : start + length])
    assert file.is_closed
    assert not how.opened
    return bytes(buffer), told


def crc_of(content: bytes) -> str:
    return int(google_crc32c.value(content)).to_bytes(4, "little").hex()


WHOLE = b"".join(made_page(block) for block in range(8))


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_the_checksum_is_that_of_the_whole_whatever_the_parts(parts: int) -> None:
    content, told = read(ChangingFile(WHOLE), how := reading(), parts=parts)
    assert (content, told) == (WHOLE, [crc_of(WHOLE)])
    assert how.pages is not None
    assert how.pages.judge.findings.checked_pages == 8


def test_other_checksums_see_the_bytes_in_order() -> None:
    _, told = read(ChangingFile(WHOLE), reading("SHA256"))
    assert told == [hashlib.sha256(WHOLE).hexdigest()]


@pytest.mark.parametrize("algorithm", ["CRC32C", "SHA256", None])
def test_an_empty_file_is_complete_at_once(algorithm: str | None) -> None:
    _, told = read(ChangingFile(b""), reading(algorithm))
    assert told == [{"CRC32C": "00000000", "SHA256": hashlib.sha256().hexdigest(), None: None}[algorithm]]


def test_a_torn_page_is_read_again_until_it_is_right() -> None:
    torn = made_page(3, seed=b"y")[:4096] + made_page(3)[4096:]
    file = ChangingFile(WHOLE, {3 * PAGE_BYTES: [torn, torn, torn]})
    content, told = read(file, how := reading())
    assert content == WHOLE
    assert told == [crc_of(WHOLE)]
    assert how.pages is not None
    assert not how.pages.judge.findings.suspects


@pytest.mark.parametrize(("lsn", "is_damage"), [(START_LSN - 1, True), (START_LSN + 1, False)])
def test_a_page_that_stays_wrong_is_judged(lsn: int, *, is_damage: bool) -> None:
    wrong = bytearray(made_page(5, lsn=lsn))
    wrong[-1] ^= 1
    damaged = WHOLE[: 5 * PAGE_BYTES] + bytes(wrong) + WHOLE[6 * PAGE_BYTES :]
    content, _ = read(ChangingFile(damaged), how := reading(), parts=2)
    assert content == damaged
    assert how.pages is not None
    findings = how.pages.judge.findings
    assert [(path, page.block) for path, page in findings.suspects] == [(PATH, 5)]
    assert [(bad.path, bad.count) for bad in findings.bad_files] == ([(PATH, 1)] if is_damage else [])
    assert findings.repaired_by_wal == (0 if is_damage else 1)


def test_what_a_file_has_lost_reads_as_zeros() -> None:
    content, told = read(ChangingFile(WHOLE[: 3 * PAGE_BYTES + 100]), how := reading(), size=len(WHOLE))
    expected = WHOLE[: 3 * PAGE_BYTES + 100].ljust(len(WHOLE), b"\0")
    assert content == expected
    assert told == [crc_of(expected)]
    assert how.pages is not None


def test_what_a_file_has_grown_by_is_not_seen() -> None:
    content, told = read(ChangingFile(WHOLE + b"more"), reading(), size=len(WHOLE))
    assert content == WHOLE
    assert told == [crc_of(WHOLE)]


def test_only_what_nobody_has_to_see_is_cloned() -> None:
    class WithDescriptor(ChangingFile):
        descriptor = os.open("/dev/null", os.O_RDONLY)

    def may(how: Reading) -> bool:
        file = SourceFile(WithDescriptor(WHOLE), how, path=PATH, shown=PATH, size=len(WHOLE), ended=lambda _: None)
        return file.clone_source() is not None

    assert [may(reading(None, pages=False)), may(reading(None)), may(reading(pages=False))] == [True, False, False]
    os.close(WithDescriptor.descriptor)
