"""A PostgreSQL 15 whose base backup comes in PolarDB's shape: two halves, base.tar and data.tar.

A man in the middle: everything is handed on except what PolarDB answers otherwise: a few SHOWs, and BASE_BACKUP. There
the tablespace list gets a fourth column and one more row, the one archive is split as PolarDB lays its files out (the
server's own tar is kept in a temporary file until it is complete, because the halves follow one another), and the
manifest is written anew: local entries, then shared ones, with the same path twice and no mark of which is which.

What is restored from such a backup with both halves merged is an ordinary PostgreSQL 15 once the polar_ settings are
dropped. The attributes of `Shape` turn on the oddities that real servers show.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import struct
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO, Self

import google_crc32c

from support import backend_messages as wire

SHARED_DIRECTORY = "/polarvault/shared"
_BUFFER_BYTES = 32768
_TERMINATOR = bytes(1024)
_BASE_BACKUP = re.compile(r"\s*BASE_BACKUP\b", re.IGNORECASE)
_SHOW = re.compile(r"\s*SHOW\s+([\w.]+)\s*;?\s*\Z", re.IGNORECASE)
# The local half keeps caches of these, so their files are in both halves.
_CACHED = ("pg_xact/", "pg_multixact/")
_SHARED_ONLY = ("pg_wal", "pg_twophase")
_SHARED_FILES = ("base/", "global/", "pg_commit_ts/", "pg_twophase/", "pg_tblspc/", "pg_replslot/", "pg_wal/", *_CACHED)


def _settings() -> dict[str, str]:
    return {
        "polar_enable_shared_storage_mode": "on",
        "polar_datadir": f"file-dio://{SHARED_DIRECTORY}",
        "polar_version": "2.0.15.2.0",
        "polar_disk_name": "home",
        "polar_hostid": "1",
        "polar_storage_cluster_name": "disk",
    }


@dataclass(slots=True)
class Shape:
    """How the server behaves; change it at any time, it holds from the next command on."""

    settings: dict[str, str] = field(default_factory=_settings)
    # Regular expressions of simple queries, and the whole answer to give instead of asking the server.
    answers: dict[str, bytes] = field(default_factory=dict)
    terminated_base: bool = True
    protocol_in_member_name: bool = False
    base_256_sizes: bool = False
    in_hot_standby: bool = False
    # Lines added to postgresql.conf in the backup, as a PolarDB's configuration has them.
    configuration: str = (
        f"\npolar_enable_shared_storage_mode = on\npolar_datadir = 'file-dio://{SHARED_DIRECTORY}' # the live one\n"
        "polar_disk_name = 'home'\npolar_vfs.localfs_mode = on\n"
    )

    def become_replica(self) -> None:
        """Look like a read-only node."""
        self.in_hot_standby = True
        self.answers["pg_is_in_recovery"] = wire.text_result([["t"]], ["pg_is_in_recovery"])
        self.answers["polar_node_type"] = wire.text_result([["replica"]], ["polar_node_type"])


class TwoArchiveProxy:
    """Listens on 127.0.0.1:`port`; use it with `with`."""

    def __init__(self, server_port: int, *, shape: Shape | None = None) -> None:
        self.shape = shape or Shape()
        self.commands: list[str] = []
        self.checkpoint_done = threading.Event()
        self.checkpoint_done.set()
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._relays: list[_Relay] = []
        self._accepting = threading.Thread(target=self._accept, name="two-archive accept", daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hold_checkpoint(self) -> None:
        """Let the next base backup wait for its checkpoint until `checkpoint_done` is set."""
        # The server behind has finished long since; this is what it would say of a backup that waits.
        self.shape.answers["wait_event FROM pg_stat_activity"] = wire.text_result([["CheckpointStart"]], ["wait_event"])
        self.checkpoint_done.clear()

    def close(self) -> None:
        """Close the port and every connection."""
        self.checkpoint_done.set()
        # A thread blocked in accept is woken by shutdown only.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for relay in self._relays:
            relay.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            relay = _Relay(self, client, socket.create_connection(("127.0.0.1", self._server_port)))
            self._relays.append(relay)
            relay.start()


class _Relay:
    """One client's connection: a thread for each direction."""

    def __init__(self, proxy: TwoArchiveProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._from_client: BinaryIO = client.makefile("rb")
        self._from_server: BinaryIO = server.makefile("rb")
        # Set before the command is handed on; the server says nothing of its own accord in between.
        self._backing_up = False
        self._threads = [
            threading.Thread(target=self._guard, args=[self._relay_requests], name="requests", daemon=True),
            threading.Thread(target=self._guard, args=[self._relay_answers], name="answers", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._shut_down()
        for thread in self._threads:
            thread.join(10)
        for thing in (self._from_client, self._from_server, self._client, self._server):
            thing.close()

    def _shut_down(self) -> None:
        for connection in (self._client, self._server):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _guard(self, relay: Any) -> None:
        try:
            relay()
        except (wire.Gone, OSError):
            pass
        finally:
            # Either side's end is the other side's end.
            self._shut_down()

    def _relay_requests(self) -> None:
        startup = wire.read_startup(self._from_client)
        while startup.code in (wire.SSL_REQUEST, wire.GSSENC_REQUEST):
            self._client.sendall(b"N")
            startup = wire.read_startup(self._from_client)
        self._server.sendall(startup.raw)
        while True:
            kind, body = wire.read_message(self._from_client)
            if kind == b"Q":
                answer = self._own_answer(body.rstrip(b"\0").decode(), replication=startup.replication)
                if answer is not None:
                    self._client.sendall(answer)
                    continue
            self._server.sendall(wire.message(kind, body))

    def _own_answer(self, command: str, *, replication: bool) -> bytes | None:
        """Return the answer to a simple query that the server is not asked, None for all others."""
        shape = self._proxy.shape
        self._proxy.commands.append(command)
        for pattern, answer in shape.answers.items():
            if re.search(pattern, command):
                return answer
        show = _SHOW.match(command)
        if show and show[1] in shape.settings:
            return wire.text_result([[shape.settings[show[1]]]], [show[1]])
        if replication and _BASE_BACKUP.match(command):
            # With the first two the real server leaves data out or breaks the backup (facts 1.5, 1.6).
            for option in ("TABLESPACE_MAP", "WAL", "COMPRESSION"):
                if re.search(rf"\b{option}\b", re.sub(r"'[^']*'", "", command)):
                    return wire.error("0A000", f"the two-archive proxy does not serve {option}") + wire.READY
            self._backing_up = True
        return None

    def _relay_answers(self) -> None:
        while True:
            kind, body = wire.read_message(self._from_server)
            if self._backing_up and kind == b"T":
                self._backing_up = False
                self._proxy.checkpoint_done.wait()
                _Splitter(self._proxy.shape, self._from_server, self._client).run(wire.message(kind, body))
                continue
            if kind == b"Z":
                self._backing_up = False
            if kind == b"S" and body.startswith(b"in_hot_standby\0") and self._proxy.shape.in_hot_standby:
                body = b"in_hot_standby\0on\0"
            self._client.sendall(wire.message(kind, body))


class _BackupFailed(Exception):
    """The server ended the backup with an error."""


class _Splitter:
    """Turns the answer to one BASE_BACKUP into PolarDB's shape."""

    def __init__(self, shape: Shape, server: BinaryIO, client: socket.socket) -> None:
        self._shape, self._server, self._client = shape, server, client

    def run(self, first: bytes) -> None:
        """Read the server's whole answer and send the client what PolarDB would have sent."""
        # After an error, which has been handed on, only ReadyForQuery follows.
        with suppress(_BackupFailed):
            self._serve(first)
        self._forward_until(b"Z")

    def _serve(self, first: bytes) -> None:
        self._client.sendall(first)
        self._forward_until(b"C")
        self._send_tablespaces()
        with ExitStack() as files:
            archives, manifest = self._receive_copy(files)
            for name, archive in archives[:-1]:
                self._send_archive(name, iter(lambda a=archive: a.read(_BUFFER_BYTES), b""))
            plan = _split(archives[-1][1], self._shape)
            self._send_archive(b"base.tar\0\0", _tar(plan.local, terminated=self._shape.terminated_base))
            self._send_archive(b"data.tar\0\0", _tar(plan.shared, terminated=True))
            if manifest:
                self._client.sendall(wire.copy_data(b"m"))
                content = _manifest(manifest, plan)
                for start in range(0, len(content), _BUFFER_BYTES):
                    self._client.sendall(wire.copy_data(b"d" + content[start : start + _BUFFER_BYTES]))
        self._client.sendall(wire.message(b"c"))

    def _forward_until(self, last: bytes) -> None:
        while True:
            kind, body = wire.read_message(self._server)
            self._client.sendall(wire.message(kind, body))
            if kind == last:
                return
            if kind == b"E" and last != b"Z":
                raise _BackupFailed

    def _send_tablespaces(self) -> None:
        columns = [("spcoid", 26), ("spclocation", 25), ("size", 20), ("shared_storage", wire.INT2_OID)]
        while True:
            kind, body = wire.read_message(self._server)
            if kind == b"T":
                self._client.sendall(wire.row_description(columns))
            elif kind == b"D":
                values = wire.parse_data_row(body)
                # User tablespaces carry the mark as well (facts 1.2); the main directory does not.
                self._client.sendall(wire.data_row([*values, None if values[0] is None else b"1"]))
                size = values[2]
            elif kind == b"C":
                self._client.sendall(wire.data_row([None, None, size, b"1"]) + wire.message(kind, body))
                return
            else:
                self._client.sendall(wire.message(kind, body))

    def _receive_copy(self, files: ExitStack) -> tuple[list[tuple[bytes, IO[bytes]]], bytes]:
        archives: list[tuple[bytes, IO[bytes]]] = []
        manifest = bytearray()
        in_manifest = False
        while True:
            kind, body = wire.read_message(self._server)
            if kind == b"H":
                self._client.sendall(wire.message(kind, body))
            elif kind == b"c":
                break
            elif kind != b"d":
                # A notice, or an error that ends the backup.
                self._client.sendall(wire.message(kind, body))
                if kind == b"E":
                    raise _BackupFailed
            elif body[:1] == b"n":
                archives.append((body[1:], files.enter_context(tempfile.TemporaryFile())))  # noqa: SIM115 (closed by the stack)
            elif body[:1] == b"m":
                in_manifest = True
            elif body[:1] == b"d" and in_manifest:
                manifest += body[1:]
            elif body[:1] == b"d":
                archives[-1][1].write(body[1:])
            else:
                self._client.sendall(wire.copy_data(body))
        for _, archive in archives:
            archive.seek(0)
        return archives, bytes(manifest)

    def _send_archive(self, header: bytes, pieces: Iterator[bytes]) -> None:
        self._client.sendall(wire.copy_data(b"n" + header))
        for piece in pieces:
            self._client.sendall(wire.copy_data(b"d" + piece))


@dataclass(frozen=True, slots=True)
class _Entry:
    """One member to send: its header, and where its content comes from."""

    name: str
    header: bytes
    content: bytes | tuple[IO[bytes], int, int]
    added: bool = False

    def read(self) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content
            return
        source, offset, size = self.content
        source.seek(offset)
        while size:
            piece = source.read(min(size, 1 << 20))
            size -= len(piece)
            yield piece

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content[2]


@dataclass(frozen=True, slots=True)
class _Plan:
    local: list[_Entry]
    shared: list[_Entry]


def _split(archive: IO[bytes], shape: Shape) -> _Plan:
    """Decide which half each member of the server's base.tar belongs to."""
    local: list[_Entry] = []
    shared: list[_Entry] = []
    last: list[_Entry] = []
    with tarfile.open(fileobj=archive) as reader:
        for member in reader:
            entry = _entry_of(archive, member, shape)
            name = entry.name
            if member.isdir():
                if not name.startswith(_SHARED_ONLY):
                    local.append(entry)
                if (name + "/").startswith(_SHARED_FILES):
                    shared.append(entry)
            elif name == "postgresql.conf":
                local.append(_added(name, b"".join(entry.read()) + shape.configuration.encode()))
            elif name.startswith(_SHARED_FILES):
                if name.startswith(_CACHED):
                    # The cache of the local half is older than the truth; what is in it does not matter.
                    local.append(_added(name, b"\0" * entry.size))
                (last if name == "global/pg_control" else shared).append(entry)
            else:
                local.append(entry)
    settings = b"# cluster-wide settings\n"
    local += [
        _added("polar_settings.conf", settings), _added("polar_shmem_stat_file", b"123456789"),
        _directory("pg_logindex"), _directory("polar_cache_trash"),
    ]  # fmt: skip
    shared += [
        _added("global/polar_settings.conf", settings),
        _added("polar_non_exclusive_backup_label", b"START WAL LOCATION: 0/0 (file 000000010000000000000000)\n"),
        _directory("pg_logindex"), _directory("polar_fullpage"),
        _added("polar_fullpage/00000000.fp", bytes(1 << 20)), _added("polar_fullpage/log_index_meta", b"meta"),
    ]  # fmt: skip
    if shape.protocol_in_member_name:
        shared.append(_added(f"file-dio://{SHARED_DIRECTORY}/pg_wal/archive_status/0.done", b""))
    return _Plan(local, shared + last)


def _entry_of(archive: IO[bytes], member: tarfile.TarInfo, shape: Shape) -> _Entry:
    archive.seek(member.offset)
    header = archive.read(512)
    if shape.base_256_sizes and member.isfile():
        header = bytearray(header)
        header[124:136] = b"\x80" + member.size.to_bytes(11, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        header = bytes(header)
    return _Entry(member.name.removeprefix("./"), header, (archive, member.offset_data, member.size))


def _added(name: str, content: bytes) -> _Entry:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o600
    return _Entry(name, info.tobuf(tarfile.USTAR_FORMAT), content, added=True)


def _directory(name: str) -> _Entry:
    info = tarfile.TarInfo(name + "/")
    info.type, info.mode = tarfile.DIRTYPE, 0o700
    return _Entry(name, info.tobuf(tarfile.USTAR_FORMAT), b"")


def _tar(entries: Sequence[_Entry], *, terminated: bool) -> Iterator[bytes]:
    """Yield the tar in messages of the server's size, which cut headers and contents anywhere."""
    pending = bytearray()
    for entry in entries:
        pending += entry.header
        for piece in entry.read():
            pending += piece
            while len(pending) >= _BUFFER_BYTES:
                yield bytes(pending[:_BUFFER_BYTES])
                del pending[:_BUFFER_BYTES]
        pending += bytes(-entry.size % 512)
    if terminated:
        pending += _TERMINATOR
    for start in range(0, len(pending), _BUFFER_BYTES):
        yield bytes(pending[start : start + _BUFFER_BYTES])


def _manifest(original: bytes, plan: _Plan) -> bytes:
    """Return the manifest of both halves as PolarDB writes it: one list, local entries first, no mark of the half."""
    fields = json.loads(original)
    known = {entry["Path"]: entry for entry in fields["Files"]}
    example = known["backup_label"]
    listed: list[str] = []
    for entry in (*plan.local, *plan.shared):
        if entry.added:
            described = dict(example) | {"Path": entry.name, "Size": entry.size}
            if algorithm := example.get("Checksum-Algorithm"):
                described["Checksum"] = _checksum(b"".join(entry.read()), algorithm)
            listed.append(json.dumps(described))
        elif entry.name in known:
            listed.append(json.dumps(known[entry.name]))
    ranges = ",\n".join(map(json.dumps, fields["WAL-Ranges"]))
    output = io.StringIO()
    output.write('{ "PostgreSQL-Backup-Manifest-Version": 1,\n"Files": [\n' + ",\n".join(listed))
    output.write(f'\n],\n"WAL-Ranges": [\n{ranges}\n],\n')
    text = output.getvalue().encode()
    # The checksum covers every byte up to and including the line break before it.
    return text + b'"Manifest-Checksum": "%s"}\n' % hashlib.sha256(text).hexdigest().encode()


def _checksum(content: bytes, algorithm: str) -> str:
    if algorithm == "CRC32C":
        return struct.pack("<I", google_crc32c.value(content)).hex()
    return hashlib.new(algorithm.lower(), content).hexdigest()
