"""The tar reader on what servers send and on what damage looks like."""

from __future__ import annotations

import io
import tarfile
from itertools import pairwise

import pytest

from polarvault.errors import RemoteProtocolError
from polarvault.pgfiles.tar import (
    BLOCK_BYTES,
    TERMINATOR,
    MemberBegins,
    MemberData,
    MemberEnds,
    MemberKind,
    TarReader,
    encode_header,
    encode_member,
    is_safe_name,
    normalise_name,
    parse_number,
)
from support.tar_members import read_members


def test_members_arrive_in_order_with_their_content() -> None:
    archive = encode_member("PG_VERSION", b"18\n") + encode_member("base/5/1259", b"x" * 8192) + TERMINATOR
    assert read_members([archive]) == [("PG_VERSION", "file", b"18\n"), ("base/5/1259", "file", b"x" * 8192)]


def test_directories_symlinks_and_empty_files_have_no_data() -> None:
    link = tarfile.TarInfo("pg_tblspc/16400")
    link.type, link.linkname = tarfile.SYMTYPE, "/mnt/fast"
    archive = (
        encode_header("pg_wal", 0, directory=True) + link.tobuf(tarfile.USTAR_FORMAT) + encode_member("empty", b"")
    )
    events = list(TarReader().feed([memoryview(archive)]))
    assert not any(isinstance(event, MemberData) for event in events)
    members = [event.member for event in events if isinstance(event, MemberEnds)]
    assert [(m.name, m.kind, m.link) for m in members] == [
        ("pg_wal", MemberKind.DIRECTORY, ""),
        ("pg_tblspc/16400", MemberKind.SYMLINK, "/mnt/fast"),
        ("empty", MemberKind.FILE, ""),
    ]


def test_payload_is_handed_on_without_a_copy() -> None:
    buffer = bytearray(encode_member("f", b"a" * 600))
    data = [event for event in TarReader().feed([memoryview(buffer)]) if isinstance(event, MemberData)]
    buffer[BLOCK_BYTES] = ord("b")
    assert bytes(data[0].views[0][:2]) == b"ba"


def test_offsets_count_from_the_start_of_the_member() -> None:
    archive = memoryview(encode_member("f", bytes(range(256)) * 4))
    reader = TarReader()
    offsets = [
        (event.offset, event.size)
        for start in range(0, len(archive), 300)
        for event in reader.feed([archive[start : start + 300]])
        if isinstance(event, MemberData)
    ]
    assert offsets[0][0] == 0
    assert all(first + size == second for (first, size), (second, _) in pairwise(offsets))
    assert sum(offsets[-1]) == 1024


@pytest.mark.parametrize("terminator", [b"", TERMINATOR, TERMINATOR * 9, bytes(BLOCK_BYTES)])
def test_a_terminator_may_be_missing_or_long(terminator: bytes) -> None:
    assert read_members([encode_member("f", b"1") + terminator]) == [("f", "file", b"1")]


def test_concatenated_archives_are_one() -> None:
    # pg_basebackup writes to stdout like this.
    whole = encode_member("base", b"1") + TERMINATOR + encode_member("data", b"2") + TERMINATOR
    assert [name for name, _, _ in read_members([whole])] == ["base", "data"]


def test_a_size_of_more_than_8_gib_is_understood() -> None:
    size = 9 << 30
    header = encode_header("base/5/16388", size)
    assert header[124] == 0x80, "the size does not fit into octal digits"
    (event,) = TarReader().feed([memoryview(header)])
    assert isinstance(event, MemberBegins)
    assert event.member.size == size


def test_a_large_member_streams_through_in_constant_memory() -> None:
    size = 9 << 30
    reader = TarReader()
    list(reader.feed([memoryview(encode_header("base/5/16388", size))]))
    piece = memoryview(bytes(1 << 20))
    seen = 0
    for _ in range(size // len(piece) // 64):
        seen += sum(e.size for e in reader.feed([piece] * 64) if isinstance(e, MemberData))
    assert seen == size
    reader.finish()


@pytest.mark.parametrize("name", ["a" * 99, "a" * 100, "a" * 101, "d/" * 60 + "file", "n" * 300, "ä" * 80])
def test_names_of_any_length_survive(name: str) -> None:
    assert read_members([encode_member(name, b"1") + TERMINATOR]) == [(name, "file", b"1")]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["short", "deep/" * 25 + "file"])
def test_what_other_programs_write_is_read(form: int, name: str) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=form) as writer:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime = 700, 1.5  # A fraction of a second makes pax write an extended header.
        writer.addfile(entry, io.BytesIO(b"z" * 700))
    assert read_members([output.getvalue()]) == [(name, "file", b"z" * 700)]


def test_what_we_write_is_read_by_the_standard_library() -> None:
    archive = encode_header("pg_wal", 0, directory=True, mode=0o700) + encode_member("é" * 70, b"q" * 513) + TERMINATOR
    with tarfile.open(fileobj=io.BytesIO(archive)) as reader:
        directory, file = reader.getmembers()
        assert directory.isdir()
        assert file.name == "é" * 70
        content = reader.extractfile(file)
        assert content is not None
        assert content.read() == b"q" * 513


def test_the_header_that_was_sent_can_be_written_again() -> None:
    archive = encode_member("n" * 150, b"content")
    (begins,) = [e for e in TarReader().feed([memoryview(archive)]) if isinstance(e, MemberBegins)]
    assert archive.startswith(begins.member.header)
    assert read_members([begins.member.header + b"content" + bytes(begins.member.padding)]) == read_members([archive])


def test_an_archive_that_ends_inside_a_member_is_an_error_that_names_it() -> None:
    reader = TarReader("base.tar")
    list(reader.feed([memoryview(encode_member("base/5/1259", b"x" * 8192)[:5000])]))
    with pytest.raises(RemoteProtocolError, match=r"base\.tar ends inside 'base/5/1259', 3704 bytes short"):
        reader.finish()


def test_an_archive_that_ends_inside_a_header_is_an_error() -> None:
    reader = TarReader("base.tar")
    list(reader.feed([memoryview(encode_header("f", 0)[:100])]))
    with pytest.raises(RemoteProtocolError, match="inside a member header"):
        reader.finish()


def test_a_damaged_header_is_an_error_that_names_the_position() -> None:
    archive = bytearray(encode_member("one", b"1") + encode_member("two", b"2"))
    archive[1024] ^= 1
    with pytest.raises(RemoteProtocolError, match=r"base\.tar is damaged at byte 1024: .*checksum"):
        list(TarReader("base.tar").feed([memoryview(archive)]))


def test_a_member_of_an_unknown_kind_is_refused() -> None:
    device = tarfile.TarInfo("dev/null")
    device.type = tarfile.CHRTYPE
    with pytest.raises(RemoteProtocolError, match="dev/null"):
        list(TarReader().feed([memoryview(device.tobuf(tarfile.USTAR_FORMAT))]))


def test_a_name_header_of_absurd_size_is_refused() -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with pytest.raises(RemoteProtocolError, match="claims"):
        list(TarReader().feed([memoryview(entry.tobuf(tarfile.GNU_FORMAT))]))


@pytest.mark.parametrize(
    ("field", "number"),
    [
        (b"0000644\0", 0o644),
        (b"    644 ", 0o644),
        (b"\0" * 8, 0),
        (b"\x80" + (9 << 30).to_bytes(11, "big"), 9 << 30),
        (b"77777777777 ", 8589934591),
    ],
)
def test_numbers_are_octal_or_base_256(field: bytes, number: int) -> None:
    assert parse_number(field) == number


@pytest.mark.parametrize(
    ("sent", "kept"), [("./pg_wal/archive_status/", "pg_wal/archive_status"), ("base/1/", "base/1"), ("f", "f")]
)
def test_names_lose_a_leading_dot_and_a_trailing_slash(sent: str, kept: str) -> None:
    assert normalise_name(sent) == kept


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../x",
        "base/../../x",
        "base/..",
        "file-dio:///s/pg_wal/archive_status/000000010000000000000001.done",
    ],
)
def test_a_name_that_leaves_the_target_is_unsafe(name: str) -> None:
    assert not is_safe_name(name)


@pytest.mark.parametrize("name", ["base/1/1259", "a..b", "..a", "pg_wal"])
def test_ordinary_names_are_safe(name: str) -> None:
    assert is_safe_name(name)
