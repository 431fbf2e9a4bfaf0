"""backup_manifest: parse what a server sent, write one for each half of a PolarDB backup.

Format: manual, "Backup Manifest Format". The last line holds the SHA-256 of every byte before it. CRC-32C values are
hexadecimal of the four bytes in memory order (little-endian).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import google_crc32c

from polarvault.errors import IntegrityError
from polarvault.model.lsn import Lsn

_ALGORITHMS = {"SHA224": hashlib.sha224, "SHA256": hashlib.sha256, "SHA384": hashlib.sha384, "SHA512": hashlib.sha512}


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One entry; checksum is hexadecimal, None when the manifest was made without checksums."""

    path: str
    size: int
    last_modified: str
    algorithm: str | None
    checksum: str | None
    encoded: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest; the order of files is the order in which the server sent them."""

    version: int
    files: list[ManifestFile]
    wal_ranges: list[dict[str, Any]]
    """Each with Timeline (a number), Start-LSN and End-LSN (as the server prints them)."""
    system_identifier: int | None = None


def parse_manifest(content: bytes) -> Manifest:
    """Parse a manifest and check its own checksum; raise IntegrityError when it is damaged."""
    manifest, damage = read_damaged_manifest(content)
    if damage is not None or manifest is None:
        raise damage or IntegrityError("could not parse backup manifest")
    return manifest


def read_damaged_manifest(content: bytes) -> tuple[Manifest | None, IntegrityError | None]:
    """Return what can be read of a manifest, and what is wrong with it; one of the two is not None.

    What is wrong is said in pg_verifybackup's words, which scripts may look for.
    """
    damage: IntegrityError | None = None
    # The checksum is the last line, and is of all others (server: common/parse_manifest.c, verify_manifest_checksum).
    end = content.rfind(b"\n", 0, -1) + 1
    if content.rfind(b'"Manifest-Checksum"') < 0:
        damage = IntegrityError("could not parse backup manifest: it has no checksum of its own, so it is incomplete")
    elif not content.endswith(b"\n"):
        damage = IntegrityError("could not parse backup manifest: last line not newline-terminated")
    try:
        fields = json.loads(content.decode(), parse_constant=_refuse_constant)
        if damage is None:
            calculated, stored = hashlib.sha256(content[:end]).hexdigest(), fields["Manifest-Checksum"]
            if calculated != stored.lower():
                damage = IntegrityError(f"manifest checksum mismatch: its SHA-256 is {calculated}, it says {stored}")
        version = fields["PostgreSQL-Backup-Manifest-Version"]
        if version not in (1, 2):
            raise ValueError(f"unexpected manifest version {version!r}, only 1 and 2 are known")
        files = [_parse_file(entry) for entry in fields["Files"]]
        for entry in fields["WAL-Ranges"]:
            int(entry["Timeline"]), Lsn.parse(entry["Start-LSN"]), Lsn.parse(entry["End-LSN"])
        return Manifest(version, files, fields["WAL-Ranges"], fields.get("System-Identifier")), damage
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as problem:
        return None, damage or IntegrityError(f"could not parse backup manifest: {_why(problem)}")


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python's reader takes and JSON does not have."""
    raise ValueError(f"{name} is no JSON")


def _why(problem: Exception) -> str:
    return f"{problem} is missing" if isinstance(problem, KeyError) else str(problem)


def _parse_file(entry: dict[str, Any]) -> ManifestFile:
    encoded = "Encoded-Path" in entry
    if encoded and "Path" in entry:
        raise ValueError(f"both path name and encoded path name of {entry['Path']!r}")
    path: Any = bytes.fromhex(entry["Encoded-Path"]).decode("utf-8", "surrogateescape") if encoded else entry["Path"]
    size, algorithm = entry["Size"], entry.get("Checksum-Algorithm")
    stored: Any = entry.get("Checksum")
    if not isinstance(path, str):
        raise ValueError(f"{path!r} is no path name")
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"{path!r} has size {size!r}")
    if algorithm is not None:
        # pg_verifybackup takes small letters, too.
        algorithm = str(algorithm).upper()
        if algorithm != "CRC32C" and algorithm not in _ALGORITHMS:
            raise ValueError(f'unrecognized checksum algorithm: "{algorithm}"')
        bytes.fromhex(stored)
        stored = stored.lower()
    elif stored is not None:
        raise ValueError(f"{path!r} has a checksum without algorithm")
    return ManifestFile(path, size, entry.get("Last-Modified", ""), algorithm, stored, encoded)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest's bytes, laid out as the server lays them out."""
    head = f'{{ "PostgreSQL-Backup-Manifest-Version": {manifest.version},\n'
    if manifest.system_identifier is not None:
        head += f'"System-Identifier": {manifest.system_identifier},\n'
    lines = [head + '"Files": [']
    lines.append(",".join("\n" + _encode_file(entry) for entry in manifest.files))
    lines.append('\n],\n"WAL-Ranges": [')
    lines.append(",".join("\n" + _encode_range(entry) for entry in manifest.wal_ranges))
    lines.append("\n],\n")
    body = "".join(lines).encode()
    return body + f'"Manifest-Checksum": "{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


def _encode_file(entry: ManifestFile) -> str:
    if entry.encoded:
        path = f'"Encoded-Path": "{entry.path.encode("utf-8", "surrogateescape").hex()}"'
    else:
        path = f'"Path": {json.dumps(entry.path, ensure_ascii=False)}'
    text = f'{{ {path}, "Size": {entry.size}, "Last-Modified": "{entry.last_modified}"'
    if entry.algorithm is not None:
        text += f', "Checksum-Algorithm": "{entry.algorithm}", "Checksum": "{entry.checksum}"'
    return text + " }"


def _encode_range(entry: dict[str, Any]) -> str:
    return (
        f'{{ "Timeline": {entry["Timeline"]}, "Start-LSN": "{entry["Start-LSN"]}", "End-LSN": "{entry["End-LSN"]}" }}'
    )


def checksum(content: bytes, algorithm: str) -> str:
    """Return the checksum of a small file as a manifest spells it."""
    if algorithm == "CRC32C":
        return int(google_crc32c.value(content)).to_bytes(4, "little").hex()
    return _ALGORITHMS[algorithm](content).hexdigest()


def entry_for(path: str, content: bytes, *, last_modified: str, algorithm: str | None) -> ManifestFile:
    """Return the entry of a small file that we wrote ourselves."""
    stored = checksum(content, algorithm) if algorithm is not None else None
    return ManifestFile(path, len(content), last_modified, algorithm, stored)


def split_by_half(
    manifest: Manifest, local_names: Iterable[str], shared_names: Iterable[str]
) -> tuple[list[ManifestFile], list[ManifestFile]]:
    """Split the server's single list into the entries of the local and of the shared half.

    PolarDB lists both halves without saying which is which, and some paths twice (facts 1.7). The order decides: first
    the files of base.tar, then those of data.tar, each in the order in which they were sent.
    """
    local, shared = set(local_names), set(shared_names)
    entries = [entry for entry in manifest.files if "://" not in entry.path]
    # The halves meet where the entries stop being the local archive's; every local file stands before every shared one.
    boundary = 0
    seen: set[str] = set()
    for position, entry in enumerate(entries):
        if entry.path not in local or entry.path in seen:
            break
        seen.add(entry.path)
        boundary = position + 1
    first, second = entries[:boundary], entries[boundary:]
    # A path that is in both halves and sent last in the first could be drawn to the wrong side; sizes of sets tell.
    missing = local - seen
    stray = [entry.path for entry in second if entry.path not in shared]
    if missing or stray:
        name = next(iter(sorted(missing) or stray))
        raise IntegrityError(
            f"the backup manifest does not agree with the archives: {name!r} is listed with the wrong half",
            hint="take the backup again; if it happens again, report it with the server's version",
        )
    return first, second
