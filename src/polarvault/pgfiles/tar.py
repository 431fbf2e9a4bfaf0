"""Tar as base backups use it: a push parser that turns bytes into events, and headers for what we write ourselves.

Theory of operation. The server sends one tar per archive in messages of at most 32 kB, cut anywhere. `TarReader.feed`
takes any number of buffers and yields events; its result does not depend on how the bytes were cut. Payload is never
copied: a `MemberData` event carries slices of the buffers that were fed, valid until the caller reuses them.

    HEADER --512 bytes--> BODY (size bytes) --> PADDING (to 512) --> HEADER
       \\--zero block--> HEADER                (so concatenated tars and missing terminators both work)

Facts (measured on PostgreSQL 13-19 and PolarDB 15): names are at most 99 bytes; sizes of 8 GiB and more are GNU
base-256 (PolarDB's relation segments are 128 GB); a name may start with ``./``; PolarDB's base.tar can lack its
terminator. GNU long names and pax paths are understood because restored tars may come from other programs.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from polarvault.errors import RemoteProtocolError
from polarvault.model import limits
from polarvault.model.names import name_problem, shown_name

BLOCK_BYTES = 512
TERMINATOR = bytes(2 * BLOCK_BYTES)
_ZERO_BLOCK = bytes(BLOCK_BYTES)
# A member may have a long name, a long link target and a pax header, and a global header may stand before them.
_MAX_NAME_HEADERS = 8
# The digits of the longest pax record and of the largest size that there can be.
_PAX_LENGTH_DIGITS = len(str(limits.TAR_METADATA_BYTES))
_PAX_SIZE = re.compile(r"[0-9]{1,19}\Z")


class MemberKind(Enum):
    """What a tar member is; base backups hold nothing else."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


@dataclass(frozen=True, slots=True)
class Member:
    """One tar member: its name as sent, without a leading ``./`` and without a trailing ``/``."""

    name: str
    kind: MemberKind
    size: int
    mode: int
    link: str
    mtime: int
    header: bytes

    @property
    def padding(self) -> int:
        """Bytes of zeros that follow the payload in the tar."""
        return -self.size % BLOCK_BYTES


# Not frozen, as values are elsewhere: these are made three times for each member, and freezing triples their time.
@dataclass(slots=True)
class MemberBegins:
    """A member's header has been read."""

    member: Member


@dataclass(slots=True)
class MemberData:
    """Payload of the current member: views in order, `size` bytes in all, starting at `offset` in the member."""

    views: list[memoryview]
    size: int
    offset: int


@dataclass(slots=True)
class MemberEnds:
    """The current member is complete."""

    member: Member


TarEvent = MemberBegins | MemberData | MemberEnds


def parse_number(field: bytes) -> int:
    """Parse a numeric header field: octal text, or GNU base-256 when the first byte is 0x80 or 0xFF (negative).

    Raises ValueError for anything else: Python's own reader takes signs, underscores and 0o.
    """
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip(b" ")
    if text.isdigit():
        return int(text, 8)
    if text:
        raise ValueError(f"{text!r} is not an octal number")
    return 0


def _sum(header: bytes) -> int:
    """Return the sum of a header's bytes.

    The lower half of an Adler-32 is one more than that, modulo 65521, which half a header cannot reach: five times as
    fast as `sum`, and there may be a million headers.
    """
    half = BLOCK_BYTES // 2
    return (zlib.adler32(header[:half]) & 0xFFFF) + (zlib.adler32(header[half:]) & 0xFFFF) - 2


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def normalise_name(name: str) -> str:
    """Strip a leading ``./`` and a trailing ``/``; what is left names the member in manifests and on disk."""
    while name.startswith("./"):
        name = name[2:]
    return name.rstrip("/")


def is_safe_name(name: str) -> bool:
    """Tell whether a member may be created below a target directory: relative, no ``..``, no protocol.

    PolarDB names WAL status files ``file-dio:///...`` (facts 1.6); extracting those would build a stray tree.
    """
    return not has_protocol(name) and name_problem(name) is None


def has_protocol(name: str) -> bool:
    """Tell whether a name is one of PolarDB's with a protocol in it, which has no place in a backup."""
    return "://" in name


class TarReader:
    """Turn the bytes of a tar into events; see the module's theory of operation."""

    def __init__(self, what: str = "tar archive") -> None:
        self._what = what
        self._partial = bytearray()
        self._member: Member | None = None
        self._remaining = 0
        self._padding = 0
        self._position = 0
        # GNU long name / pax attributes that apply to the next real member.
        self._meta: bytearray | None = None
        self._meta_kind = b""
        self._meta_header = b""
        self._meta_count = 0
        self._overrides: dict[str, str] = {}

    def feed(self, buffers: Iterable[memoryview]) -> Iterator[TarEvent]:
        """Yield the events that these bytes complete."""
        # The commonest case by far: everything lies inside one large file.
        if isinstance(buffers, list) and self._remaining and self._meta is None and not self._padding:
            total = sum(map(len, buffers))
            if total < self._remaining and self._member is not None:
                offset = self._member.size - self._remaining
                self._remaining -= total
                self._position += total
                yield MemberData(buffers, total, offset)
                return
        pending: list[memoryview] = []
        for view in buffers:
            length = len(view)
            # The common case, a message that lies wholly inside a large file, costs one comparison and one append.
            if length <= self._remaining and self._meta is None and not self._padding:
                pending.append(view)
                self._remaining -= length
                self._position += length
                if self._remaining:
                    continue
                yield from self._flush(pending)
                pending = []
                yield from self._end_member()
                continue
            offset = 0
            while offset < length:
                if self._remaining:
                    take = min(self._remaining, length - offset)
                    if self._meta is not None:
                        self._meta += view[offset : offset + take]
                    else:
                        pending.append(view[offset : offset + take])
                    self._remaining -= take
                    self._position += take
                    offset += take
                    if not self._remaining:
                        yield from self._flush(pending)
                        pending = []
                        yield from self._end_member()
                elif self._padding:
                    take = min(self._padding, length - offset)
                    self._padding -= take
                    self._position += take
                    offset += take
                else:
                    take = min(BLOCK_BYTES - len(self._partial), length - offset)
                    self._partial += view[offset : offset + take]
                    self._position += take
                    offset += take
                    if len(self._partial) == BLOCK_BYTES:
                        header = bytes(self._partial)
                        self._partial.clear()
                        yield from self._begin_member(header)
        yield from self._flush(pending)

    def finish(self) -> None:
        """Check that the tar did not end inside a member; a missing terminator is accepted."""
        if self._remaining or self._meta is not None:
            name = shown_name(self._member.name) if self._member else "a long member name"
            raise RemoteProtocolError(
                f"{self._what} ends inside {name}, {self._remaining} bytes short, at byte {self._position}"
            )
        if self._partial.strip(b"\0"):
            raise RemoteProtocolError(f"{self._what} ends inside a member header, at byte {self._position}")

    def _flush(self, pending: list[memoryview]) -> Iterator[TarEvent]:
        if pending and self._member is not None:
            size = sum(map(len, pending))
            yield MemberData(pending, size, self._member.size - self._remaining - size)

    def _begin_member(self, header: bytes) -> Iterator[TarEvent]:
        if header == _ZERO_BLOCK:
            return
        type_flag = header[156:157]
        try:
            stored_sum = parse_number(header[148:156])
            size = parse_number(header[124:136])
            mode = parse_number(header[100:108])
            mtime = parse_number(header[136:148])
        except ValueError:
            raise self._damaged("a header field is not a number") from None
        if stored_sum != _sum(header) - sum(header[148:156]) + 8 * 0x20:
            raise self._damaged("the header's checksum is wrong")
        if type_flag in (b"L", b"K", b"x", b"g"):
            yield from self._begin_metadata(header, type_flag, size)
            return
        name = _text(header[0:100])
        if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
            name = f"{prefix}/{name}"
        name = self._overrides.pop("path", name)
        link = self._overrides.pop("linkpath", _text(header[157:257]))
        if (claimed := self._overrides.get("size")) is not None:
            if _PAX_SIZE.match(claimed) is None:
                raise self._damaged(f"a pax header gives the size as {shown_name(claimed)}")
            size = int(claimed)
        self._overrides.clear()
        if not 0 <= size <= limits.FILE_BYTES:
            raise self._damaged(f"member {shown_name(name)} claims {size} bytes")
        kinds = {b"0": MemberKind.FILE, b"\0": MemberKind.FILE, b"5": MemberKind.DIRECTORY, b"2": MemberKind.SYMLINK}
        kind = kinds.get(type_flag)
        if kind is None:
            raise self._damaged(f"member {shown_name(name)} has type {type_flag!r}, which no base backup contains")
        member = Member(
            normalise_name(name), kind, size if kind is MemberKind.FILE else 0, mode, link, mtime,
            self._meta_header + header,
        )  # fmt: skip
        self._meta_header, self._meta_count = b"", 0
        self._member, self._remaining = member, member.size
        yield MemberBegins(member)
        if not self._remaining:
            yield from self._end_member()

    def _begin_metadata(self, header: bytes, type_flag: bytes, size: int) -> Iterator[TarEvent]:
        self._meta_count += 1
        if not 0 <= size <= limits.TAR_METADATA_BYTES:
            raise self._damaged(f"a name header claims {size} bytes")
        if self._meta_count > _MAX_NAME_HEADERS:
            raise self._damaged(f"more than {_MAX_NAME_HEADERS} name headers follow one another")
        self._meta, self._meta_kind, self._remaining = bytearray(), type_flag, size
        self._meta_header += header
        self._member = None
        if not size:
            yield from self._end_member()

    def _end_member(self) -> Iterator[TarEvent]:
        if self._meta is not None:
            self._take_metadata(bytes(self._meta))
            self._meta_header += self._meta + bytes(-len(self._meta) % BLOCK_BYTES)
            self._padding = -len(self._meta) % BLOCK_BYTES
            self._meta = None
            return
        if self._member is not None:
            member, self._member = self._member, None
            self._padding = member.padding
            yield MemberEnds(member)

    def _take_metadata(self, content: bytes) -> None:
        if self._meta_kind == b"L":
            self._overrides["path"] = _text(content)
        elif self._meta_kind == b"K":
            self._overrides["linkpath"] = _text(content)
        elif self._meta_kind == b"x":
            self._take_pax(content)

    def _take_pax(self, content: bytes) -> None:
        """Take the records of a pax header, each ``<length> <key>=<value>\\n``; the length counts itself."""
        at = 0
        while at < len(content):
            blank = content.find(b" ", at, at + _PAX_LENGTH_DIGITS + 1)
            digits = content[at:blank] if blank >= 0 else b""
            # No record is shorter than its length, the blank, an equals sign and the line end.
            if not digits.isdigit() or not len(digits) + 3 <= int(digits) <= len(content) - at:
                raise self._damaged("a pax header is malformed")
            end = at + int(digits)
            key, _, value = content[blank + 1 : end - 1].partition(b"=")
            if key in (b"path", b"linkpath", b"size"):
                self._overrides[key.decode()] = value.decode("utf-8", "surrogateescape")
            at = end

    def _damaged(self, why: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self._what} is damaged at byte {self._position - BLOCK_BYTES}: {why}")


def encode_header(
    name: str, size: int, *, mode: int = 0o600, mtime: int = 0, directory: bool = False, link: str | None = None
) -> bytes:
    """Return the header blocks of a member that we add ourselves (GNU format, so any name length and size)."""
    # Here: it loads every compression that Python has, and who only reads needs none of it.
    import tarfile

    entry = tarfile.TarInfo(name + "/" if directory else name)
    entry.size, entry.mode, entry.mtime = size, mode, mtime
    entry.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    if link is not None:
        entry.type, entry.linkname = tarfile.SYMTYPE, link
    entry.uname = entry.gname = "postgres"
    return entry.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")


def encode_member(name: str, content: bytes, *, mode: int = 0o600, mtime: int = 0) -> bytes:
    """Return header, content and padding of a small file member."""
    return encode_header(name, len(content), mode=mode, mtime=mtime) + content + bytes(-len(content) % BLOCK_BYTES)
