"""Look at the WAL that a recovery can use: what is there, whose it is, what it says about the target. Reads only.

The facts found here are judged by `reachability`; which segments count is decided by `chain`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from polarvault.backupset.model import Area, BackupSource, Inventory, Part, wal_name_of
from polarvault.backupset.tarstream import read_tar
from polarvault.errors import IntegrityError, StorageFailed, WalGap
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.tar import MemberBegins, MemberData, MemberEnds
from polarvault.recovery.chain import BackupSpan, ChainSegment, WalChain
from polarvault.recovery.reachability import ValidWalEnd
from polarvault.recovery.search import RecordFinder, TargetSearch
from polarvault.recovery.target import RecoveryTarget, TargetKind
from polarvault.wal.history import TimelineHistory, history_file_name
from polarvault.wal.scan import WalScanner
from polarvault.wal.segment_header import LONG_HEADER_BYTES, SegmentHeader, parse_segment_header
from polarvault.walarchive.directory import (
    READ_BYTES,
    WalDirectories,
    WalFile,
    is_history_name,
    is_segment_name,
    is_written,
    read_wal,
)

# Called with the bytes of WAL read so far and those that may have to be read.
ScanProgress = Callable[[int, int], None]

# How far to go on behind a restore point to see whether its name occurs again.
_REPEAT_SEARCH_BYTES = 4 << 30
# How many segments to look back for the time of the last transaction.
_LOOK_BACK = 4
# Every file's first page is looked at, up to this many at either end: a large archive on NFS takes its time.
_CHECKED_FILES = 500
_HEADER_PIECE_BYTES = 4096
# How often to look for a segment that was listed a moment ago.
_MOST_LOOKS = 20


class WalStock:
    """The segments and histories of the WAL directories and of the backup itself."""

    def __init__(
        self, source: BackupSource, inventory: Inventory, directories: Sequence[str], segment_size_bytes: int
    ) -> None:
        self._size = segment_size_bytes
        self._given = WalDirectories(directories, segment_size_bytes)
        own = [os.path.join(part.path, "pg_wal") for part in source.parts if not part.is_tar]
        self._own = WalDirectories([path for path in own if os.path.isdir(path)], segment_size_bytes)
        self._tars = _wal_tars(source)
        self._opened: dict[ChainSegment, WalFile] = {}
        self._own_tar_wal = inventory.wal if self._tars else {}
        self._tar_histories = {
            name.rpartition("/")[2]: content
            for (_, name), content in inventory.files.items()
            if is_history_name(name.rpartition("/")[2])
        }

    def files(self, first_number: int) -> dict[tuple[int, int], ChainSegment]:
        """Return every segment from a number on, by timeline and number; the WAL directories come before the backup."""
        found: dict[tuple[int, int], ChainSegment] = {}
        for directories, in_backup in ((self._own, True), (self._given, False)):
            for timeline_id in directories.timelines():
                for number in directories.segments(timeline_id):
                    segment = WalSegment(timeline_id, number, self._size)
                    if number >= first_number and (file := self._noted(directories, segment, in_backup=in_backup)):
                        found[timeline_id, number] = file
        for name in self._own_tar_wal:
            if is_segment_name(name) and self._tars:
                segment = WalSegment.parse(name, self._size)
                key = (segment.timeline_id, segment.number)
                if segment.number >= first_number and key not in found:
                    found[key] = ChainSegment(segment, self._tars[0].path, in_backup=True, partial=True)
        return found

    def _noted(self, directories: WalDirectories, segment: WalSegment, *, in_backup: bool) -> ChainSegment | None:
        """Find a segment that was listed; None if it is not there any more.

        A receiver at work gives files their final names: between two looks one seems not to be there at all.
        """
        for _ in range(_MOST_LOOKS):
            try:
                file = directories.find(segment)
                size = os.path.getsize(file.path) if file is not None and file.compression is None else None
            except (StorageFailed, FileNotFoundError) as problem:
                if not _is_gone(problem):
                    raise
                continue
            if file is not None:
                noted = ChainSegment(segment, file.path, in_backup, not file.is_final, size)
                self._opened[noted] = file
                return noted
        return None

    def histories(self) -> tuple[dict[int, TimelineHistory], dict[int, str]]:
        """Return the history of every timeline that has a good file, and of timeline 1; and why others have none."""
        contents = {int(name[:8], 16): content for name, content in self._tar_histories.items()}
        for directories in (self._own, self._given):
            for timeline_id in directories.timelines():
                history = directories.history(timeline_id)
                if history is not None:
                    contents[timeline_id] = history
        found, problems = {1: TimelineHistory(1)}, {}
        for timeline_id, content in contents.items():
            try:
                found[timeline_id] = TimelineHistory.parse(content, timeline_id)
            except IntegrityError as damaged:
                # The server writes such files itself (see `settled_timeline`); only who wants that timeline is stopped.
                problems[timeline_id] = damaged.message
        for timeline_id in self._given.timelines():
            if timeline_id not in contents and timeline_id > 1:
                problems[timeline_id] = f"there is WAL of it, but no {history_file_name(timeline_id)}"
        return found, problems

    def unwritten_histories(self) -> dict[int, str]:
        """Return, by timeline, the names of history files that no fetch serves: the server would stop at each."""
        contents = {timeline_id: self._given.history(timeline_id) for timeline_id in self._given.timelines()}
        return {
            timeline_id: history_file_name(timeline_id)
            for timeline_id, content in contents.items()
            if content is not None and not is_written(content)
        }

    def read(self, file: ChainSegment, *, piece_bytes: int = READ_BYTES) -> Iterator[memoryview]:
        """Yield a segment's content in order; a view is valid until the next is asked for."""
        if file not in self._opened:
            for part in self._tars:
                yield from _member_of(part, file.segment.file_name)
            return
        views = read_wal(self._opened[file], piece_bytes=piece_bytes)
        try:
            first = next(views, None)
        except StorageFailed as problem:
            again = self._given.find(file.segment) if _is_gone(problem) else None
            if again is None:
                raise
            # Finished by its receiver since it was found, and renamed.
            self._opened[file] = again
            views = read_wal(again, piece_bytes=piece_bytes)
            first = next(views, None)
        if first is not None:
            yield first
        yield from views

    def header(self, file: ChainSegment) -> SegmentHeader | None:
        """Return the facts on a segment's first page; None when no WAL begins there."""
        first = next(self.read(file, piece_bytes=_HEADER_PIECE_BYTES), memoryview(b""))
        return parse_segment_header(bytes(first[:LONG_HEADER_BYTES]))


def _is_gone(problem: BaseException) -> bool:
    return isinstance(problem, FileNotFoundError) or isinstance(problem.__cause__, FileNotFoundError)


def _wal_tars(source: BackupSource) -> list[Part]:
    """Return the tar files that can hold the backup's own WAL; a pg_wal.tar of its own holds all of it."""
    tars = [part for part in source.parts if part.is_tar and part.area is not Area.TABLESPACE]
    return [part for part in tars if part.area is Area.WAL] or tars


def _member_of(part: Part, segment_name: str) -> Iterator[memoryview]:
    wanted = False
    for event in read_tar(part):
        if isinstance(event, MemberBegins):
            wanted = wal_name_of(part.area, event.member.name) == segment_name
        elif isinstance(event, MemberData) and wanted:
            yield from event.views
        elif isinstance(event, MemberEnds) and wanted:
            return


def check_chain(stock: WalStock, chain: WalChain, system_identifier: int | None) -> WalChain:
    """Look at the first pages: raise WalGap for another cluster's WAL, cut the chain before what is no WAL."""
    files = chain.files
    numbers = range(len(files))
    for position in sorted({*numbers[:_CHECKED_FILES], *numbers[-_CHECKED_FILES:]}):
        if not _is_its_segment(stock, files[position], system_identifier):
            missing = files[position].segment
            behind = [file for file in files[position + 1 :] if _is_its_segment(stock, file, system_identifier)]
            return replace(
                chain, files=files[:position], missing=missing, later=behind[0] if behind else None, limit=None
            )
    if chain.later is not None and not _is_its_segment(stock, chain.later, system_identifier):
        return replace(chain, later=None)
    return chain


def _is_its_segment(stock: WalStock, file: ChainSegment, system_identifier: int | None) -> bool:
    header = stock.header(file)
    segment = file.segment
    if header is None or header.page_address != segment.start:
        return False
    where = f'segment {segment.file_name} (timeline {segment.timeline_id}, LSN {segment.start}) in "{file.path}"'
    if system_identifier is not None and header.system_identifier != system_identifier:
        raise WalGap(
            f"{where} is of another cluster: its system identifier is {header.system_identifier}, the backup's "
            f"{system_identifier}",
            hint="name the WAL directory of the cluster that was backed up: --wal DIR",
        )
    if header.segment_size_bytes != segment.size_bytes:
        raise WalGap(
            f"{where} is {header.segment_size_bytes} bytes long, the backup's cluster has segments of "
            f"{segment.size_bytes} bytes",
            hint="name the WAL directory of the cluster that was backed up: --wal DIR",
        )
    return True


def scan(stock: WalStock, chain: WalChain, search: TargetSearch, progress: ScanProgress) -> ValidWalEnd | None:
    """Read WAL until the target is decided; return where valid WAL ends if it was read to its end, else None.

    Everything that recovery will apply is read: damage on the way ends it early, without an error from the server when
    the target is the end of the WAL, and records on the way say what recovery does beside the data.
    """
    files = chain.since(search.start_lsn)
    if not files:
        return ValidWalEnd(chain.end, "no segment follows", "")
    scanner = WalScanner(files[0].segment.start, files[0].segment.size_bytes)
    lsn = search.target.lsn
    finder = None if lsn is None else RecordFinder(lsn, files[0].segment.size_bytes)
    total = sum(file.segment.size_bytes for file in files)
    done = 0
    for position, file in enumerate(files):
        reason = _scan_file(stock, chain, file, scanner, finder, search)
        done += file.segment.size_bytes
        progress(done, total)
        if _is_decided(search, scanner):
            return None
        if reason is not None or position == len(files) - 1:
            broken = reason is not None and position < len(files) - 1
            return ValidWalEnd(
                scanner.next_lsn, reason or "the last segment ends", file.path, search.last_transaction, broken
            )
    return None


def _scan_file(
    stock: WalStock,
    chain: WalChain,
    file: ChainSegment,
    scanner: WalScanner,
    finder: RecordFinder | None,
    search: TargetSearch,
) -> str | None:
    """Feed one segment; return why valid WAL ends in it, None when it does not."""
    position, end = int(file.segment.start), int(min(file.segment.end, chain.end))
    for whole in stock.read(file):
        view = whole[: end - position]
        search.take_scanned(scanner.feed(view))
        if finder is not None and search.stop is None:
            finder.feed(view, position)
            if finder.found is not None:
                search.stop_at_record(finder.found)
        position += len(view)
        if scanner.end_reason is not None:
            return scanner.end_reason
        if position >= end or _is_decided(search, scanner):
            return None
    return f"the file ends after {position - file.segment.start} bytes"


def _is_decided(search: TargetSearch, scanner: WalScanner) -> bool:
    kind = search.target.kind
    if kind is TargetKind.IMMEDIATE:
        return search.consistent_lsn is not None and scanner.next_lsn >= search.consistent_lsn
    # A stop before the end of the backup is an error, so that end has to be known as well.
    if search.stop is None or search.consistent_lsn is None:
        return False
    # The first point of that name counts; whether another follows is worth a limited look.
    return kind is not TargetKind.NAME or scanner.next_lsn - search.stop.lsn > _REPEAT_SEARCH_BYTES


def find_end(stock: WalStock, chain: WalChain, span: BackupSpan) -> ValidWalEnd:
    """Return where the valid WAL of a chain ends, reading only its last segments."""
    target = RecoveryTarget(TargetKind.LATEST)
    end: ValidWalEnd | None = None
    looked = 0
    for file in reversed(chain.files):
        search = TargetSearch(target, file.segment.start, span.start_lsn, span.end_lsn)
        scanner = WalScanner(file.segment.start, file.segment.size_bytes)
        reason = _scan_file(stock, chain, file, scanner, None, search)
        if end is None:
            if scanner.next_lsn <= file.segment.start:
                continue
            end = ValidWalEnd(scanner.next_lsn, reason or "the last segment ends", file.path)
        looked += 1
        if search.last_transaction is not None:
            return replace(end, last_transaction=search.last_transaction)
        if looked >= _LOOK_BACK:
            break
    return end or ValidWalEnd(span.start_lsn, "there is no valid WAL", "")


def broken_segment(stock: WalStock, chain: WalChain, span: BackupSpan) -> ValidWalEnd | None:
    """Return where WAL ends too early in a file that may be short although others follow; None when none does.

    A partial segment before others is what a receiver leaves that was started anew in another directory.
    """
    for file in chain.files[:-1]:
        if not file.is_short:
            continue
        search = TargetSearch(RecoveryTarget(TargetKind.LATEST), file.segment.start, span.start_lsn, span.end_lsn)
        scanner = WalScanner(file.segment.start, file.segment.size_bytes)
        reason = _scan_file(stock, chain, file, scanner, None, search)
        if reason is not None:
            return ValidWalEnd(scanner.next_lsn, reason, file.path, search.last_transaction, is_broken=True)
    return None
