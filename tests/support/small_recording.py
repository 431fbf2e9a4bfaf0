"""What a real server answered to a base backup and a WAL stream, made small: the seed of hostile answers.

Recorded from PostgreSQL 18 with 1 MB segments, a tablespace, and one promotion behind it; of the data directory only a
few files are kept, with a manifest of just those. Record anew: ``cd tests && python -m support.small_recording``.
"""

from __future__ import annotations

import base64
import io
import json
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import zstandard

from polarvault.model.lsn import Lsn
from polarvault.pgfiles.manifest import Manifest, ManifestRange, encode_manifest, entry_for, parse_manifest
from support import backend_messages as wire

PATH = Path(__file__).parents[1] / "fixtures" / "small_backup.json.zst"
_KEPT_FILE_BYTES = 16 << 10
# Of each directory.
_KEPT_RELATIONS = 2
_NEEDED = ("backup_label", "PG_VERSION", "global/pg_control", "postgresql.auto.conf", "pg_xact/0000")
# Where the recorded tablespace is said to be; nothing is ever made there.
LOCATION = "/nonexistent/pv/tablespace_one"


@dataclass(frozen=True, slots=True)
class Recording:
    """Rows as the server sent them; archives by name in order, wal from the first byte of the start's segment on."""

    parameters: dict[str, str]
    settings: dict[str, str]
    identity: list[str | None]
    start: list[str]
    stop: list[str]
    tablespaces: list[list[str | None]]
    archives: dict[str, bytes]
    manifest: bytes
    history: bytes
    wal: bytes
    wal_start: int

    @property
    def timeline(self) -> int:
        return int(self.start[1])


@cache
def load_recording() -> Recording:
    fields = json.loads(zstandard.ZstdDecompressor().decompress(PATH.read_bytes()))
    for name in ("manifest", "history", "wal"):
        fields[name] = base64.b64decode(fields[name])
    fields["archives"] = {name: base64.b64decode(content) for name, content in fields["archives"].items()}
    return Recording(**fields)


def base_backup_answer(recording: Recording, *, before_15: bool = False) -> list[tuple[bytes, bytes]]:
    """Return the messages of a whole answer to BASE_BACKUP, to be changed and encoded."""
    messages = [*_rows(["recptr", "tli"], [recording.start]), *_rows(["spcoid", "spclocation", "size"],
                                                                     recording.tablespaces)]  # fmt: skip
    copy = (b"H", b"\0\0\0")
    if before_15:
        for content in recording.archives.values():
            messages += [copy, *((b"d", piece) for piece in _pieces(content)), (b"c", b"")]
        messages += [copy, *((b"d", piece) for piece in _pieces(recording.manifest)), (b"c", b"")]
    else:
        messages.append(copy)
        done = 0
        for name, content in recording.archives.items():
            messages.append((b"d", b"n" + name.encode() + b"\0\0"))
            for piece in _pieces(content):
                messages.append((b"d", b"d" + piece))
                done += len(piece)
            messages.append((b"d", b"p" + done.to_bytes(8, "big")))
        messages += [(b"d", b"m"), *((b"d", b"d" + piece) for piece in _pieces(recording.manifest)), (b"c", b"")]
    return [*messages, *_rows(["recptr", "tli"], [recording.stop]), (b"C", b"BASE_BACKUP\0"), (b"Z", b"I")]


def wal_answer(recording: Recording, start: int, *, piece_bytes: int = 32 << 10) -> list[tuple[bytes, bytes]]:
    """Return the messages of a WAL stream from an LSN on, without its end."""
    end = recording.wal_start + len(recording.wal)
    messages = [(b"W", b"\0\0\0")]
    for at in range(start, end, piece_bytes):
        payload = recording.wal[at - recording.wal_start : at - recording.wal_start + piece_bytes]
        head = at.to_bytes(8, "big") + end.to_bytes(8, "big") + bytes(8)
        messages.append((b"d", b"w" + head + payload))
    return [*messages, (b"d", b"k" + end.to_bytes(8, "big") + bytes(8) + b"\0")]


def encode(messages: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(wire.message(kind, body) for kind, body in messages)


def _rows(names: list[str], rows: list[list[str | None]] | list[list[str]]) -> list[tuple[bytes, bytes]]:
    raw = wire.result([(name, wire.TEXT_OID) for name in names], rows)
    found, at = [], 0
    while at < len(raw):
        length = int.from_bytes(raw[at + 1 : at + 5], "big")
        found.append((raw[at : at + 1], raw[at + 5 : at + 1 + length]))
        at += 1 + length
    return found


def _pieces(content: bytes) -> list[bytes]:
    return [content[at : at + 8192] for at in range(0, len(content), 8192)]


def _shrunk(archive: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Return an archive with a few of its files only, and their contents."""
    kept: dict[str, bytes] = {}
    small = io.BytesIO()
    relations: Counter[str] = Counter()
    with tarfile.open(fileobj=io.BytesIO(archive)) as reading, tarfile.open(fileobj=small, mode="w") as writing:
        for member in reading:
            if member.issym():
                member.linkname = LOCATION
            if not member.isfile():
                writing.addfile(member)
                continue
            directory, _, last = member.name.rpartition("/")
            is_relation = last.isdigit() and "pg_multixact" not in directory and 0 < member.size <= _KEPT_FILE_BYTES
            is_needed = member.name in _NEEDED or "pg_multixact" in directory or last == "PG_VERSION"
            if not is_needed and not (is_relation and relations[directory] < _KEPT_RELATIONS):
                continue
            relations[directory] += is_relation
            source = reading.extractfile(member)
            assert source is not None
            kept[member.name] = source.read()
            writing.addfile(member, io.BytesIO(kept[member.name]))
    return small.getvalue(), kept


def with_tablespace_map(recording: Recording) -> Recording:
    """Return what a server sends that was asked for TABLESPACE_MAP: a file in place of the links."""
    oid = next(row[0] for row in recording.tablespaces if row[0])
    content = f"{oid} {LOCATION}\n".encode()
    archive = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(recording.archives["base.tar"])) as reading,
        tarfile.open(fileobj=archive, mode="w") as writing,
    ):
        entry = tarfile.TarInfo("tablespace_map")
        entry.size, entry.mode = len(content), 0o600
        writing.addfile(entry, io.BytesIO(content))
        for member in reading:
            if not member.issym():
                writing.addfile(member, reading.extractfile(member) if member.isfile() else None)
    parsed = parse_manifest(recording.manifest)
    added = entry_for("tablespace_map", content, last_modified="2026-01-01 00:00:00 GMT", algorithm="CRC32C")
    return replace(
        recording,
        archives=recording.archives | {"base.tar": archive.getvalue()},
        manifest=encode_manifest(replace(parsed, files=[*parsed.files, added])),
    )


def record() -> None:
    """Take the recording from a server that is made for it."""
    from support.cluster import Cluster
    from support.servers import found_installations

    directory = Path(tempfile.mkdtemp(prefix="pv-record-", dir="/tmp"))
    directory.chmod(0o755)
    cluster = Cluster.made(found_installations()[18], directory / "server", wal_segment_mb=1, fill=False)
    try:
        cluster.add_tablespace("one", rows=10)
        cluster.stop()
        (cluster.data / "standby.signal").touch()
        cluster.account.own(cluster.data / "standby.signal")
        cluster.start()
        cluster.promote()
        cluster.query("CHECKPOINT")
        fields = _take(cluster.tcp_conninfo())
        end = Lsn.parse(fields["stop"][0])
        cluster.query("SELECT pg_switch_wal()")
        start = Lsn.parse(fields["start"][0]) >> 20 << 20
        segments = [
            f"{int(fields['start'][1]):08X}{0:08X}{number:08X}" for number in range(start >> 20, (end >> 20) + 1)
        ]
        assert end < 1 << 32
        fields["wal"] = base64.b64encode(
            b"".join((cluster.data / "pg_wal" / name).read_bytes() for name in segments)
        ).decode()
        fields["wal_start"] = start
        fields["history"] = base64.b64encode((cluster.data / "pg_wal" / "00000002.history").read_bytes()).decode()
    finally:
        cluster.remove()
    PATH.write_bytes(zstandard.ZstdCompressor(level=19).compress(json.dumps(fields).encode()))
    print(f"{PATH}: {PATH.stat().st_size} bytes, {len(segments)} segments")


def _take(conninfo: str) -> dict[str, object]:
    from psycopg import pq

    connection = pq.PGconn.connect(f"{conninfo} replication=true".encode())
    assert connection.status == pq.ConnStatus.OK, connection.get_error_message()

    def row(sql: str) -> list[str | None]:
        result = connection.exec_(sql.encode())
        values = [result.get_value(0, column) for column in range(result.nfields)]
        return [None if value is None else value.decode() for value in values]

    names = ("wal_segment_size", "segment_size", "block_size", "data_checksums", "full_page_writes", "log_directory",
             "data_directory_mode")  # fmt: skip
    fields: dict[str, object] = {
        "parameters": {
            "server_version": "18.0", "in_hot_standby": "off", "client_encoding": "UTF8", "server_encoding": "UTF8",
            "standard_conforming_strings": "on", "integer_datetimes": "on", "DateStyle": "ISO, MDY", "TimeZone": "UTC",
        },
        "settings": {name: row(f"SHOW {name}")[0] for name in names},
        "identity": row("IDENTIFY_SYSTEM"),
    }  # fmt: skip
    connection.send_query(
        b"BASE_BACKUP (LABEL 'x', PROGRESS, CHECKPOINT 'fast', WAIT 0, MANIFEST 'yes', TARGET 'client')"
    )
    results = [connection.get_result() for _ in range(2)]
    start, spaces = results
    assert start is not None
    assert spaces is not None
    fields["start"] = [start.get_value(0, column).decode() for column in range(2)]
    rows = [[spaces.get_value(number, column) for column in range(3)] for number in range(spaces.ntuples)]
    fields["tablespaces"] = [
        [oid and oid.decode(), LOCATION if oid else None, size and size.decode()] for oid, _, size in rows
    ]
    connection.get_result()
    archives: dict[str, bytearray] = {}
    sink = bytearray()
    while (found := connection.get_copy_data(0))[0] != -1:
        content = bytes(found[1])
        if content[:1] == b"n":
            sink = archives.setdefault(content[1:].split(b"\0")[0].decode(), bytearray())
        elif content[:1] == b"m":
            sink = bytearray()
        elif content[:1] == b"d":
            sink += content[1:]
    stop = connection.get_result()
    assert stop is not None
    fields["stop"] = [stop.get_value(0, column).decode() for column in range(2)]
    connection.finish()
    small: dict[str, str] = {}
    entries = []
    for name, archive in archives.items():
        content, kept = _shrunk(bytes(archive))
        small[name] = base64.b64encode(content).decode()
        prefix = "" if name == "base.tar" else f"pg_tblspc/{name.removesuffix('.tar')}/"
        entries += [
            entry_for(prefix + path, body, last_modified="2026-01-01 00:00:00 GMT", algorithm="CRC32C")
            for path, body in kept.items()
        ]
    fields["archives"] = small
    ranges = [ManifestRange(int(fields["stop"][1]), Lsn.parse(fields["start"][0]), Lsn.parse(fields["stop"][0]))]
    system = int(fields["identity"][0])  # type: ignore[index]
    manifest = encode_manifest(Manifest(2, entries, ranges, system))
    fields["manifest"] = base64.b64encode(manifest).decode()
    return fields


if __name__ == "__main__":
    record()
