"""One file that holds WAL: what its name says, and what it is by its first page.

It was written by pg_receivewal, `polarvault receivewal` or an archive_command (cp, gzip), or lies in a server's pg_wal.
Forms of a segment: SEGMENT, SEGMENT.gz, .lz4, .zst, and each of them with .partial at the end.

In pg_wal a name promises nothing: the newest segment is not finished, and the files after it are older segments that
wait under a new name to be overwritten (manual, "WAL Configuration"). The first page tells what a file really holds.

`polarvault wal fetch` imports this for every segment of a recovery: nothing heavy may be imported at the top.
"""

from __future__ import annotations

import os

from polarvault.errors import IntegrityError
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.names import is_segment_name
from polarvault.wal.segment_header import (
    LONG_HEADER_BYTES,
    OTHER_COPY,
    SegmentHeader,
    StartLook,
    address_of,
    judge_place,
    parse_segment_header,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from polarvault.wal.source import WalCopy

_COMPRESSIONS = ("gz", "lz4", "zst")
# Plain before compressed, which costs more to read; whole before partial. The last ones are made by an archive_command
# that compresses: a promoted server archives the unfinished segment of the old timeline as SEGMENT.partial.
_WHOLE_SUFFIXES = ("", ".gz", ".lz4", ".zst")
_SUFFIXES = (
    *_WHOLE_SUFFIXES,
    *(suffix + ".partial" for suffix in _WHOLE_SUFFIXES),
    *(".partial" + suffix for suffix in _WHOLE_SUFFIXES[1:]),
)
READ_BYTES = 1 << 20
# How files begin that are no WAL: a program, and what to do about it.
_MAGICS = (
    (b"\x1f\x8b", "compressed with gzip", ".gz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", ".zst"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", ".lz4"),
    (b"BZh", "compressed with bzip2", None),
    (b"\xfd7zXZ\x00", "compressed with xz", None),
    (b"age-encryption.org/", "encrypted with age", None),
    (b"Salted__", "encrypted with openssl", None),
)


class CutShort(IntegrityError):
    """A file under its final name ends too early: it was cut, or it is being written right now."""

    id = "wal-cut-short"
    remedy = "take another copy of the segment from the server or another WAL archive"

    def __init__(self, copy: WalCopy, message: str) -> None:
        super().__init__(message, hint=OTHER_COPY)
        self.copy = copy


class WalFile:
    """A `wal.source.WalCopy` that is a file of its own.

    name: without the suffixes, as the server asks for it. compression: None, "gz", "lz4" or "zst". partial: the name
    ends in .partial. in_pg_wal: it lies in a server's pg_wal, so that even a whole one may end in zeros or old bytes.
    """

    # Not a dataclass: importing dataclasses takes longer than a whole fetch.
    __slots__ = ("compression", "in_pg_wal", "name", "partial", "path")

    def __init__(self, path: str, name: str, compression: str | None, *, partial: bool, in_pg_wal: bool) -> None:
        self.path = path
        self.name = name
        self.compression = compression
        self.partial = partial
        self.in_pg_wal = in_pg_wal

    @property
    def where(self) -> str:
        """The path."""
        return self.path

    @property
    def is_final(self) -> bool:
        """Whether the file was given its name when it was finished; others may end before the segment does."""
        return not self.partial and not self.in_pg_wal and not self.name.endswith(".partial")

    @property
    def size_bytes(self) -> int | None:
        """The size of a plain file; raise StorageFailed."""
        if self.compression is not None:
            return None
        try:
            return os.path.getsize(self.path)
        except OSError as problem:
            raise storage_failed(problem, "read", self.path) from problem

    def views(self, *, piece_bytes: int = READ_BYTES) -> Iterator[memoryview]:
        """Yield the plain content; of a compressed file as `read_compressed` does."""
        try:
            if self.compression is None:
                yield from read_plain(self.path, piece_bytes)
            else:
                from polarvault.walfiles.reading import read_compressed

                yield from read_compressed(self, piece_bytes)
        except OSError as problem:
            raise storage_failed(problem, "read", self.path) from problem

    def pieces(self, skip_bytes: int = 0) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and content; a plain file is not read where it is passed over."""
        from polarvault.walfiles.pieces import Extent, in_pieces

        size = self.size_bytes
        return in_pieces(self.views()) if size is None else Extent(self.path, 0, size).pieces(skip_bytes)

    def open_plain(self) -> BinaryIO | None:
        """Open a plain file; raise OSError."""
        return None if self.compression is not None else open_regular(self.path)

    def stored_bytes(self) -> int | None:
        """Return the file's size now."""
        try:
            return os.stat(self.path).st_size
        except FileNotFoundError:
            return 0 if os.path.lexists(self.path) else None

    def may_end_early(self) -> WalFile:
        """Return the file, taken for a partial one."""
        return WalFile(self.path, self.name, self.compression, partial=True, in_pg_wal=self.in_pg_wal)

    def look_at_start(self) -> StartLook:
        """Say what a file of a segment is; raise IntegrityError or StorageFailed if it cannot be read."""
        start = b"" if self.is_final and self._is_empty() else first_bytes(self)
        header = parse_segment_header(start)
        if header is not None:
            is_older = self.in_pg_wal and header.page_address != address_of(self.name, header)
            return StartLook(None) if is_older else judge_place(self.name, header)
        is_hollow = start.strip(b"\0") == b""
        # Zeros: made ahead of time, nothing written yet. In pg_wal whatever is no WAL is older than the segment.
        if not self.is_final and (is_hollow or self.in_pg_wal):
            return StartLook(None)
        if is_hollow:
            words = "begins with zeros: no WAL is in it" if start else "is empty"
            hint = f"{OTHER_COPY}; or move it away if nothing was ever written to it"
            return StartLook(None, words, is_hollow=True, hint=hint)
        for magic, what, suffix in _MAGICS:
            if self.compression is None and start.startswith(magic):
                import shlex

                path = shlex.quote(self.path)
                act = f"rename it: mv {path} {path}{suffix}" if suffix else "unpack it in the directory"
                return StartLook(None, f"is {what}, under the name of a plain segment", hint=act)
        if len(start) < LONG_HEADER_BYTES and self.is_final:
            return StartLook(None, f"ends after {len(start)} bytes")
        return StartLook(None, "does not begin with a WAL page")

    def _is_empty(self) -> bool:
        try:
            return os.stat(self.path).st_size == 0
        except FileNotFoundError:
            return False
        except OSError as problem:
            raise storage_failed(problem, "look at", self.path) from problem

    def __repr__(self) -> str:
        return f"WalFile({self.path!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WalFile) and (self.path, self.name) == (other.path, other.name)

    def __hash__(self) -> int:
        return hash((self.path, self.name))


def read_plain(path: str, piece_bytes: int) -> Iterator[memoryview]:
    """Yield the content of a plain file; raise OSError."""
    with open_regular(path) as source:
        while piece := source.read(piece_bytes):
            yield memoryview(piece)


def wal_file(directory: str, file_name: str, *, in_pg_wal: bool) -> WalFile:
    """Take the suffixes off a file's name."""
    stem, _, _ = file_name.partition(".")
    suffix = file_name[len(stem) :]
    if is_segment_name(stem) and suffix in _SUFFIXES:
        return _file(directory, stem, suffix, in_pg_wal=in_pg_wal)
    for ending in _WHOLE_SUFFIXES[1:]:
        if file_name.endswith(ending):
            return _file(directory, file_name[: -len(ending)], ending, in_pg_wal=in_pg_wal)
    return _file(directory, file_name, "", in_pg_wal=in_pg_wal)


def _file(directory: str, name: str, suffix: str, *, in_pg_wal: bool) -> WalFile:
    compressions = [part for part in suffix.split(".") if part in _COMPRESSIONS]
    return WalFile(
        os.path.join(directory, name + suffix),
        name,
        compressions[0] if compressions else None,
        partial="partial" in suffix,
        in_pg_wal=in_pg_wal,
    )


def forms_of(directory: str, name: str) -> list[WalFile]:
    """Return the files of a directory that hold what the server calls `name`, best first; nothing is opened."""
    suffixes = _SUFFIXES if is_segment_name(name) else _WHOLE_SUFFIXES
    found = [suffix for suffix in suffixes if _is_file(os.path.join(directory, name + suffix))]
    in_pg_wal = bool(found) and is_pg_wal(directory)
    return [_file(directory, name, suffix, in_pg_wal=in_pg_wal) for suffix in found]


def is_pg_wal(directory: str) -> bool:
    """Tell a server's pg_wal from a directory that only receives finished files: the server keeps its notes inside."""
    return os.path.isdir(os.path.join(directory, "archive_status"))


def _is_file(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError as problem:
        # Not "it is not there": an archive that cannot be read must never look like the end of the WAL.
        raise storage_failed(problem, "look for", path) from problem
    return True


def first_bytes(copy: WalCopy) -> bytes:
    """Return what the first page's header takes, fewer bytes of a copy that is shorter."""
    for view in copy.views(piece_bytes=4096):
        return bytes(view[:LONG_HEADER_BYTES])
    return b""


def read_segment_header(copy: WalCopy) -> SegmentHeader:
    """Return the facts on a segment's first page; raise IntegrityError when no WAL segment begins like this."""
    header = parse_segment_header(first_bytes(copy))
    if header is None:
        raise IntegrityError(f'"{copy.where}" does not begin with the first page of a WAL segment', hint=OTHER_COPY)
    return header
