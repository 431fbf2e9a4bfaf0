"""A base backup taken with libpq alone, as plain values: what a server really sends, seen by somebody else's client.

libpq's blocking calls hold Python's lock, so a server in the same process could never answer: this runs in a child.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from psycopg import pq

Taken = tuple[list[tuple[bytes | None, ...]], dict[str, bytes], bytes]
_BASE_BACKUP = b"BASE_BACKUP (LABEL 'shape', PROGRESS, CHECKPOINT 'fast', WAIT 0, MANIFEST 'yes', TARGET 'client')"


def take(conninfo: str) -> Taken:
    """Return the tablespace rows, the archives by name, and the manifest."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_take, conninfo).result(60)


def _take(conninfo: str) -> Taken:
    connection = pq.PGconn.connect(f"{conninfo} replication=true".encode())
    assert connection.status == pq.ConnStatus.OK, connection.get_error_message()
    connection.send_query(_BASE_BACKUP)
    start, tablespaces = connection.get_result(), connection.get_result()
    assert start is not None
    assert tablespaces is not None
    assert start.status == tablespaces.status == pq.ExecStatus.TUPLES_OK, start.error_message
    rows = [
        tuple(tablespaces.get_value(row, column) for column in range(tablespaces.nfields))
        for row in range(tablespaces.ntuples)
    ]
    copy = connection.get_result()
    assert copy is not None
    assert copy.status == pq.ExecStatus.COPY_OUT
    archives: dict[str, bytearray] = {}
    manifest = bytearray()
    sink = manifest
    while True:
        size, content = connection.get_copy_data(0)
        if size == -1:
            break
        kind, body = bytes(content[:1]), bytes(content[1:])
        if kind == b"n":
            sink = archives.setdefault(body.split(b"\0")[0].decode(), bytearray())
        elif kind == b"m":
            sink = manifest
        elif kind == b"d":
            sink += body
    stop = connection.get_result()
    assert stop is not None
    assert stop.status == pq.ExecStatus.TUPLES_OK
    connection.finish()
    return rows, {name: bytes(content) for name, content in archives.items()}, bytes(manifest)
