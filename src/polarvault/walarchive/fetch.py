"""Serve one file to a recovery: the work of `polarvault wal fetch`.

Theory. The server asks for one file at a time and takes three answers: here it is, it is not there, something is
wrong (manual, "Recovering Using a Continuous Archive Backup"). "Not there" is how a recovery learns that the WAL has
ended, so it is said only when every directory could be asked. A finished file that is damaged is never replaced by a
partial one: recovery would end early and nobody would know. A partial one is only served where the server has less of
the segment itself: it prefers what it is given, and puts it in the place of its own file (server:
KeepFileRestoredFromArchive in access/transam/xlogarchive.c). A standby that had streamed more would lose that, and
could not be promoted: at the end of recovery the last record is read once more.

The server reads the file only after a good answer, and makes it durable itself before it relies on it (it renames the
file durably). What must never happen is half a segment under the target's name; `output` gives it its name last.
"""

from __future__ import annotations

import os
import time

from polarvault.errors import IntegrityError, PolarvaultError, StorageFailed, UsageError
from polarvault.storage.copying import copy_content
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.names import is_backup_history_name, is_history_name, is_segment_name
from polarvault.wal.segment_header import OTHER_COPY, SegmentHeader, valid_bytes
from polarvault.walarchive.output import Output, write_sparsely
from polarvault.walfiles.choice import holds_wal, longest, valid_end, valid_end_in_server
from polarvault.walfiles.files import CutShort

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import BinaryIO

    from polarvault.wal.source import WalCopy, WalSource

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
        sources: Sequence[WalSource],
        *,
        system_identifier: int | None = None,
        refuse_empty: bool = False,
        grace_s: float = DEFAULT_GRACE_S,
        last_segment: str | None = None,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._sources = tuple(sources)
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
                size_bytes = problem.copy.stored_bytes() or 0
                if size_bytes != seen_bytes:
                    seen_bytes, give_up_at = size_bytes, time.monotonic() + self._grace_s
                if time.monotonic() >= give_up_at:
                    best = self._best_instead(problem, name)
                    if best is None:
                        raise
                    return self._serve_unfinished(best, name, target, instead_of=problem)
                # An archive_command such as the manual's cp writes to the final name and may be at it right now.
                time.sleep(_POLL_S)
            except _Moved as problem:
                looks += 1
                if looks == _MOST_LOOKS:
                    raise StorageFailed(f'"{problem}" appears and disappears while it is looked for') from problem

    def _attempt(self, name: str, target: str) -> bool:
        found: list[WalCopy] = []
        problems: list[PolarvaultError] = []
        for source in self._sources:
            try:
                forms = self._judged(source.copies(name))
            except (StorageFailed, IntegrityError) as problem:
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
            return self._serve_unfinished(best, name, target)
        if has_empty is not None and self._refuse_empty:
            raise StorageFailed(
                f'WAL directory "{has_empty[0]}" {has_empty[1]}, so "{name}" may be missing rather than not written '
                "yet",
                hint="mount its file system, or leave --refuse-empty out if nothing has been archived so far",
            )
        return False

    def _judged(self, files: Sequence[WalCopy]) -> list[WalCopy]:
        """Take every file of the last segment for one that may end early: that it does was accepted."""
        if self._last is None:
            return list(files)
        return [file.may_end_early() if _is_segment(file) and file.name[8:24] == self._last else file for file in files]

    def _best_unfinished(self, files: list[WalCopy]) -> WalCopy | None:
        unfinished = [file for file in files if not file.is_final and holds_wal(file)]
        for file in unfinished:
            header = file.look_at_start().header
            if header is not None:
                self._check_system(file, header)
        return longest(unfinished)

    def _best_instead(self, problem: CutShort, name: str) -> WalCopy | None:
        """Return the unfinished file that counts in the place of a finished one that has stayed empty."""
        if not isinstance(problem, _Hollow):
            return None
        return self._best_unfinished([file for source in self._sources for file in source.copies(name)])

    def _serve_unfinished(
        self, file: WalCopy, name: str, target: str, *, instead_of: PolarvaultError | None = None
    ) -> bool:
        """Serve a file that may end early; return False if the server has as much itself."""
        if _server_has(file, name, target):
            return False
        self._serve(file, target)
        if instead_of is not None:
            self._warn(f'{instead_of.message}; "{file.where}" is used instead')
        return True

    def _serve_finished(self, files: list[WalCopy], target: str, problems: list[PolarvaultError]) -> bool:
        """Serve the first of the finished files that is good; what is wrong with others is added to problems."""
        for file in files:
            if not file.is_final and _is_segment(file):
                continue
            try:
                self._serve(file, target)
            except (IntegrityError, StorageFailed) as problem:
                problems.append(problem)
                continue
            for passed_over in problems:
                self._warn(f'{passed_over.message}; "{file.where}" is used instead')
            return True
        return False

    def _look_again(self, name: str, found: list[WalCopy]) -> None:
        # A partial file that got its final name between the looks for the one and the other would have been missed.
        known = {file.where for file in found}
        for source in self._sources:
            for file in source.copies(name):
                if not file.partial and file.where not in known:
                    raise _Moved(file.where)

    def _check_directories(self) -> tuple[str, str] | None:
        """Raise StorageFailed unless every directory can be read; return one that holds no WAL, if any, and what it is.

        Only asked when a file was not found, which is rare; the look ends at the first WAL file.
        """
        without = None
        for source in self._sources:
            try:
                found = source.lack()
            except StorageFailed as problem:
                why = os.strerror(getattr(problem.__cause__, "errno", None) or 0)
                raise StorageFailed(
                    f'WAL directory "{source.place}" cannot be read: {why}',
                    hint=f"mount its file system or correct --wal; try as the server's user: ls {source.place}",
                ) from problem
            if found is not None and without is None:
                without = source.place, found[0]
        return without

    def _check_foreign_forms(self, name: str) -> None:
        """Raise StorageFailed if the file is there in a form that cannot be read: that is not the end of the WAL."""
        path = next(filter(None, (source.foreign_form(name) for source in self._sources)), None)
        if path is not None:
            raise StorageFailed(
                f'"{path}" is compressed or encrypted in a way that is not understood here',
                hint="unpack it in the directory; .gz, .lz4 and .zst are read as they are",
            )

    def _serve(self, file: WalCopy, target: str) -> None:
        try:
            if _is_segment(file):
                self._serve_segment(file, target)
            else:
                _serve_small(file, target)
        except StorageFailed as problem:
            if isinstance(problem.__cause__, FileNotFoundError) and file.stored_bytes() is None:
                raise _Moved(file.where) from problem
            raise

    def _serve_segment(self, file: WalCopy, target: str) -> None:
        look = file.look_at_start()
        if look.problem is not None:
            message = f'"{file.where}" {look.problem}'
            if look.is_hollow:
                raise _Hollow(file, message, hint=look.hint)
            if look.header is None and file.is_final and look.problem.startswith("ends after"):
                raise CutShort(file, message)
            raise IntegrityError(message, hint=look.hint)
        header = look.header
        if header is None:
            raise IntegrityError(f'"{file.where}" holds no WAL', hint=OTHER_COPY)
        self._check_system(file, header)
        with Output(target) as output:
            _copy(file, header, output)
            output.publish()

    def _check_system(self, file: WalCopy, header: SegmentHeader) -> None:
        if self._system_identifier not in (None, header.system_identifier):
            raise IntegrityError(
                f'"{file.where}" is of the cluster with system identifier {header.system_identifier}, '
                f"not of {self._system_identifier}, which is recovered",
                hint="name the right directory with --wal; pg_controldata prints a cluster's identifier",
            )


class _Hollow(CutShort):
    """A finished file that holds nothing: it is being written right now, or was lost in a crash."""

    id = "wal-empty"

    def __init__(self, copy: WalCopy, message: str, *, hint: str) -> None:
        super().__init__(copy, message)
        self.hint = hint


class _Moved(Exception):
    """A file was renamed or removed while it was looked for: receivewal finished it, or retention came by."""


def _is_segment(file: WalCopy) -> bool:
    return is_segment_name(file.name.removesuffix(".partial"))


def _server_has(file: WalCopy, name: str, target: str) -> bool:
    """Tell whether the server that wants a segment at `target` should go on with its own file of that name.

    That is so where it has more of it, or as much: with archive_mode = always it archives what it is given, which would
    wait for a rest that does not come when it is promoted. But one that a switch ends is whole, and has to be archived.
    """
    own = os.path.join(os.path.dirname(target), name)
    if os.path.basename(target) == name or not os.path.exists(own):
        return False
    header = file.look_at_start().header
    there = 0 if header is None else valid_end_in_server(own, name, header.system_identifier)
    if header is None or not there:
        return False
    here = valid_end(file)
    return there > here or (there == here and not _ends_in_switch(own, header, there))


def _ends_in_switch(path: str, header: SegmentHeader, length: int) -> bool:
    # Rare, and more to import than a fetch mostly needs.
    from polarvault.walarchive.pushing.files import ends_in_switch

    try:
        with open_regular(path) as stream:
            return ends_in_switch(stream, header, length)
    except OSError:
        return False


def _copy(file: WalCopy, header: SegmentHeader, output: Output) -> None:
    segment_bytes = header.segment_size_bytes
    try:
        stream = file.open_plain()
        if stream is not None:
            with stream:
                _copy_plain(file, stream, header, output)
            os.ftruncate(output.descriptor, segment_bytes)
            return
    except OSError as problem:
        raise storage_failed(problem, f'copy "{file.where}" to', output.target) from problem
    size_bytes = write_sparsely(output, file.views(), most_bytes=segment_bytes)
    _check_size(file, size_bytes, segment_bytes, is_stored=False)
    output.resize(segment_bytes)


def _copy_plain(file: WalCopy, stream: BinaryIO, header: SegmentHeader, output: Output) -> None:
    reading = stream.fileno()
    size_bytes = os.fstat(reading).st_size
    _check_size(file, size_bytes, header.segment_size_bytes, is_stored=True)
    if file.is_final:
        useful_bytes = header.segment_size_bytes
    else:
        useful_bytes = valid_bytes(lambda at, length: os.pread(reading, length, at), header, size_bytes)
    copy_content(reading, output.descriptor, useful_bytes)


def _check_size(file: WalCopy, size_bytes: int, segment_bytes: int, *, is_stored: bool) -> None:
    if size_bytes > segment_bytes:
        raise IntegrityError(f'"{file.where}" holds more than a segment of {segment_bytes} bytes', hint=OTHER_COPY)
    if size_bytes < segment_bytes and file.is_final:
        message = f'"{file.where}" ends after {size_bytes} of {segment_bytes} bytes'
        if is_stored:
            raise CutShort(file, message)
        raise IntegrityError(message, hint=OTHER_COPY)


def _serve_small(file: WalCopy, target: str) -> None:
    """Serve a history file; a crash of a careless archive_command leaves it empty or full of zeros."""
    content = b"".join(map(bytes, file.views()))
    if not content:
        raise CutShort(file, f'"{file.where}" is empty')
    if b"\0" in content:
        raise IntegrityError(f'"{file.where}" is damaged: zero at byte {content.index(0)}', hint=OTHER_COPY)
    with Output(target) as output:
        write_sparsely(output, iter([memoryview(content)]))
        output.publish()
