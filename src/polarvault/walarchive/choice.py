"""Which of several files a recovery is given for a segment, and what none of them is good for: one rule.

`polarvault wal fetch` answers a server by it, and a plan foretells by it what the server will be answered. A finished
file wins over one that may end early, because of the latter nobody knows whether it ends where the WAL does. Of
finished ones the first good one is taken, in the order of the directories and plain before compressed; of the others
the one with the longest valid content. A finished file that holds nothing at all (a crash of a careless archive_command
leaves it empty, or full of zeros) loses against one that holds WAL. Anything else that is wrong with a finished file is
an error, never the end of the WAL.
"""

from __future__ import annotations

import os

from polarvault.errors import IntegrityError, StorageFailed
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.segment_header import (
    LONG_HEADER_BYTES,
    SegmentHeader,
    is_valid_page,
    parse_segment_header,
    valid_bytes,
)
from polarvault.walarchive.directory import (
    OTHER_COPY,
    WalFile,
    first_bytes,
    is_backup_history_name,
    is_history_name,
    is_segment_name,
    read_wal,
    wal_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from polarvault.model.segment import WalSegment

# What other archive_commands make of a segment, in forms that are not read here.
FOREIGN_SUFFIXES = (".bz2", ".xz", ".lzma", ".lzo", ".br", ".gpg", ".enc", ".age")
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
_HEX = frozenset("0123456789ABCDEF")
_SHOWN_NAMES = 3
_LISTED_NAMES = 100_000


class StartLook:
    """What the beginning of a file says. problem: why it is not its segment, in words that follow the file's name.

    is_hollow: the file holds nothing at all. Without header and problem nothing of the segment has been written yet.
    """

    # Not a dataclass: importing dataclasses takes longer than a whole fetch.
    __slots__ = ("header", "hint", "is_hollow", "problem")

    def __init__(
        self, header: SegmentHeader | None, problem: str | None = None, *, is_hollow: bool = False, hint: str = ""
    ) -> None:
        self.header = header
        self.problem = problem
        self.is_hollow = is_hollow
        self.hint = hint or OTHER_COPY


def look_at_start(file: WalFile) -> StartLook:
    """Say what a file of a segment is by its first page; raise IntegrityError or StorageFailed if it cannot be read."""
    start = b"" if file.is_final and _size_of(file.path) == 0 else first_bytes(file)
    header = parse_segment_header(start)
    if header is not None:
        return _judge_place(file, header)
    is_hollow = start.strip(b"\0") == b""
    # Zeros: made ahead of time, nothing written yet. In pg_wal whatever is no WAL is older than the segment.
    if not file.is_final and (is_hollow or file.in_pg_wal):
        return StartLook(None)
    if is_hollow:
        words = "begins with zeros: no WAL is in it" if start else "is empty"
        hint = f"{OTHER_COPY}; or move it away if nothing was ever written to it"
        return StartLook(None, words, is_hollow=True, hint=hint)
    for magic, what, suffix in _MAGICS:
        if file.compression is None and start.startswith(magic):
            import shlex

            path = shlex.quote(file.path)
            act = f"rename it: mv {path} {path}{suffix}" if suffix else "unpack it in the directory"
            return StartLook(None, f"is {what}, under the name of a plain segment", hint=act)
    if len(start) < LONG_HEADER_BYTES and file.is_final:
        return StartLook(None, f"ends after {len(start)} bytes")
    return StartLook(None, "does not begin with a WAL page")


def _judge_place(file: WalFile, header: SegmentHeader) -> StartLook:
    name, size_bytes = file.segment_name, header.segment_size_bytes
    # The middle field of a name counts 4 GiB, the last one segments.
    wanted = (int(name[8:16], 16) << 32) + int(name[16:], 16) * size_bytes
    if header.page_address != wanted:
        if file.in_pg_wal:
            return StartLook(None)
        number = header.page_address % (1 << 32) // size_bytes
        real = f"{header.timeline_id:08X}{header.page_address >> 32:08X}{number:08X}"
        words, hint = f"holds the content of segment {real}", OTHER_COPY
        if header.page_address < wanted:
            words += ", which is older"
            hint += "; a server's pg_wal keeps older segments under new names: move it away if it was copied from there"
        return StartLook(header, words, hint=hint)
    # Pages from before a switch are copied to the new timeline's first segment, so an older timeline is right.
    if header.timeline_id > int(name[:8], 16):
        return StartLook(header, f"holds WAL of timeline {header.timeline_id}")
    return StartLook(header)


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1
    except OSError as problem:
        raise storage_failed(problem, "look at", path) from problem


def choose(files: Sequence[WalFile], segment: WalSegment) -> WalFile | None:
    """Return the best of the files that are there for a segment, in the order of the search list; None if none is."""
    final = [file for file in files if file.is_final]
    others = [file for file in files if not file.is_final]
    if final:
        # One alone is not opened here: an archive may hold many thousands.
        if len(final) == 1 and not others:
            return final[0]
        good = next((file for file in final if _looks_good(file, segment)), None)
        if good is not None:
            return good
        partial = longest([file for file in others if holds_wal(file)]) if all(map(_is_hollow, final)) else None
        return partial or final[0]
    return longest([file for file in others if holds_wal(file)])


def _is_hollow(file: WalFile) -> bool:
    try:
        return look_at_start(file).is_hollow
    except IntegrityError:
        return False


def holds_wal(file: WalFile) -> bool:
    """Tell whether a file holds anything of its segment, or something that is wrong and has to be said."""
    look = look_at_start(file)
    return look.header is not None or look.problem is not None


def is_recycled(file: WalFile, start: int) -> bool:
    """Tell whether a file in pg_wal holds nothing of the segment that its name speaks of."""
    if not file.in_pg_wal:
        return False
    header = parse_segment_header(first_bytes(file))
    return header is None or header.page_address != start


def longest(files: Sequence[WalFile]) -> WalFile | None:
    """Return the file with the longest valid content; the first of equal ones, None of none."""
    if len(files) < 2:
        return files[0] if files else None
    return max(files, key=_valid_end)


def _valid_end(file: WalFile) -> int:
    """Return how many bytes of valid WAL a file holds: whole pages by their headers, the last one up to its zeros."""
    header = parse_segment_header(first_bytes(file))
    if header is None:
        return 0
    if file.compression is not None:
        return _valid_end_of_stream(file, header)
    try:
        with open_regular(file.path) as source:

            def read(offset: int, length: int) -> bytes:
                return os.pread(source.fileno(), length, offset)

            end = valid_bytes(read, header, os.fstat(source.fileno()).st_size)
            start_of_last = max(0, end - 1) // header.page_bytes * header.page_bytes
            return start_of_last + len(read(start_of_last, end - start_of_last).rstrip(b"\0"))
    except OSError as problem:
        raise storage_failed(problem, "read", file.path) from problem


def _valid_end_of_stream(file: WalFile, header: SegmentHeader) -> int:
    pages, kept, last = 0, b"", b""
    for view in read_wal(file):
        kept += view
        whole = len(kept) // header.page_bytes * header.page_bytes
        for start in range(0, whole, header.page_bytes):
            page = kept[start : start + header.page_bytes]
            if not is_valid_page(page[:16], header, pages):
                return max(0, pages - 1) * header.page_bytes + len(last.rstrip(b"\0"))
            pages, last = pages + 1, page
        kept = kept[whole:]
    if is_valid_page(kept[:16], header, pages):
        pages, last = pages + 1, kept
    return max(0, pages - 1) * header.page_bytes + len(last.rstrip(b"\0"))


def _looks_good(file: WalFile, segment: WalSegment) -> bool:
    """Tell whether a finished file has its segment's first page and, where that is seen without reading it, size."""
    try:
        header = parse_segment_header(first_bytes(file))
        size_bytes = os.path.getsize(file.path) if file.compression is None else segment.size_bytes
    except (IntegrityError, StorageFailed, OSError):
        return False
    return header is not None and (header.page_address, size_bytes) == (segment.start, segment.size_bytes)


def foreign_form(directories: Sequence[str], name: str) -> str | None:
    """Return the path of a segment in a form that cannot be read here; None if there is none."""
    for directory in directories:
        for suffix in FOREIGN_SUFFIXES:
            path = os.path.join(directory, name + suffix)
            if os.path.exists(path):
                return path
    return None


def unrecognised(directory: str) -> tuple[str, str] | None:
    """Say what a directory is that holds no WAL file by its name, and what to do; None for one that holds WAL.

    Raises StorageFailed if it cannot be read.
    """
    names: list[str] = []
    for name in _names(directory):
        if _is_wal_name(name):
            return None
        if len(names) < _LISTED_NAMES:
            names.append(name)
    if not names:
        return "is empty", "mount its file system, or leave this --wal out if nothing has been archived so far"
    below = [name for name in sorted(names) if os.path.isdir(os.path.join(directory, name))]
    with_wal = [name for name in below if any(_is_wal_name(inner) for inner in _names_if_any(directory, name))]
    if with_wal:
        barman = all(len(name) == 16 and _HEX.issuperset(name) for name in with_wal)
        # Recovery crosses from one of these to the next.
        shown = " ".join(f"--wal {os.path.join(directory, name)}" for name in with_wal[:_SHOWN_NAMES])
        more = f" and so on for all {len(with_wal)}" if len(with_wal) > _SHOWN_NAMES else ""
        what = "Barman's layout, one directory for 256 segments" if barman else "one level too high"
        return f"holds no WAL itself, but its sub-directories do ({what})", f"name them: {shown}{more}"
    odd = next((name for name in sorted(names) if is_segment_name(name[:24])), None)
    if odd is None:
        inner = ((name, other) for name in below for other in _names_if_any(directory, name))
        odd = next((f"{name}/{other}" for name, other in inner if is_segment_name(other[:24])), None)
    if odd is not None:
        return (
            f'holds no file named as a WAL segment, but "{odd}": the repository of another backup program',
            "have that program put the segments into a directory under their own names (pgbackrest archive-get, "
            "barman get-wal), or name it as the archive: --set restore_command=...",
        )
    return (
        f'holds no file named as a WAL segment (such as 000000010000000000000001), but "{sorted(names)[0]}"',
        "name the directory with the segments: --wal DIR",
    )


def _names_if_any(directory: str, name: str) -> list[str]:
    try:
        return os.listdir(os.path.join(directory, name))
    except OSError:
        return []  # Not a directory that we may look into: it is none to be named either.


def _names(directory: str) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                yield entry.name
    except OSError as problem:
        raise storage_failed(problem, "read directory", directory) from problem


def _is_wal_name(file_name: str) -> bool:
    for suffix in FOREIGN_SUFFIXES:
        # Of it will be said that it cannot be read, which is another thing.
        file_name = file_name.removesuffix(suffix)
    name = wal_file("", file_name, in_pg_wal=False).name
    return is_segment_name(name) or is_history_name(name) or is_backup_history_name(name)
