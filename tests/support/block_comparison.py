"""Block maps beside what servers say and do: their own WAL summaries, and the files of two cold copies."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from polarvault.model.lsn import Lsn
from polarvault.model.relation import FREE_SPACE_FORK, INIT_FORK, MAIN_FORK, VISIBILITY_FORK
from polarvault.model.segment import WalSegment
from polarvault.wal.block_maps.builder import BlockMapBuilder
from polarvault.wal.block_maps.changes import Changes, entries_of
from polarvault.wal.block_maps.model import BlockMap, DatabaseId, ForkFlag, ForkId, merged
from polarvault.wal.block_maps.state import LSN
from polarvault.wal.scan import WalScanner

PAGE = 8192
_FORKS = {"": MAIN_FORK, "_fsm": FREE_SPACE_FORK, "_vm": VISIBILITY_FORK, "_init": INIT_FORK}
_FILE = re.compile(r"(\d+)(_fsm|_vm|_init|)(?:\.(\d+))?")
_DEFAULT, _GLOBAL = 1663, 1664


def map_of_range(directory: Path, start: Lsn, end: Lsn, segment_bytes: int, *, timeline_id: int = 1) -> BlockMap:
    """Return what the records from one LSN to before another do, of the segments in a directory."""
    # From the page on, whose header tells the version.
    page = Lsn(start - start % PAGE)
    scanner = WalScanner(page, segment_bytes, with_blocks=True)
    changes = Changes()
    segment = WalSegment.holding(start, timeline_id, segment_bytes)
    skipped = page - segment.start
    while scanner.next_lsn < end:
        content = (directory / segment.file_name).read_bytes()
        marks = scanner.feed(memoryview(content)[skipped:])
        entries = entries_of(marks)
        changes.add(marks, entries, int((entries[:, LSN] < start).sum()), int((entries[:, LSN] < end).sum()))
        assert scanner.end is None or scanner.next_lsn >= end, scanner.end_reason
        skipped, segment = 0, segment.next()
    return changes.map(start, end)


def map_of_segments(directory: Path, first: WalSegment) -> BlockMap:
    """Return the maps of all segments from one on that are in a directory, as one."""
    builder = BlockMapBuilder(first.start, first.timeline_id, first.size_bytes)
    maps, segment = [], first
    while (directory / segment.file_name).exists() and builder.end is None:
        content = memoryview((directory / segment.file_name).read_bytes())
        for at in range(0, len(content), 3 << 20):
            maps += [one for _, one in builder.feed(content[at : at + (3 << 20)])]
        segment = segment.next()
    assert maps, (first.file_name, builder.segment, builder.end, builder.next_lsn)
    found = merged(maps)
    assert found.gaps == ()
    return found


@dataclass(frozen=True)
class Files:
    """The files of relations in a data directory: path by fork, and segments of 1 GB counted from 0."""

    files: dict[tuple[ForkId, int], Path]

    @classmethod
    def found(cls, data: Path) -> Files:
        """Look for them."""
        found = {}
        for directory, tablespace, database in _databases(data):
            for path in directory.iterdir():
                match = _FILE.fullmatch(path.name)
                if match:
                    fork = ForkId(tablespace, database, int(match[1]), _FORKS[match[2]])
                    found[fork, int(match[3] or 0)] = path
        return cls(found)


def _databases(data: Path) -> list[tuple[Path, int, int]]:
    found = [(data / "global", _GLOBAL, 0)]
    found += [(path, _DEFAULT, int(path.name)) for path in (data / "base").iterdir() if path.name.isdigit()]
    for tablespace in (data / "pg_tblspc").iterdir():
        for version in Path(os.path.realpath(tablespace)).glob("PG_*"):
            found += [(path, int(tablespace.name), int(path.name)) for path in version.iterdir() if path.name.isdigit()]
    return found


def unexplained(before: Path, after: Path, block_map: BlockMap) -> tuple[list[str], int]:
    """Return every difference between two data directories that a map does not name, and how many pages differ."""
    old, new = Files.found(before).files, Files.found(after).files
    forks = block_map.by_fork()
    unlogged = {fork.relation for fork, _ in (*old, *new) if fork.fork == INIT_FORK}
    wrong: list[str] = []
    differing = 0
    for key in sorted(old.keys() | new.keys()):
        fork, segment = key
        is_unlogged = fork.relation in unlogged and fork.fork != INIT_FORK
        if fork.fork == FREE_SPACE_FORK or is_unlogged or DatabaseId(*fork[:2]) in block_map.databases:
            continue
        changes = forks.get(fork)
        limit = changes.limit if changes is not None and changes.limit is not None else 1 << 32
        named = set() if changes is None else set(changes.blocks.tolist())
        first = segment * 131_072
        was = old[key].read_bytes() if key in old else b""
        now = new[key].read_bytes() if key in new else b""
        if key not in new and not (changes is not None and limit == 0):
            wrong.append(f"{fork} is gone")
        # A visibility map is made without a record, when its first page is wanted.
        if key not in old and fork.fork != VISIBILITY_FORK and limit > 0:
            wrong.append(f"{fork} is new")
        if len(now) < len(was) and limit > first + len(now) // PAGE:
            wrong.append(f"{fork} has become shorter: {len(was)} to {len(now)} bytes, limit {limit}")
        for at in range(0, len(now), PAGE):
            page, block = now[at : at + PAGE], first + at // PAGE
            if page == was[at : at + PAGE]:
                continue
            differing += 1
            is_added = at >= len(was)
            is_harmless = _is_empty(page) if is_added else _is_cache(was[at : at + PAGE], page)
            if block not in named and block < limit and not is_harmless:
                wrong.append(f"{fork} block {block}{' (added)' * is_added}, LSN {page[:8].hex()}")
    return wrong, differing


def _is_empty(page: bytes) -> bool:
    """Tell whether nothing was ever put into a page: the server adds pages without WAL, and may write their headers."""
    lower, upper = struct.unpack_from("<HH", page, 12)
    return page[:8] == bytes(8) and (lower == 24 or not any(page)) and not any(page[24:upper])


def _is_cache(was: bytes, page: bytes) -> bool:
    """Tell whether two pages are the first of an SP-GiST index and differ in what they remember of free room."""
    # Checksum, and behind the magic number eight times block and free bytes (server: access/spgist_private.h).
    same = [slice(0, 8), slice(10, 28), slice(92, PAGE)]
    return page[24:28] == struct.pack("<I", 0xBA0BABEE) and all(was[part] == page[part] for part in same)


def summarized(rows: list[tuple[int, int, int, int, int, bool]]) -> dict[ForkId, tuple[int | None, set[int]]]:
    """Return limit and blocks of each fork by the rows of pg_wal_summary_contents."""
    found: dict[ForkId, tuple[int | None, set[int]]] = {}
    for number, tablespace, database, fork, block, is_limit in rows:
        key = ForkId(tablespace, database, number, fork)
        _, blocks = found.setdefault(key, (None, set()))
        if is_limit:
            found[key] = block, blocks
        else:
            blocks.add(block)
    return found


def lacking(theirs: dict[ForkId, tuple[int | None, set[int]]], block_map: BlockMap) -> list[str]:
    """Return what a server's summary of the same WAL has and a map does not."""
    forks = block_map.by_fork()
    wrong = []
    for fork, (limit, blocks) in theirs.items():
        if fork.number == 0:
            if DatabaseId(*fork[:2]) not in block_map.databases:
                wrong.append(f"database {fork}")
            continue
        ours = forks.get(fork)
        missing = blocks - (set(ours.blocks.tolist()) if ours is not None else set())
        wrong += [f"{fork} block {block}" for block in sorted(missing)[:3]]
        ours_limit = None if ours is None else ours.limit
        # Ours may be lower where the server's own is wrong (visibility maps in some minor releases), never higher.
        if limit is not None and (ours_limit is None or ours_limit > limit):
            wrong.append(f"{fork} limit {limit}, ours {ours_limit}")
    return wrong


def beyond(theirs: dict[ForkId, tuple[int | None, set[int]]], block_map: BlockMap) -> list[str]:
    """Return what a map has and the server's summary does not, beyond what it may say more."""
    wrong = []
    for fork, ours in block_map.by_fork().items():
        if fork.fork in (FREE_SPACE_FORK, VISIBILITY_FORK):
            continue
        # The first page of an SP-GiST index is added.
        limit, blocks = theirs.get(fork, (None, set()))
        least = 1 << 32 if limit is None else limit
        # What lies behind a limit is forgotten there when the relation is shortened.
        wrong += [
            f"{fork} block {block}" for block in ours.blocks.tolist() if block and block not in blocks and block < least
        ]
        if ours.limit != limit:
            wrong.append(f"{fork} limit {ours.limit}, theirs {limit} ({ForkFlag(ours.flags)!r})")
    return wrong
