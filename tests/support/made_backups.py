"""Small backups made of whole cloth, for tests of what a restore does with their files: no server is needed."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import lz4.frame
import zstandard

from polarvault.pgfiles.tar import encode_member
from support.small_files import control_bytes
from support.wal_bytes import XLOG, WalBuilder

SYSTEM_IDENTIFIER = 7711101783964903611
SEGMENT = "000000010000000000000002"
SEGMENT_BYTES = 16 << 20
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".lz4": lz4.frame.compress,
    ".zst": zstandard.compress,
}


def segment_name(start: int) -> str:
    """Return the segment that holds the start; all below 4 GB, on timeline 1."""
    return f"{1:08X}{start >> 24:016X}"


@functools.cache
def wal(start: int) -> bytes:
    """Return that segment: right WAL up to the end that `manifest` names, 256 bytes behind the start; then zeros."""
    builder = WalBuilder(segment=start >> 24, segment_bytes=SEGMENT_BYTES, magic=0xD110, system=SYSTEM_IDENTIFIER)
    builder.begin_page_if_due()
    if start > builder.lsn:
        builder.add(bytes(start - builder.lsn - 24))
    builder.add(bytes(192))
    builder.add_main(struct.pack("<Q", start), rmgr=XLOG, info=0x50)
    assert start % 8 or builder.lsn == start + 0x100
    builder.fill_segment()
    return bytes(builder.content)


def label(start: int = 0x2000028, checkpoint: int = 0x2000060, more: str = "") -> bytes:
    return (
        f"START WAL LOCATION: 0/{start:X} (file {segment_name(start)})\nCHECKPOINT LOCATION: 0/{checkpoint:X}\n"
        f"BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-20 10:00:00 UTC\nLABEL: made\n"
        f"START TIMELINE: 1\n{more}"
    ).encode()


def table(seed: int, size: int = 40_000) -> bytes:
    """Return content that no compressor makes disappear and that is no page of zeros."""
    return b"".join(hashlib.sha256(struct.pack("II", seed, n)).digest() for n in range(-(-size // 32)))[:size]


def files(start: int = 0x2000028) -> dict[str, bytes]:
    """Return what a plain backup of PostgreSQL 15 holds, as far as a restore looks at it."""
    return {
        "PG_VERSION": b"15\n",
        "backup_label": label(start, start + 0x38),
        "base/1/1255": table(1),
        "base/5/16384": table(2, 200_000),
        "base/5/16385": b"",
        "global/1262": table(3, 8192),
        "postgresql.conf": b"port = 5432\n",
        "pg_hba.conf": b"local all all trust\n",
        "global/pg_control": control_bytes(timeline=1, checkpoint=start + 0x38, redo=start, system=SYSTEM_IDENTIFIER),
    }


def manifest(content: Mapping[str, bytes], *, algorithm: str | None = "CRC32C", start: int = 0x2000028) -> bytes:
    """Return a manifest of these files, laid out as the server does it."""
    entries = []
    for path, data in content.items():
        entry = {"Path": path, "Size": len(data), "Last-Modified": "2026-11-20 10:00:00 GMT"}
        if algorithm == "CRC32C":
            entry |= {
                "Checksum-Algorithm": "CRC32C", "Checksum": google_crc32c.value(data).to_bytes(4, "little").hex(),
            }  # fmt: skip
        elif algorithm is not None:
            digest = hashlib.new(algorithm.lower(), data).hexdigest()
            entry |= {"Checksum-Algorithm": algorithm, "Checksum": digest}
        entries.append(json.dumps(entry))
    ranges = f'{{ "Timeline": 1, "Start-LSN": "0/{start:X}", "End-LSN": "0/{start + 0x100:X}" }}'
    body = (
        '{ "PostgreSQL-Backup-Manifest-Version": 1,\n"Files": [\n' + ",\n".join(entries)
        + f'\n],\n"WAL-Ranges": [\n{ranges}\n],\n'
    ).encode()  # fmt: skip
    return body + f'"Manifest-Checksum": "{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


@dataclass
class MadeBackup:
    """The files of a backup and its manifest; change the files after `seal` to damage it."""

    content: dict[str, bytes] = field(default_factory=files)
    algorithm: str | None = "CRC32C"
    start: int = 0x2000028
    sealed: bytes | None = None

    @property
    def wal(self) -> bytes:
        """The one segment that it holds."""
        return wal(self.start)

    def seal(self) -> MadeBackup:
        """Make the manifest of what is there now."""
        self.sealed = manifest(self.content, algorithm=self.algorithm, start=self.start)
        return self

    def plain(self, directory: Path) -> Path:
        """Write it as a plain backup that everybody may read."""
        for name, data in {**self.content, **self._manifest(), f"pg_wal/{segment_name(self.start)}": self.wal}.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            # Zeros at the end, as of WAL, are a hole.
            path.write_bytes(data.rstrip(b"\0") if name.startswith("pg_wal/") else data)
            os.truncate(path, len(data))
        return directory

    def tar(self, directory: Path, suffix: str = "") -> Path:
        """Write it as base.tar and pg_wal.tar."""
        directory.mkdir(parents=True)
        (directory / f"base.tar{suffix}").write_bytes(PACKERS[suffix](self._tar(self.content)))
        wal = self._tar({segment_name(self.start): self.wal})
        (directory / f"pg_wal.tar{suffix}").write_bytes(PACKERS[suffix](wal))
        for name, data in self._manifest().items():
            (directory / name).write_bytes(data)
        return directory

    def one_tar(self, suffix: str = "") -> bytes:
        """Return it as one tar, as it goes to standard output, with the manifest at the end."""
        wal = {f"pg_wal/{segment_name(self.start)}": self.wal}
        return PACKERS[suffix](self._tar({**self.content, **wal, **self._manifest()}))

    def _manifest(self) -> dict[str, bytes]:
        return {} if self.sealed is None else {"backup_manifest": self.sealed}

    @staticmethod
    def _tar(content: Mapping[str, bytes]) -> bytes:
        return b"".join(encode_member(name, data) for name, data in content.items()) + bytes(1024)
