"""What a connection delivers does not depend on how the network cut it, and its last words are heard."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarvault.errors import ConnectionLost, ServerError
from polarvault.server.raw_connection import CopyBegins
from polarvault.server.transport import RawTransport
from polarvault.wire.copy_scanner import DataRun
from polarvault.wire.messages import ResultSet
from support import backend_messages as wire


def received(stream: bytes, cuts: list[int], *, typed: bool) -> tuple[ResultSet, bytes, list[str], Exception | None]:
    """Send the stream in pieces, then close; return rows, copied data, notices and what ended it."""
    near, far = socket.socketpair()
    notices: list[str] = []

    def send() -> None:
        position, turn = 0, 0
        with far:
            while position < len(stream):
                size = cuts[turn % len(cuts)]
                far.sendall(stream[position : position + size])
                position, turn = position + size, turn + 1

    sender = threading.Thread(target=send)
    with near:
        connection = cast("Any", SimpleNamespace(pgconn=SimpleNamespace(socket=near.fileno())))
        transport = RawTransport(connection, lambda notice: notices.append(notice.message))
        sender.start()
        rows, content, problem = ResultSet(), b"", None
        try:
            first = transport.next_result()
            assert isinstance(first, ResultSet)
            rows = first
            assert isinstance(transport.next_result(), CopyBegins)
            for block in transport.blocks(typed=typed):
                for piece in block.pieces:
                    if isinstance(piece, DataRun):
                        content += b"".join(piece.views)
                block.release()
            while transport.next_result() is not None:
                pass
        except (ServerError, ConnectionLost) as failure:
            problem = failure
        sender.join()
        transport.interrupt()
        transport._socket.close()
    return rows, content, notices, problem


CUTS = st.lists(st.integers(1, 50), min_size=1, max_size=8)
PAYLOADS = st.lists(st.binary(max_size=80), max_size=10)
NOTICE = wire.message(b"N", b"SWARNING\0VWARNING\0C01000\0Mlook out\0\0")


def stream_of(payloads: list[bytes], *, typed: bool, end: bytes) -> bytes:
    return (
        wire.result([("recptr", wire.TEXT_OID)], [["0/2000028"]])
        + wire.message(b"H", b"\0\0\0")
        + NOTICE
        + b"".join(wire.copy_data((b"d" if typed else b"") + payload) for payload in payloads)
        + end
    )


@settings(max_examples=60)
@given(PAYLOADS, CUTS, st.booleans())
def test_a_copy_arrives_whole_however_it_was_cut(payloads: list[bytes], cuts: list[int], typed: bool) -> None:
    end = wire.message(b"c") + wire.message(b"C", b"COPY\0") + wire.READY
    rows, content, notices, problem = received(stream_of(payloads, typed=typed, end=end), cuts, typed=typed)
    assert rows.rows == [("0/2000028",)]
    assert content == b"".join(payloads)
    assert notices == ["look out"]
    assert problem is None


@settings(max_examples=40)
@given(PAYLOADS, CUTS)
def test_the_error_before_the_end_of_a_connection_is_heard(payloads: list[bytes], cuts: list[int]) -> None:
    end = wire.error("57P01", "terminating connection due to administrator command", severity="FATAL")
    _, content, _, problem = received(stream_of(payloads, typed=False, end=end), cuts, typed=False)
    assert content == b"".join(payloads)
    assert isinstance(problem, ServerError)
    assert "administrator command" in problem.message


@pytest.mark.parametrize("missing", [1, 4, 40])
def test_a_connection_that_ends_without_a_word_is_lost(missing: int) -> None:
    stream = stream_of([b"x" * 80], typed=True, end=b"")[:-missing]
    _, _, _, problem = received(stream, [50], typed=True)
    assert isinstance(problem, ConnectionLost)
