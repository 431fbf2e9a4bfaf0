"""backup_manifest: parse what a server sent, write one for each half of a PolarDB backup.

Format: manual, "Backup Manifest Format". The last line holds the SHA-256 of every byte before it. CRC-32C values are
hexadecimal of the four bytes in memory order (little-endian).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import google_crc32c

from polarvault.errors import IntegrityError
from polarvault.model import versions
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.manifest_json import (
    SYSTEM_IDENTIFIER,
    Fields,
    ManifestFields,
    ManifestProblem,
    read_fields,
    shown,
)
from polarvault.pgfiles.manifest_lines import cut_file_lines

_ALGORITHMS = {"SHA224": hashlib.sha224, "SHA256": hashlib.sha256, "SHA384": hashlib.sha384, "SHA512": hashlib.sha512}
_ALGORITHM_NAMES = frozenset({"NONE", "CRC32C", *_ALGORITHMS})
# What strtoul(3) and sscanf(3) with %X take, in the C locale.
_INTEGER = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+")
_LSN = re.compile(r"\s*\+?(?:0[xX])?([0-9A-Fa-f]+)/\s*\+?(?:0[xX])?([0-9A-Fa-f]+)", re.ASCII)
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})*")
_LARGEST, _MOST_DIGITS = (1 << 64) - 1, 20


class ManifestFile(NamedTuple):
    """One entry; checksum is hexadecimal, None when the manifest was made without checksums.

    A tuple, because there can be a million of them: a frozen dataclass takes four times as long to make.
    """

    path: str
    size: int
    last_modified: str
    algorithm: str | None
    checksum: str | None
    encoded: bool = False


@dataclass(frozen=True, slots=True)
class ManifestRange:
    """WAL that the backup needs: on one timeline, from start up to, not including, end."""

    timeline_id: int
    start: Lsn
    end: Lsn


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest; the order of files and WAL ranges is that in which the server sent them."""

    version: int
    files: list[ManifestFile]
    wal_ranges: list[ManifestRange]
    system_identifier: int | None = None


def parse_manifest(content: bytes) -> Manifest:
    """Parse a manifest and check its own checksum; raise IntegrityError when it is damaged."""
    manifest, damage = read_damaged_manifest(content)
    if damage is not None or manifest is None:
        raise damage or IntegrityError("could not parse backup manifest")
    return manifest


def read_damaged_manifest(content: bytes, *, major: int | None = None) -> tuple[Manifest | None, IntegrityError | None]:
    """Return what can be read of a manifest, and what is wrong with it; one of the two is not None.

    What is accepted is what the pg_verifybackup of the backup's version accepts. major: that version, if it is known;
    else the manifest's own version tells (1: PostgreSQL 13 to 16, 2: 17 and later). What is wrong is said in
    pg_verifybackup's words, which scripts may look for.
    """
    read = _read_by_lines(content, major)
    if read is None:
        try:
            read = _judged(read_fields(content), major)
        except ManifestProblem as problem:
            why = _incomplete(content) or str(problem)
            return None, IntegrityError(f"could not parse backup manifest: {why}")
    manifest, stored = read
    return manifest, _checksum_damage(content, stored)


def _read_by_lines(content: bytes, major: int | None) -> tuple[Manifest, str | None] | None:
    """Read a manifest that is laid out as servers do it; None: read it as a whole, which also says what is wrong."""
    cut = cut_file_lines(content)
    if cut is None:
        return None
    lines, rest = cut
    try:
        manifest, stored = _judged(read_fields(rest), major)
    except ManifestProblem:
        return None
    if manifest.files:
        return None  # There is a second list, whose files are numbered after those of the first.
    manifest.files.extend(
        ManifestFile(path, int(size), last_modified, algorithm or None, checksum or None)
        for path, size, last_modified, algorithm, checksum in lines
    )
    return manifest, stored


def _judged(fields: ManifestFields, major: int | None) -> tuple[Manifest, str | None]:
    version = _version(fields.version, major)
    manifest = Manifest(
        version,
        [_file(number, entry) for number, entry in enumerate(fields.files, 1)],
        [_wal_range(number, entry) for number, entry in enumerate(fields.wal_ranges, 1)],
        _system_identifier(fields.system_identifier, version, major),
    )
    return manifest, fields.checksum


def _incomplete(content: bytes) -> str | None:
    """Say that the end is missing, where it is: that is the cause of whatever else is wrong."""
    if content.rfind(b'"Manifest-Checksum"') < 0:
        return "it has no checksum of its own, so it is incomplete"
    return None if content.endswith(b"\n") else "last line not newline-terminated"


def _checksum_damage(content: bytes, stored: str | None) -> IntegrityError | None:
    """Compare the last line with all others, whose checksum it holds (server: verify_manifest_checksum)."""
    if stored is None:
        return IntegrityError("could not parse backup manifest: it has no checksum of its own, so it is incomplete")
    if not content.endswith(b"\n"):
        return IntegrityError("could not parse backup manifest: last line not newline-terminated")
    if content.count(b"\n") < 2:
        return IntegrityError("could not parse backup manifest: expected at least 2 lines")
    if re.fullmatch(r"[0-9A-Fa-f]{64}", stored) is None:
        return IntegrityError(f"invalid manifest checksum: {shown(stored)}")
    calculated = hashlib.sha256(memoryview(content)[: content.rfind(b"\n", 0, -1) + 1]).hexdigest()
    if calculated != stored.lower():
        return IntegrityError(f"manifest checksum mismatch: its SHA-256 is {calculated}, it says {stored}")
    return None


def _version(text: str, major: int | None) -> int:
    # Until 16 the text had to be "1"; since then it is read as a number (json_manifest_finalize_version).
    is_old = _knows_first_only(major) if major is not None else text == "1"
    number = None if (is_old and text != "1") or "-" in text else _unsigned(text)
    if number is None and not is_old and _INTEGER.fullmatch(text) is None:
        raise ManifestProblem(f"manifest version not an integer: {shown(text)}")
    if number not in (1, 2):
        raise ManifestProblem(f"unexpected manifest version {shown(text)}, only 1 and 2 are known")
    return number


def _system_identifier(text: str | None, version: int, major: int | None) -> int | None:
    if text is None:
        if version > 1:
            raise ManifestProblem(f"missing {SYSTEM_IDENTIFIER}, which version {version} has")
        return None
    if (major is not None and _knows_first_only(major)) or (major is None and version == 1):
        raise ManifestProblem(f'unrecognized top-level field "{SYSTEM_IDENTIFIER}", which version 1 does not have')
    number = _unsigned(text)
    if number is None:
        raise ManifestProblem(f"manifest system identifier not an integer: {shown(text)}")
    # pg_verifybackup compares it with pg_control from version 2 on only.
    return number if version > 1 else None


def _knows_first_only(major: int) -> bool:
    """Tell whether the programs of a version read only the first version of manifests; later ones read both."""
    return versions.of_server(major * 10000).manifest_version == 1


def _place(number: int, path: str | None) -> str:
    return f"file {number}" if path is None else f"file {number} ({shown(path)})"


def _file(number: int, entry: Fields) -> ManifestFile:
    path, encoded = entry.get("Path"), entry.get("Encoded-Path")
    if path is not None and encoded is not None:
        raise ManifestProblem(f"{_place(number, path)}: both path name and encoded path name")
    if encoded is not None:
        if _HEX.fullmatch(encoded) is None:
            raise ManifestProblem(f"{_place(number, path)}: could not decode file name {shown(encoded)}")
        # To the server it is a C string.
        path = bytes.fromhex(encoded).partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if path is None:
        raise ManifestProblem(f"{_place(number, path)}: missing path name")
    if "Size" not in entry:
        raise ManifestProblem(f"{_place(number, path)}: missing size")
    size = _unsigned(entry["Size"])
    if size is None:
        raise ManifestProblem(f"{_place(number, path)}: file size is not an integer: {shown(entry['Size'])}")
    algorithm, stored = _stored_checksum(number, path, entry)
    return ManifestFile(path, size, entry.get("Last-Modified", ""), algorithm, stored, encoded is not None)


def _stored_checksum(number: int, path: str, entry: Fields) -> tuple[str | None, str | None]:
    algorithm, stored = entry.get("Checksum-Algorithm"), entry.get("Checksum")
    if algorithm is None:
        if stored is not None:
            raise ManifestProblem(f"{_place(number, path)}: checksum without algorithm")
        return None, None
    if algorithm not in _ALGORITHM_NAMES:
        # Small letters will do, too.
        known = algorithm.upper() if algorithm.isascii() else algorithm
        if known not in _ALGORITHM_NAMES:
            raise ManifestProblem(f"{_place(number, path)}: unrecognized checksum algorithm: {shown(algorithm)}")
        algorithm = known
    if stored is not None and _HEX.fullmatch(stored) is None:
        raise ManifestProblem(f"{_place(number, path)}: invalid checksum for file: {shown(stored)}")
    if algorithm == "NONE":
        return None, None
    # An algorithm without a checksum is accepted, and then the file's checksum is not the right one.
    return algorithm, (stored or "").lower()


def _wal_range(number: int, entry: Fields) -> ManifestRange:
    where = f"WAL range {number}"
    for name, words in (("Timeline", "timeline"), ("Start-LSN", "start LSN"), ("End-LSN", "end LSN")):
        if name not in entry:
            raise ManifestProblem(f"{where}: missing {words}")
    timeline_id = _unsigned(entry["Timeline"])
    if timeline_id is None:
        raise ManifestProblem(f"{where}: timeline is not an integer: {shown(entry['Timeline'])}")
    start = _lsn(entry["Start-LSN"], f"{where}: could not parse start LSN")
    return ManifestRange(timeline_id & 0xFFFFFFFF, start, _lsn(entry["End-LSN"], f"{where}: could not parse end LSN"))


def _lsn(text: str, problem: str) -> Lsn:
    match = _LSN.match(text)
    if match is None:
        raise ManifestProblem(f"{problem}: {shown(text)}")
    high, low = (int(part, 16) & 0xFFFFFFFF for part in match.groups())
    return Lsn(high << 32 | low)


def _unsigned(text: str) -> int | None:
    """Return what strtoul(3) makes of a whole text: an empty one is 0, more than 64 bits are all of them."""
    if not text:
        return 0
    if text.isdecimal() and text.isascii() and len(text) < _MOST_DIGITS - 1:
        return int(text)
    if _INTEGER.fullmatch(text) is None:
        return None
    # Longer ones are too large anyway, and Python refuses to convert thousands of digits.
    digits = text.lstrip(" \t\n\v\f\r+-").lstrip("0")
    number = int(digits[:_MOST_DIGITS] or "0") if len(digits) <= _MOST_DIGITS else _LARGEST + 1
    if number > _LARGEST:
        return _LARGEST
    return -number & _LARGEST if "-" in text else number


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
    # A path in bytes that are no UTF-8 stays as it was.
    body = "".join(lines).encode("utf-8", "surrogateescape")
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


def _encode_range(entry: ManifestRange) -> str:
    return f'{{ "Timeline": {entry.timeline_id}, "Start-LSN": "{entry.start}", "End-LSN": "{entry.end}" }}'


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
