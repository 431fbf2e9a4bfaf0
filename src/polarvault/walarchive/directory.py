"""WAL directories as a source: which files hold a segment, in what form, and their plain content.

A directory was written by pg_receivewal, `polarvault receivewal` or an archive_command (cp, gzip), or is a server's
pg_wal itself. Forms of a segment: SEGMENT, SEGMENT.gz, .lz4, .zst, and each of them with .partial at the end.

In pg_wal a name promises nothing: the newest segment is not finished, and the files after it are older segments that
wait under a new name to be overwritten (manual, "WAL Configuration"). The first page tells what a file really holds.

`polarvault wal fetch` imports this for every segment of a recovery: nothing heavy may be imported at the top.
"""

from __future__ import annotations

import os

from polarvault.errors import IntegrityError
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.segment_header import LONG_HEADER_BYTES, SegmentHeader, parse_segment_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from polarvault.model.segment import WalSegment

_COMPRESSIONS = ("gz", "lz4", "zst")
# Plain before compressed, which costs more to read; whole before partial. The last ones are made by an archive_command
# that compresses: a promoted server archives the unfinished segment of the old timeline as SEGMENT.partial.
_WHOLE_SUFFIXES = ("", ".gz", ".lz4", ".zst")
_SUFFIXES = (
    *_WHOLE_SUFFIXES,
    *(suffix + ".partial" for suffix in _WHOLE_SUFFIXES),
    *(".partial" + suffix for suffix in _WHOLE_SUFFIXES[1:]),
)
OTHER_COPY = "take another copy from the server or another WAL directory; pg_waldump shows what a segment holds"
READ_BYTES = 1 << 20
_HEX = frozenset("0123456789ABCDEF")


class WalFile:
    """One file of a WAL directory.

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
    def segment_name(self) -> str:
        """The name without .partial, which belongs to the name when exactly that was asked for."""
        return self.name.removesuffix(".partial")

    @property
    def is_final(self) -> bool:
        """Whether the file was given its name when it was finished; others may end before the segment does."""
        return not self.partial and not self.in_pg_wal and not self.name.endswith(".partial")

    def __repr__(self) -> str:
        return f"WalFile({self.path!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WalFile) and (self.path, self.name) == (other.path, other.name)

    def __hash__(self) -> int:
        return hash((self.path, self.name))


class CutShort(IntegrityError):
    """A file under its final name ends too early: it was cut, or it is being written right now."""

    id = "wal-cut-short"
    remedy = "take another copy of the segment from the server or another WAL archive"

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message, hint=OTHER_COPY)
        self.path = path


def is_segment_name(name: str) -> bool:
    """Tell whether a name is that of a segment: 24 hexadecimal digits."""
    return len(name) == 24 and _HEX.issuperset(name)


def is_history_name(name: str) -> bool:
    """Tell whether a name is that of a timeline history file."""
    return len(name) == 16 and name.endswith(".history") and _HEX.issuperset(name[:8])


def is_backup_history_name(name: str) -> bool:
    """Tell whether a name is that of a backup history file: SEGMENT.OFFSET.backup."""
    return len(name) == 40 and is_segment_name(name[:24]) and name[24] == "." and name.endswith(".backup")


def is_written(history: bytes) -> bool:
    """Tell a history file from what a crash of a careless archive_command leaves of it: nothing, or zeros."""
    return history != b"" and b"\0" not in history


def is_pg_wal(directory: str) -> bool:
    """Tell a server's pg_wal from a directory that only receives finished files: the server keeps its notes inside."""
    return os.path.isdir(os.path.join(directory, "archive_status"))


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


def forms_of(directory: str, name: str, *, whole_only: bool = False) -> list[WalFile]:
    """Return the files of a directory that hold what the server calls `name`, best first; nothing is opened."""
    whole_only = whole_only or not is_segment_name(name)
    suffixes = _WHOLE_SUFFIXES if whole_only else _SUFFIXES
    found = [suffix for suffix in suffixes if _is_file(os.path.join(directory, name + suffix))]
    in_pg_wal = bool(found) and is_pg_wal(directory)
    return [_file(directory, name, suffix, in_pg_wal=in_pg_wal) for suffix in found]


def _is_file(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError as problem:
        # Not "it is not there": an archive that cannot be read must never look like the end of the WAL.
        raise storage_failed(problem, "look for", path) from problem
    return True


class WalDirectories:
    """An ordered search list of WAL directories; looks at them anew with every call."""

    def __init__(self, paths: Sequence[str], segment_size_bytes: int) -> None:
        self.paths = tuple(paths)
        self.segment_size_bytes = segment_size_bytes

    def find(self, segment: WalSegment) -> WalFile | None:
        """Return the best file for a segment.

        The rule is that of `choice`, which a fetch follows as well.
        """
        from polarvault.walarchive.choice import choose

        return choose([file for path in self.paths for file in forms_of(path, segment.file_name)], segment)

    def segments(self, timeline_id: int) -> list[int]:
        """Return the numbers of all segments of a timeline that are there in some form, sorted."""
        from polarvault.model.segment import WalSegment
        from polarvault.walarchive.choice import is_recycled

        numbers = set()
        for file in self._files():
            if is_segment_name(file.name) and int(file.name[:8], 16) == timeline_id:
                try:
                    segment = WalSegment.parse(file.name, self.segment_size_bytes)
                except ValueError:
                    continue  # A name of another segment size; the first fetch or scan says so.
                if segment.number not in numbers and not is_recycled(file, segment.start):
                    numbers.add(segment.number)
        return sorted(numbers)

    def timelines(self) -> list[int]:
        """Return every timeline of which there is a segment or a history file, sorted."""
        names = {file.name for file in self._files()}
        return sorted({int(name[:8], 16) for name in names if is_segment_name(name) or is_history_name(name)})

    def history(self, timeline_id: int) -> bytes | None:
        """Return the content of a timeline's history file, the first one that a fetch would serve."""
        contents = [
            b"".join(map(bytes, read_wal(file)))
            for path in self.paths
            for file in forms_of(path, f"{timeline_id:08X}.history")
        ]
        return next((content for content in contents if is_written(content)), contents[0] if contents else None)

    def _files(self) -> Iterator[WalFile]:
        for path in self.paths:
            in_pg_wal = is_pg_wal(path)
            try:
                names = os.listdir(path)
            except OSError as problem:
                raise storage_failed(problem, "read directory", path) from problem
            for name in names:
                yield wal_file(path, name, in_pg_wal=in_pg_wal)


def first_bytes(file: WalFile) -> bytes:
    """Return what the first page's header takes, fewer bytes of a file that is shorter."""
    for view in read_wal(file, piece_bytes=4096):
        return bytes(view[:LONG_HEADER_BYTES])
    return b""


def read_segment_header(file: WalFile) -> SegmentHeader:
    """Return the facts on a segment file's first page; raise IntegrityError when no WAL segment begins like this."""
    header = parse_segment_header(first_bytes(file))
    if header is None:
        raise IntegrityError(
            f'"{file.path}" does not begin with the first page of a WAL segment',
            hint=OTHER_COPY,
        )
    return header


def find_segment_header(paths: Sequence[str]) -> SegmentHeader | None:
    """Return the facts of some segment in these directories, such as the segment size; None when there is none."""
    for path in paths:
        in_pg_wal = is_pg_wal(path)
        try:
            names = sorted(os.listdir(path), reverse=True)
        except OSError as problem:
            raise storage_failed(problem, "read directory", path) from problem
        for name in names:
            file = wal_file(path, name, in_pg_wal=in_pg_wal)
            if is_segment_name(file.name):
                header = parse_segment_header(first_bytes(file))
                if header is not None:
                    return header
    return None


def read_wal(file: WalFile, *, piece_bytes: int = READ_BYTES) -> Iterator[memoryview]:
    """Yield the plain content of a file in order; a view is valid until the next one is asked for.

    A compressed partial that is cut or has a damaged tail ends quietly at the last byte that can be decoded. Of any
    other compressed file damage or a missing end raises IntegrityError with the file and the position in it.
    """
    try:
        if file.compression is None:
            yield from _read_plain(file.path, piece_bytes)
        elif file.partial:
            yield from _read_compressed_partial(file, piece_bytes)
        else:
            yield from _read_compressed(file, piece_bytes)
    except OSError as problem:
        raise storage_failed(problem, "read", file.path) from problem


def _read_plain(path: str, piece_bytes: int) -> Iterator[memoryview]:
    with open_regular(path) as source:
        while piece := source.read(piece_bytes):
            yield memoryview(piece)


def _read_compressed(file: WalFile, piece_bytes: int) -> Iterator[memoryview]:
    from polarvault.pipeline.decompress import decoder_for

    decoder = decoder_for(f".{file.compression}", file.path, IntegrityError)
    try:
        for piece in _read_plain(file.path, piece_bytes):
            for views in decoder.feed([piece]):
                yield from views
    except IntegrityError as problem:
        problem.hint = OTHER_COPY
        raise
    if not decoder.is_whole:
        raise CutShort(file.path, f'"{file.path}" ends at byte {decoder.position}, before its compressed content does')


def _read_compressed_partial(file: WalFile, piece_bytes: int) -> Iterator[memoryview]:
    from polarvault.pipeline.decompress import decoder_for

    what = f".{file.compression}"
    decoder = decoder_for(what, file.path, IntegrityError)
    try:
        for piece in _read_plain(file.path, piece_bytes):
            for views in decoder.feed([piece]):
                yield from views
        for views in decoder.rest():
            yield from views
        return
    except IntegrityError:
        good_bytes = decoder.position
    # A decoder that fails keeps what it decoded of the failing piece to itself: go there once more, byte by byte.
    decoder = decoder_for(what, file.path, IntegrityError)
    position = 0
    try:
        for piece in _read_plain(file.path, piece_bytes):
            before = max(0, min(good_bytes - position, len(piece)))
            for _ in decoder.feed([piece[:before]]):
                pass
            for offset in range(before, len(piece)):
                for views in decoder.feed([piece[offset : offset + 1]]):
                    yield from views
            position += len(piece)
    except IntegrityError:
        return
