"""The WAL in a stream does not depend on how the network cut it, and neither do the errors in it."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarvault.errors import RemoteProtocolError
from polarvault.model.lsn import Lsn
from polarvault.wire.replication import encode_status
from polarvault.wire.wal_messages import WalMessageScanner
from support import backend_messages as wire

START = Lsn(0x1_0000_0010)
ERROR = wire.error("57P01", "terminating connection due to administrator command", severity="FATAL")


def wal(first: int, payload: bytes, *, server_end: int) -> bytes:
    return wire.copy_data(struct.pack(">cQQq", b"w", first, server_end, 0) + payload)


def keepalive(server_end: int, *, reply: bool) -> bytes:
    return wire.copy_data(struct.pack(">cQq?", b"k", server_end, 0, reply))


@dataclass
class Heard:
    """What came out of a scanner, all batches together."""

    content: bytes = b""
    server_end: int = 0
    replies: int = 0
    message: tuple[bytes, bytes] | None = None
    rest: bytes = b""


def scanned(stream: bytes, cuts: list[int]) -> Heard:
    """Feed the stream in pieces, as `RawWalConnection` does: an unread rest is moved to the front of the buffer."""
    scanner, heard = WalMessageScanner(START), Heard()
    sizes = itertools.cycle(cuts)
    position, rest = 0, b""
    while position < len(stream):
        size = next(sizes)
        buffer = rest + stream[position : position + size]
        position += size
        start = 0
        while True:
            batch, start, message = scanner.scan(memoryview(buffer), start, len(buffer))
            assert batch.start == START + len(heard.content)
            assert batch.size == sum(map(len, batch.views))
            assert all(batch.views)
            heard.content += b"".join(batch.views)
            heard.server_end = max(heard.server_end, batch.server_end)
            heard.replies += batch.reply_now
            assert batch.end == scanner.position
            if message is None:
                break
            heard.message = message
        rest = buffer[start:]
        # Never more than a header or a control message: the payload itself is not carried over.
        assert len(rest) <= max(40, len(ERROR))
    heard.rest = rest
    return heard


CUTS = st.lists(st.one_of(st.integers(1, 60), st.integers(1, 5000)), min_size=1, max_size=6)
PIECES = st.lists(st.one_of(st.binary(max_size=2000), st.booleans(), st.none()), max_size=12)


def stream_of(pieces: list[bytes | bool | None]) -> tuple[bytes, bytes, int]:
    """Return a stream of WAL (bytes) and keepalives (bool: reply or not), its WAL, and how many replies it asks for."""
    stream, content = b"", b""
    for piece in pieces:
        end = START + len(content)
        if isinstance(piece, bytes):
            stream += wal(end, piece, server_end=end + len(piece) + 5)
            content += piece
        elif piece is not None:
            stream += keepalive(end + 7, reply=piece)
    return stream, content, sum(piece is True for piece in pieces)


@settings(max_examples=300)
@given(PIECES, CUTS)
def test_wal_arrives_whole_however_it_was_cut(pieces: list[bytes | bool | None], cuts: list[int]) -> None:
    stream, content, replies = stream_of(pieces)
    heard = scanned(stream, cuts)
    assert heard.content == content
    assert heard.rest == b""
    assert heard.message is None
    assert bool(heard.replies) == bool(replies)
    assert heard.server_end == (max(heard.server_end, START + len(content)) if stream else 0)
    assert heard.server_end == scanned(stream, [len(stream) or 1]).server_end


@settings(max_examples=100)
@given(PIECES, CUTS, st.sampled_from([ERROR, wire.message(b"c"), wire.message(b"N", b"SNOTICE\0Mhello\0\0")]))
def test_a_message_that_interrupts_the_wal_is_handed_out_after_it(
    pieces: list[bytes | bool | None], cuts: list[int], interruption: bytes
) -> None:
    stream, content, _ = stream_of(pieces)
    heard = scanned(stream + interruption, cuts)
    assert heard.content == content
    assert heard.message == (interruption[:1], interruption[5:])


@settings(max_examples=100)
@given(PIECES, CUTS)
def test_a_gap_in_the_stream_is_refused(pieces: list[bytes | bool | None], cuts: list[int]) -> None:
    stream, content, _ = stream_of(pieces)
    for wrong in (1, -1, 1 << 40):
        first = START + len(content) + wrong
        with pytest.raises(RemoteProtocolError, match="the WAL stream jumps from"):
            scanned(stream + wal(first, b"x" * 100, server_end=first), cuts)


@pytest.mark.parametrize(
    "nonsense",
    [
        wire.copy_data(b"w" + bytes(10)) + bytes(40),
        wire.copy_data(b"k" + bytes(3)),
        wire.copy_data(b"x" + bytes(40)),
        wire.copy_data(b""),
        b"d" + struct.pack(">I", 3) + b"k" + bytes(40),
        b"d" + struct.pack(">I", 0x7FFF_FFFF) + b"w" + bytes(24),
        b"E" + struct.pack(">I", 0x7FFF_FFFF) + bytes(40),
        b"E" + struct.pack(">I", 3) + bytes(40),
    ],
)
@pytest.mark.parametrize("cuts", [[1], [4096]], ids=["drip", "whole"])
def test_nonsense_in_the_stream_is_refused(nonsense: bytes, cuts: list[int]) -> None:
    with pytest.raises(RemoteProtocolError):
        scanned(nonsense + wire.message(b"d", bytes(100)), cuts)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.booleans())
def test_a_status_says_what_the_server_reads(written: int, flushed: int, reply: bool) -> None:
    status = encode_status(written=written, flushed=flushed, now_unix_s=946_684_801.5, reply_now=reply)
    assert struct.unpack(">cQQQq?", status) == (b"r", written, flushed, 0, 1_500_000, reply)
