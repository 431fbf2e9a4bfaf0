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
from polarvault.wal.segment_header import SegmentHeader, valid_bytes
from polarvault.walarchive.choice import foreign_form, holds_wal, longest, look_at_start, unrecognised
from polarvault.walarchive.directory import (
    OTHER_COPY,
    CutShort,
    WalFile,
    forms_of,
    is_backup_history_name,
    is_history_name,
    is_segment_name,
    read_wal,
)
from polarvault.walarchive.output import Output, write_sparsely

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# A file that is being copied into the directory is waited for as long as it grows, and this long when it does not.
DEFAULT_GRACE_S = 10.0
_POLL_S = 0.1
# Each time a file was renamed or removed between finding and opening it; more often is no coincidence.
_MOST_LOOKS = 20


class Fetcher:
    """Serves the requests of one recovery.

    system_identifier: of the cluster that is recovered; None: not checked. refuse_empty: a directory without any WAL
    file means that its file system is not mounted, instead of that there is no WAL yet. last_segment: the name of the
    segment in which recovery is to end, whatever is wrong with it and whatever follows; its timeline does not count.
    warn is called with a line about each damaged file for which there is a good one.
    """

    def __init__(
        self,
        directories: Sequence[str],
        *,
        system_identifier: int | None = None,
        refuse_empty: bool = False,
        grace_s: float = DEFAULT_GRACE_S,
        last_segment: str | None = None,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._directories = tuple(directories)
        self._system_identifier = system_identifier
        self._refuse_empty = refuse_empty
        self._grace_s = grace_s
        # Behind the 8 digits of the timeline; they sort like the segments.
        self._last = None if last_segment is None else last_segment[8:24]
        self._warn = warn

    def fetch(self, name: str, target: str) -> bool:
        """Put the file that the server calls `name` at the path `target`; return False if it is in no directory.

        A segment arrives with its full size, what a partial one lacks as a hole. Raises StorageFailed for directories
        and files that cannot be read or written, IntegrityError for content that is not `name`'s.
        """
        is_segment = is_segment_name(name.removesuffix(".partial"))
        if not (is_segment or is_history_name(name) or is_backup_history_name(name)):
            raise UsageError(f'"{name}" is not the name of a WAL segment, a history file or a backup history file')
        if is_segment and self._last is not None and name[8:24] > self._last:
            return False
        looks, seen_bytes, give_up_at = 0, -1, time.monotonic() + self._grace_s
        while True:
            try:
                return self._attempt(name, target)
            except CutShort as problem:
                size_bytes = _size_of(problem.path)
                if size_bytes != seen_bytes:
                    seen_bytes, give_up_at = size_bytes, time.monotonic() + self._grace_s
                if time.monotonic() >= give_up_at:
                    if self._serve_instead(problem, name, target):
                        return True
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
                forms = self._judged(forms_of(directory, name))
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
        best = self._best_unfinished(found)
        if best is not None:
            self._serve(best, target)
            return True
        if has_empty is not None and self._refuse_empty:
            raise StorageFailed(
                f'WAL directory "{has_empty[0]}" {has_empty[1]}, so "{name}" may be missing rather than not written '
                "yet",
                hint="mount its file system, or leave --refuse-empty out if nothing has been archived so far",
            )
        return False

    def _judged(self, files: list[WalFile]) -> list[WalFile]:
        """Take every file of the last segment for one that may end early: that it does was accepted."""
        if self._last is None:
            return files
        return [
            WalFile(file.path, file.name, file.compression, partial=True, in_pg_wal=file.in_pg_wal)
            if is_segment_name(file.segment_name) and file.segment_name[8:24] == self._last
            else file
            for file in files
        ]

    def _best_unfinished(self, files: list[WalFile]) -> WalFile | None:
        unfinished = [file for file in files if not file.is_final and holds_wal(file)]
        for file in unfinished:
            header = look_at_start(file).header
            if header is not None:
                self._check_system(file, header)
        return longest(unfinished)

    def _serve_instead(self, problem: CutShort, name: str, target: str) -> bool:
        """Serve an unfinished file in the place of a finished one that has stayed empty."""
        if not isinstance(problem, _Hollow):
            return False
        best = self._best_unfinished([file for path in self._directories for file in forms_of(path, name)])
        if best is None:
            return False
        self._serve(best, target)
        self._warn(f'{problem.message}; "{best.path}" is used instead')
        return True

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

    def _check_directories(self) -> tuple[str, str] | None:
        """Raise StorageFailed unless every directory can be read; return one that holds no WAL, if any, and what it is.

        Only asked when a file was not found, which is rare; the look ends at the first WAL file.
        """
        without = None
        for directory in self._directories:
            try:
                found = unrecognised(directory)
            except StorageFailed as problem:
                why = os.strerror(getattr(problem.__cause__, "errno", None) or 0)
                raise StorageFailed(
                    f'WAL directory "{directory}" cannot be read: {why}',
                    hint=f"mount its file system or correct --wal; try as the server's user: ls {directory}",
                ) from problem
            if found is not None and without is None:
                without = directory, found[0]
        return without

    def _check_foreign_forms(self, name: str) -> None:
        """Raise StorageFailed if the file is there in a form that cannot be read: that is not the end of the WAL."""
        path = foreign_form(self._directories, name)
        if path is not None:
            raise StorageFailed(
                f'"{path}" is compressed or encrypted in a way that is not understood here',
                hint="unpack it in the directory; .gz, .lz4 and .zst are read as they are",
            )

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
        look = look_at_start(file)
        if look.problem is not None:
            message = f'"{file.path}" {look.problem}'
            if look.is_hollow:
                raise _Hollow(file.path, message, hint=look.hint)
            if look.header is None and file.is_final and look.problem.startswith("ends after"):
                raise CutShort(file.path, message)
            raise IntegrityError(message, hint=look.hint)
        header = look.header
        if header is None:
            raise IntegrityError(f'"{file.path}" holds no WAL', hint=OTHER_COPY)
        self._check_system(file, header)
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


class _Hollow(CutShort):
    """A finished file that holds nothing: it is being written right now, or was lost in a crash."""

    id = "wal-empty"

    def __init__(self, path: str, message: str, *, hint: str) -> None:
        super().__init__(path, message)
        self.hint = hint


class _Moved(Exception):
    """A file was renamed or removed while it was looked for: receivewal finished it, or retention came by."""


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


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
