"""The tar reader does not depend on how the bytes were cut, and never takes damage for data."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from polarvault.errors import RemoteProtocolError
from polarvault.pgfiles.tar import TERMINATOR, TarReader, encode_header, encode_member
from support.tar_members import read_members

_LETTERS = st.characters(codec="utf-8", exclude_characters="\0/")
_NAMES = st.lists(
    st.text(_LETTERS, min_size=1, max_size=60).filter(lambda part: part not in (".", "..")), min_size=1, max_size=5
).map("/".join)
_FILES = st.tuples(_NAMES, st.binary(max_size=3000))


@st.composite
def archives(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, str, bytes]]]:
    """An archive and what it holds; directories are members whose content is None."""
    content, held = b"", []
    for name, body in draw(st.lists(_FILES, min_size=1, max_size=6)):
        if draw(st.booleans()):
            content += encode_member(name, body)
            held.append((name, "file", body))
        else:
            content += encode_header(name, 0, directory=True)
            held.append((name, "directory", b""))
    return content + draw(st.sampled_from([b"", TERMINATOR, TERMINATOR * 3])), held


def pieces(content: bytes, cuts: list[int]) -> list[bytes]:
    """Cut the content after each count of bytes in turn; the rest is one piece."""
    found, start = [], 0
    for cut in cuts:
        found.append(content[start : start + cut])
        start += cut
    return [*found, content[start:]]


_CUTS = st.lists(st.one_of(st.integers(0, 3), st.integers(500, 520), st.integers(0, 5000)), max_size=40)


@given(archives(), _CUTS)
def test_the_result_does_not_depend_on_how_the_bytes_were_cut(
    archive: tuple[bytes, list[tuple[str, str, bytes]]], cuts: list[int]
) -> None:
    content, held = archive
    assert read_members(pieces(content, cuts)) == held


@given(archives())
def test_byte_by_byte_is_no_different(archive: tuple[bytes, list[tuple[str, str, bytes]]]) -> None:
    content, held = archive
    assert read_members([content[n : n + 1] for n in range(len(content))]) == held


@given(archives(), _CUTS)
def test_several_buffers_in_one_call_are_no_different(
    archive: tuple[bytes, list[tuple[str, str, bytes]]], cuts: list[int]
) -> None:
    content, held = archive
    reader = TarReader()
    ends = [
        e.member.name for e in reader.feed(map(memoryview, pieces(content, cuts))) if type(e).__name__ == "MemberEnds"
    ]
    reader.finish()
    assert ends == [name for name, _, _ in held]


@given(archives(), st.data())
def test_a_cut_off_archive_is_an_error_or_ends_between_members(
    archive: tuple[bytes, list[tuple[str, str, bytes]]], data: st.DataObject
) -> None:
    content, held = archive
    end = data.draw(st.integers(0, len(content)))
    with suppress(RemoteProtocolError):
        found = read_members([content[:end]])
        assert found == held[: len(found)]


@given(st.binary(max_size=4000), _CUTS)
def test_any_bytes_at_all_give_events_or_a_protocol_error(content: bytes, cuts: list[int]) -> None:
    with suppress(RemoteProtocolError):
        read_members(pieces(content, cuts))


@given(archives(), st.data())
def test_one_flipped_bit_in_a_header_is_noticed(
    archive: tuple[bytes, list[tuple[str, str, bytes]]], data: st.DataObject
) -> None:
    content, held = archive
    damaged = bytearray(content)
    # The first block is always a header.
    position, bit = data.draw(st.integers(0, 511)), data.draw(st.integers(0, 7))
    damaged[position] ^= 1 << bit
    with suppress(RemoteProtocolError):
        # The two bytes after the checksum's digits do not count in any tar reader.
        assert read_members([bytes(damaged)]) == held
