"""Serve one file to a recovery: the work of `polarvault wal fetch`.

Theory. The server asks for one file at a time and takes three answers: here it is, it is not there, something is wrong
(manual, "Recovering Using a Continuous Archive Backup"). "Not there" is how a recovery learns that the WAL has ended,
so it is said only when every directory could be asked. A finished file that is damaged is never replaced by a partial
one: recovery would end early and nobody would know.

The server reads the file only after a good answer, and makes it durable itself before it relies on it (it renames the
file durably). What must never happen is half a segment under the target's name; `output` gives it its name last.
"""

from __future__ import annotations

import os
import time

from polarvault.errors import IntegrityError, PolarvaultError, StorageFailed, UsageError
from polarvault.storage.copying import copy_content
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.segment_header import LONG_HEADER_BYTES, SegmentHeader, parse_segment_header, valid_bytes
from polarvault.walarchive.directory import (
    OTHER_COPY,
    CutShort,
    WalFile,
    first_bytes,
    forms_of,
    is_backup_history_name,
    is_history_name,
    is_segment_name,
    longest,
    read_wal,
)
from polarvault.walarchive.output import Output, write_sparsely

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# A file that is being copied into the directory is waited for as long as it grows, and this long when it does not.
DEFAULT_GRACE_S = 10.0
_POLL_S = 0.1
# What other archive_commands make of a segment.
_FOREIGN_SUFFIXES = (".bz2", ".xz", ".lzma", ".lzo", ".br", ".gpg", ".enc")
# Each time a file was renamed or removed between finding and opening it; more often is no coincidence.
_MOST_LOOKS = 20


class Fetcher:
    """Serves the requests of one recovery.

    system_identifier: of the cluster that is recovered; None: not checked. refuse_empty: a directory without any entry
    means that its file system is not mounted, instead of that there is no WAL yet. warn is called with a line about
    each damaged file for which another directory has a good one.
    """

    def __init__(
        self,
        directories: Sequence[str],
        *,
        system_identifier: int | None = None,
        refuse_empty: bool = False,
        grace_s: float = DEFAULT_GRACE_S,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._directories = tuple(directories)
        self._system_identifier = system_identifier
        self._refuse_empty = refuse_empty
        self._grace_s = grace_s
        self._warn = warn

    def fetch(self, name: str, target: str) -> bool:
        """Put the file that the server calls `name` at the path `target`; return False if it is in no directory.

        A segment arrives with its full size, what a partial one lacks as a hole. Raises StorageFailed for directories
        and files that cannot be read or written, IntegrityError for content that is not `name`'s.
        """
        is_segment = is_segment_name(name.removesuffix(".partial"))
        if not (is_segment or is_history_name(name) or is_backup_history_name(name)):
            raise UsageError(f'"{name}" is not the name of a WAL segment, a history file or a backup history file')
        looks, seen_bytes, give_up_at = 0, -1, time.monotonic() + self._grace_s
        while True:
            try:
                return self._attempt(name, target)
            except CutShort as problem:
                size_bytes = _size_of(problem.path)
                if size_bytes != seen_bytes:
                    seen_bytes, give_up_at = size_bytes, time.monotonic() + self._grace_s
                if time.monotonic() >= give_up_at:
                    raise
                # An archive_command such as the manual's cp writes to the final name and may be at it right now.
                time.sleep(_POLL_S)
            except _Moved as problem:
                looks += 1
                if looks == _MOST_LOOKS:
                    raise StorageFailed(f'"{problem}" appears and disappears while it is looked for') from problem

    def _attempt(self, name: str, target: str) -> bool:
        found: list[WalFile] = []
        problems: list[PolarvaultError] = []
        for directory in self._directories:
            try:
                forms = forms_of(directory, name)
            except StorageFailed as problem:
                problems.append(problem)
                continue
            if self._serve_finished(forms, target, problems):
                return True
            found += forms
        if problems:
            raise problems[0]
        has_empty = self._check_directories()
        self._look_again(name, found)
        self._check_foreign_forms(name)
        best = longest([file for file in found if self._holds_wal(file)])
        if best is not None:
            self._serve(best, target)
            return True
        if has_empty is not None and self._refuse_empty:
            raise StorageFailed(
                f'WAL directory "{has_empty}" is empty, so "{name}" may be missing rather than not written yet',
                hint="mount its file system, or leave --refuse-empty out if nothing has been archived so far",
            )
        return False

    def _serve_finished(self, files: list[WalFile], target: str, problems: list[PolarvaultError]) -> bool:
        """Serve the first of the finished files that is good; what is wrong with others is added to problems."""
        for file in files:
            if not file.is_final and is_segment_name(file.segment_name):
                continue
            try:
                self._serve(file, target)
            except (IntegrityError, StorageFailed) as problem:
                problems.append(problem)
                continue
            for passed_over in problems:
                self._warn(f'{passed_over.message}; "{file.path}" is used instead')
            return True
        return False

    def _look_again(self, name: str, found: list[WalFile]) -> None:
        # A partial file that got its final name between the looks for the one and the other would have been missed.
        known = {file.path for file in found}
        for directory in self._directories:
            for file in forms_of(directory, name, whole_only=True):
                if file.path not in known:
                    raise _Moved(file.path)

    def _check_directories(self) -> str | None:
        """Raise StorageFailed unless every directory can be read; return one that is empty, if any."""
        empty = None
        for directory in self._directories:
            try:
                with os.scandir(directory) as entries:
                    if next(entries, None) is None:
                        empty = empty or directory
            except OSError as problem:
                raise StorageFailed(
                    f'WAL directory "{directory}" cannot be read: {os.strerror(problem.errno or 0)}',
                    hint=f"mount its file system or correct --wal; try as the server's user: ls {directory}",
                ) from problem
        return empty

    def _check_foreign_forms(self, name: str) -> None:
        """Raise StorageFailed if the file is there in a form that cannot be read: that is not the end of the WAL."""
        for directory in self._directories:
            for suffix in _FOREIGN_SUFFIXES:
                path = os.path.join(directory, name + suffix)
                if os.path.exists(path):
                    raise StorageFailed(
                        f'"{path}" is compressed or encrypted in a way that is not understood here',
                        hint="unpack it in the directory; .gz, .lz4 and .zst are read as they are",
                    )

    def _holds_wal(self, file: WalFile) -> bool:
        """Tell whether a file that may end early holds anything of its segment."""
        start = first_bytes(file)
        header = parse_segment_header(start)
        if header is None:
            # Zeros: made ahead of time, nothing written yet. In pg_wal whatever is no WAL is older than the segment.
            return not file.in_pg_wal and start.strip(b"\0") != b""
        self._check_system(file, header)
        return not file.in_pg_wal or header.page_address == _start_of(file.segment_name, header)

    def _serve(self, file: WalFile, target: str) -> None:
        try:
            if is_segment_name(file.segment_name):
                self._serve_segment(file, target)
            else:
                _serve_small(file, target)
        except StorageFailed as problem:
            if isinstance(problem.__cause__, FileNotFoundError) and not os.path.lexists(file.path):
                raise _Moved(file.path) from problem
            raise

    def _serve_segment(self, file: WalFile, target: str) -> None:
        start = first_bytes(file)
        header = parse_segment_header(start)
        if header is None:
            if file.is_final and len(start) < LONG_HEADER_BYTES:
                raise CutShort(file.path, f'"{file.path}" ends after {len(start)} bytes')
            raise IntegrityError(f'"{file.path}" does not begin with a WAL page', hint=OTHER_COPY)
        self._check_system(file, header)
        _check_place(file, header)
        with Output(target) as output:
            if file.compression is None:
                _copy_plain(file, header, output)
            else:
                _decompress(file, header, output)
            output.publish()

    def _check_system(self, file: WalFile, header: SegmentHeader) -> None:
        if self._system_identifier not in (None, header.system_identifier):
            raise IntegrityError(
                f'"{file.path}" is of the cluster with system identifier {header.system_identifier}, '
                f"not of {self._system_identifier}, which is recovered",
                hint="name the right directory with --wal; pg_controldata prints a cluster's identifier",
            )


class _Moved(Exception):
    """A file was renamed or removed while it was looked for: receivewal finished it, or retention came by."""


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _start_of(segment_name: str, header: SegmentHeader) -> int:
    # The middle field of a name counts 4 GiB, the last one segments.
    return (int(segment_name[8:16], 16) << 32) + int(segment_name[16:], 16) * header.segment_size_bytes


def _check_place(file: WalFile, header: SegmentHeader) -> None:
    name, size_bytes = file.segment_name, header.segment_size_bytes
    if header.page_address != _start_of(name, header):
        number = header.page_address % (1 << 32) // size_bytes
        real = f"{header.timeline_id:08X}{header.page_address >> 32:08X}{number:08X}"
        raise IntegrityError(f'"{file.path}" holds the content of segment {real}', hint=OTHER_COPY)
    # Pages from before a switch are copied to the new timeline's first segment, so an older timeline is right.
    if header.timeline_id > int(name[:8], 16):
        raise IntegrityError(f'"{file.path}" holds WAL of timeline {header.timeline_id}', hint=OTHER_COPY)


def _copy_plain(file: WalFile, header: SegmentHeader, output: Output) -> None:
    segment_bytes = header.segment_size_bytes
    try:
        with open_regular(file.path) as source:
            reading = source.fileno()
            size_bytes = os.fstat(reading).st_size
            _check_size(file, size_bytes, segment_bytes)
            if file.is_final:
                useful_bytes = segment_bytes
            else:
                useful_bytes = valid_bytes(lambda at, length: os.pread(reading, length, at), header, size_bytes)
            copy_content(reading, output.descriptor, useful_bytes)
        os.ftruncate(output.descriptor, segment_bytes)
    except OSError as problem:
        raise storage_failed(problem, f'copy "{file.path}" to', output.target) from problem


def _decompress(file: WalFile, header: SegmentHeader, output: Output) -> None:
    size_bytes = write_sparsely(output, read_wal(file), most_bytes=header.segment_size_bytes)
    _check_size(file, size_bytes, header.segment_size_bytes)
    output.resize(header.segment_size_bytes)


def _check_size(file: WalFile, size_bytes: int, segment_bytes: int) -> None:
    if size_bytes > segment_bytes:
        raise IntegrityError(f'"{file.path}" holds more than a segment of {segment_bytes} bytes', hint=OTHER_COPY)
    if size_bytes < segment_bytes and file.is_final:
        message = f'"{file.path}" ends after {size_bytes} of {segment_bytes} bytes'
        if file.compression is None:
            raise CutShort(file.path, message)
        raise IntegrityError(message, hint=OTHER_COPY)


def _serve_small(file: WalFile, target: str) -> None:
    """Serve a history file; a crash of a careless archive_command leaves it empty or full of zeros."""
    content = b"".join(map(bytes, read_wal(file)))
    if not content:
        raise CutShort(file.path, f'"{file.path}" is empty')
    if b"\0" in content:
        raise IntegrityError(f'"{file.path}" is damaged: zero at byte {content.index(0)}', hint=OTHER_COPY)
    with Output(target) as output:
        write_sparsely(output, iter([memoryview(content)]))
        output.publish()
