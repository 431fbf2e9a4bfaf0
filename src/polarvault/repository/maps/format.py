"""The bytes of a block map: a column set, described in docs/internals/repository-format.md.

Everything is checked on reading: a map that misleads its reader would be a backup that lacks a page.
"""

from __future__ import annotations

import json
from typing import Any

import numpy
from numpy.typing import NDArray

from polarvault.errors import ObjectDamaged
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.relation import INIT_FORK
from polarvault.model.segment import WalSegment
from polarvault.repository.format import columns
from polarvault.repository.format.columns import Columns
from polarvault.repository.format.frame import Buffer
from polarvault.wal.block_maps.model import (
    MOST_GAPS,
    BlockMap,
    DatabaseFlag,
    DatabaseId,
    ForkFlag,
    Gap,
    TablespaceFlag,
)

_RANGE = 1
_TABLESPACE, _DATABASE, _RELATION, _FORK = 2, 3, 4, 5
_FLAGS, _LIMITS, _COUNTS, _BLOCKS = 6, 7, 8, 9
_CHANGED_TABLESPACES, _CHANGED_DATABASES, _DATABASE_FLAGS = 10, 11, 12
_TABLESPACES, _TABLESPACE_FLAGS = 13, 14
_GAPS = 15
# A reason is a line for people.
_REASON_CHARACTERS = 300


def encode(block_map: BlockMap) -> bytes:
    """Return a map's bytes; of one that is too large what says that it is."""
    found = _encoded(block_map)
    if len(found) <= limits.MAP_BYTES:
        return found
    gap = Gap(block_map.start, f"the map would have {len(found)} bytes, and at most {limits.MAP_BYTES} are possible")
    return _encoded(only_a_gap(block_map.start, block_map.end, gap))


def only_a_gap(start: Lsn, end: Lsn, gap: Gap) -> BlockMap:
    """Return a map that says nothing, and why."""
    nothing = numpy.zeros(0, numpy.uint32)
    no_flags = numpy.zeros(0, numpy.uint8)
    return BlockMap(start, end, nothing.reshape(0, 4), no_flags, nothing, nothing, nothing, gaps=(gap,))


def _encoded(block_map: BlockMap) -> bytes:
    databases, tablespaces = block_map.databases, block_map.tablespaces
    gaps = [[int(gap.lsn), gap.reason[:_REASON_CHARACTERS]] for gap in block_map.gaps]
    return columns.encode(
        {
            _RANGE: numpy.array([block_map.start, block_map.end], numpy.uint64),
            **{_TABLESPACE + n: block_map.forks[:, n].copy() for n in range(3)},
            _FORK: block_map.forks[:, 3].astype(numpy.uint8),
            _FLAGS: block_map.flags,
            _LIMITS: block_map.limits,
            _COUNTS: block_map.counts,
            _BLOCKS: block_map.blocks,
            _CHANGED_TABLESPACES: numpy.array([one.tablespace_oid for one in databases], numpy.uint32),
            _CHANGED_DATABASES: numpy.array([one.database_oid for one in databases], numpy.uint32),
            _DATABASE_FLAGS: numpy.array(list(databases.values()), numpy.uint8),
            _TABLESPACES: numpy.array(list(tablespaces), numpy.uint32),
            _TABLESPACE_FLAGS: numpy.array(list(tablespaces.values()), numpy.uint8),
            _GAPS: numpy.frombuffer(json.dumps(gaps).encode() if gaps else b"", numpy.uint8),
        }
    )


def decode(content: Buffer, what: str, segment: WalSegment | None = None) -> BlockMap:
    """Return a map; raise ObjectDamaged for what is none, or is not of this segment."""
    found = Columns(content, what)
    start, end = (Lsn(lsn) for lsn in found.numbers(_RANGE, 8, 2).tolist())
    # Of a segment in the middle of one record the map begins, and ends, behind that.
    fits = segment is None or (segment.start <= start and segment.end <= end and (start < segment.end or start == end))
    if start > end or not fits:
        raise ObjectDamaged(f"{what} covers {start} to {end}, which is not its segment")
    counts = found.numbers(_COUNTS, 4)
    rows = len(counts)
    forks = numpy.stack(
        [
            *(found.numbers(_TABLESPACE + n, 4, rows) for n in range(3)),
            found.numbers(_FORK, 1, rows).astype(numpy.uint32),
        ],
        axis=1,
    )
    flags, limit = found.numbers(_FLAGS, 1, rows), found.numbers(_LIMITS, 4, rows)
    blocks = found.numbers(_BLOCKS, 4, int(counts.sum(dtype=numpy.uint64)))
    _check_forks(forks, flags, counts, blocks, what)
    databases = _flagged(found, _DATABASE_FLAGS, [_CHANGED_TABLESPACES, _CHANGED_DATABASES], DatabaseFlag, what)
    tablespaces = _flagged(found, _TABLESPACE_FLAGS, [_TABLESPACES], TablespaceFlag, what)
    return BlockMap(
        start, end, forks, flags, limit, counts, blocks,
        {DatabaseId(*key): DatabaseFlag(flag) for key, flag in databases.items()},
        {key[0]: TablespaceFlag(flag) for key, flag in tablespaces.items()},
        _gaps(found.blob(_GAPS), what),
    )  # fmt: skip


def _check_forks(
    forks: NDArray[Any], flags: NDArray[Any], counts: NDArray[Any], blocks: NDArray[Any], what: str
) -> None:
    if not _is_rising(forks) or (forks[:, 3] > INIT_FORK).any():
        raise ObjectDamaged(f"{what} has forks that cannot be")
    if (flags > sum(ForkFlag)).any():
        raise ObjectDamaged(f"{what} has flags of forks that are not known")
    # Within a fork they rise; the first one of a fork may be anything.
    is_first = numpy.zeros(len(blocks) + 1, bool)
    is_first[numpy.cumsum(counts, dtype=numpy.int64)] = True
    if not (is_first[1:-1] | (blocks[1:] > blocks[:-1])).all():
        raise ObjectDamaged(f"{what} has blocks that do not rise")


def _is_rising(rows: NDArray[Any]) -> bool:
    """Tell whether each row is greater than the one before it, by its first number that differs."""
    before, after = rows[:-1].astype(numpy.int64), rows[1:].astype(numpy.int64)
    differs = before != after
    first = differs.argmax(axis=1)
    places = numpy.arange(len(before))
    return bool(differs.any(axis=1).all() and (after[places, first] > before[places, first]).all())


def _flagged(found: Columns, flags: int, keys: list[int], known: Any, what: str) -> dict[tuple[int, ...], int]:
    values = found.numbers(flags, 1)
    columns_of_keys = [found.numbers(number, 4, len(values)) for number in keys]
    rows = list(zip(*(column.tolist() for column in columns_of_keys), strict=True))
    if (values > sum(known)).any() or sorted(set(rows)) != rows:
        raise ObjectDamaged(f"{what} has databases or tablespaces that cannot be")
    return dict(zip(rows, values.tolist(), strict=True))


def _gaps(content: bytes, what: str) -> tuple[Gap, ...]:
    if not content:
        return ()
    try:
        gaps = json.loads(content)
        found = tuple(Gap(Lsn(lsn), reason) for lsn, reason in gaps)
        is_right = all(isinstance(lsn, int) and 0 <= lsn < 1 << 64 and isinstance(why, str) for lsn, why in gaps)
    except (ValueError, TypeError, RecursionError) as problem:
        raise ObjectDamaged(f"{what} has gaps that cannot be read: {problem}") from problem
    if not is_right or not 0 < len(found) <= MOST_GAPS:
        raise ObjectDamaged(f"{what} has gaps that cannot be")
    return found
