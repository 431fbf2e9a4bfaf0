"""Read the WAL that a recovery can use: whose it is, what it says about the target, where it ends. Reads only.

The facts found here are judged by `reachability`; which segments count is decided by `chain`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from polarvault.errors import IntegrityError, WalGap
from polarvault.model.lsn import Lsn
from polarvault.recovery.ends import find_continuation
from polarvault.recovery.reachability import ValidWalEnd
from polarvault.recovery.search import RecordFinder, TargetSearch
from polarvault.recovery.side_effects import REFUSED_WAL_LEVEL
from polarvault.recovery.target import RecoveryTarget, TargetKind
from polarvault.recovery.wal.chain import BackupSpan, ChainSegment, UnusableFile, WalChain
from polarvault.recovery.wal.stock import WalStock
from polarvault.wal.scan import WalMark, WalScanner

# Called with the bytes of WAL read so far and those that may have to be read.
ScanProgress = Callable[[int, int], None]

# How far to go on behind the record at which recovery stops.
_LOOK_ON_BYTES = 1 << 30
# How many segments to look back for the time of the last transaction.
_LOOK_BACK = 4
# Every file's first page is looked at, up to this many at either end: a large archive on NFS takes its time.
_CHECKED_FILES = 500


def check_chain(stock: WalStock, chain: WalChain, system_identifier: int | None) -> WalChain:
    """Look at the first pages: raise WalGap for another cluster's WAL, cut the chain before what is no WAL.

    What a fetch would refuse there is kept in the chain's `unusable`; where nothing has been written yet WAL just ends.
    """
    files = chain.files
    numbers = range(len(files))
    for position in sorted({*numbers[:_CHECKED_FILES], *numbers[-_CHECKED_FILES:]}):
        if not _is_its_segment(stock, files[position], system_identifier):
            missing = files[position]
            behind = [file for file in files[position + 1 :] if _is_its_segment(stock, file, system_identifier)]
            look = stock.look_at_start(missing)
            unusable = UnusableFile(missing.path, look.problem, look.hint) if look.problem is not None else None
            return replace(
                chain, files=files[:position], missing=missing.segment, later=behind[0] if behind else None,
                limit=None, unusable=unusable,
            )  # fmt: skip
    if chain.later is not None and not _is_its_segment(stock, chain.later, system_identifier):
        chain = replace(chain, later=None)
    return replace(chain, unusable=stock.foreign_form(chain.missing))


def _is_its_segment(stock: WalStock, file: ChainSegment, system_identifier: int | None) -> bool:
    look = stock.look_at_start(file)
    header, segment = look.header, file.segment
    if header is None:
        return False
    where = f'segment {segment.file_name} (timeline {segment.timeline_id}, LSN {segment.start}) in "{file.path}"'
    if system_identifier is not None and header.system_identifier != system_identifier:
        raise WalGap(
            f"{where} is of another cluster: its system identifier is {header.system_identifier}, the backup's "
            f"{system_identifier}",
            hint="name the WAL directory of the cluster that was backed up: --wal DIR",
        )
    if look.problem is not None or header.page_address != segment.start:
        return False
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
        if search.barrier is not None:
            return _end_at_barrier(search.barrier, file, search.seen_last, scanner.last_lsn)
        if _is_decided(search, scanner):
            return None
        if reason is not None or position == len(files) - 1:
            end = _judged_end(stock, chain, file, scanner, reason)
            return replace(end, last_transaction=search.seen_last)
    return None


def _end_at_barrier(
    barrier: WalMark, file: ChainSegment, last_transaction: WalMark | None, last_lsn: Lsn | None
) -> ValidWalEnd:
    before = last_lsn if last_lsn is not None and last_lsn < barrier.lsn else None
    return ValidWalEnd(barrier.lsn, REFUSED_WAL_LEVEL, file.path, last_transaction, is_refused=True, last_lsn=before)


def _judged_end(
    stock: WalStock, chain: WalChain, file: ChainSegment, scanner: WalScanner, reason: str | None
) -> ValidWalEnd:
    """Say where the WAL ends that was read up to a file, and whether that is its end or damage.

    reason: why valid WAL ends inside of the file, None when it does not.
    """
    end = ValidWalEnd(scanner.next_lsn, reason or "the last segment ends", file.path, last_lsn=scanner.last_lsn)
    if reason is None:
        return end
    follows = None
    if scanner.end is not None:
        try:
            follows = find_continuation(stock.read(file), file.segment.start, scanner.end, chain.history.timeline_of)
        except IntegrityError:
            follows = None  # It cannot be read to its end, which is reason enough.
    if file is not chain.files[-1]:
        # A short one before others is what a receiver leaves that was started anew in another directory.
        more = "more segments follow"
        return replace(end, is_broken=True, is_damaged=not file.is_short or follows is not None, follows=more)
    if follows is not None and follows.is_certain and file.partial and _has_grown(stock, file, scanner):
        return replace(end, reason="the segment is being received")
    if follows is not None and follows.is_certain:
        return replace(end, is_broken=True, is_damaged=True, follows=str(follows))
    if scanner.end is None and not file.partial:
        # Under its final name a file is whole, or something is wrong with it.
        return replace(end, is_broken=True, is_damaged=True)
    return replace(end, follows=None if follows is None else str(follows))


def _has_grown(stock: WalStock, file: ChainSegment, scanner: WalScanner) -> bool:
    """Tell whether valid WAL goes further than it was read: a receiver has written what seems to follow its end.

    It writes in order, so that all before what has been seen is there by now, unless it is damaged.
    """
    again = WalScanner(file.segment.start, file.segment.size_bytes)
    for view in stock.read(file):
        again.feed(view)
    return again.next_lsn > scanner.next_lsn


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
    if file.size_bytes is not None and file.size_bytes > file.segment.size_bytes:
        return f"the file has {file.size_bytes} bytes, more than a segment"
    try:
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
            if position >= end or _is_decided(search, scanner) or search.barrier is not None:
                return None
    except IntegrityError as damaged:
        # A compressed file that is cut or damaged.
        return damaged.message
    return f"the file ends after {position - file.segment.start} bytes"


def _is_decided(search: TargetSearch, scanner: WalScanner) -> bool:
    kind = search.target.kind
    if kind is TargetKind.IMMEDIATE:
        return search.consistent_lsn is not None and scanner.next_lsn >= search.consistent_lsn
    # A stop before the end of the backup is an error, so that end has to be known as well.
    if search.stop is None or search.consistent_lsn is None:
        return False
    # What follows tells how far one could go, whether a name occurs again, and whether clocks were put back.
    return scanner.next_lsn - search.stop.lsn > _LOOK_ON_BYTES


def find_end(stock: WalStock, chain: WalChain, span: BackupSpan) -> ValidWalEnd:
    """Return where the valid WAL of a chain ends, reading only its last segments."""
    target = RecoveryTarget(TargetKind.LATEST)
    end: ValidWalEnd | None = None
    looked = 0
    for file in reversed(chain.files):
        search = TargetSearch(target, file.segment.start, span.start_lsn, span.end_lsn)
        scanner = WalScanner(file.segment.start, file.segment.size_bytes)
        reason = _scan_file(stock, chain, file, scanner, None, search)
        if search.barrier is not None:
            end = _end_at_barrier(search.barrier, file, None, scanner.last_lsn)
        elif end is None:
            if scanner.next_lsn <= file.segment.start:
                continue
            end = _judged_end(stock, chain, file, scanner, reason)
        looked += 1
        if search.seen_last is not None:
            return replace(end, last_transaction=search.seen_last)
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
            return replace(
                _judged_end(stock, chain, file, scanner, reason), last_transaction=search.seen_last, is_broken=True
            )
    return None
