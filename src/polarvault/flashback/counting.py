"""Count rows of many records at once: nearly all that change rows touch one page and hold no image of it. Pure.

What is counted here is passed over by the one-by-one way (`changes`), which gives the same, and knows the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polarvault.flashback.changes import DELETE, HOT_UPDATE, INSERT, OPERATION_MASK, RMGR_HEAP, UPDATE, What
from polarvault.model.relation import RelationFile
from polarvault.wal.marks import ENTRY_WORDS, Marks

_XID, _CODE, _BODY, _BODY_BYTES = 3, 4, 6, 7
# Block 0 with its relation: number and flags, data length, relation, page.
_RELATION_AT, _BLOCK_HEADER_BYTES = 4, 20
# Behind it the header of main data that are short, and of a DELETE its 8 bytes, the last of which are flags.
_SHORT, _DELETE_BYTES, _DELETE_IS_SUPER = 255, 8, 0x08
_LEAST_BODY_BYTES = _BLOCK_HEADER_BYTES + 2 + _DELETE_BYTES
_WHAT = {INSERT: What.INSERT, UPDATE: What.UPDATE, HOT_UPDATE: What.UPDATE, DELETE: What.DELETE}
# The lowest bits of the flags are the fork, the next one says that there is an image.
_OTHER_FORK_OR_IMAGE, _SAME_RELATION = 0x1F, 0x80

Counts = dict[tuple[int, int, What], int]


def count_plain(marks: Marks, files: Mapping[RelationFile, int]) -> tuple[Counts, frozenset[int]]:
    """Return rows by table, transaction and what was done, and the numbers of the records that were counted."""
    counts: Counts = {}
    if not len(marks) or not files:
        return counts, frozenset()
    words = np.frombuffer(marks.words, dtype=np.int64).reshape(-1, ENTRY_WORDS)
    bodies = np.frombuffer(bytes(marks.bodies), dtype=np.uint8)
    operations = words[:, _CODE] & OPERATION_MASK
    is_asked = (words[:, _CODE] >> 8 == RMGR_HEAP) & np.isin(operations, list(_WHAT))
    numbers = np.flatnonzero(is_asked & (words[:, _BODY_BYTES] >= _LEAST_BODY_BYTES))
    starts = words[numbers, _BODY]
    flags = bodies[starts + 1]
    is_plain = (bodies[starts] == 0) & (flags & (_OTHER_FORK_OR_IMAGE | _SAME_RELATION) == 0)
    is_plain &= (operations[numbers] != DELETE) | _is_plain_delete(bodies, starts)
    numbers, starts = numbers[is_plain], starts[is_plain]
    relations = bodies[starts[:, None] + np.arange(_RELATION_AT, _RELATION_AT + 12)].view("<u4")
    counted: list[int] = []
    for file, table in files.items():
        own = numbers[(relations == np.array(file, dtype=np.uint32)).all(axis=1)]
        counted += own.tolist()
        pairs, times = np.unique(np.stack([words[own, _XID], operations[own]]), axis=1, return_counts=True)
        for xid, operation, count in zip(*pairs.tolist(), times.tolist(), strict=True):
            key = table, xid, _WHAT[operation]
            counts[key] = counts.get(key, 0) + count
    return counts, frozenset(counted)


def _is_plain_delete(bodies: np.ndarray[Any, Any], starts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    main = starts + _BLOCK_HEADER_BYTES
    is_short = (bodies[main] == _SHORT) & (bodies[main + 1] == _DELETE_BYTES)
    result: np.ndarray[Any, Any] = is_short & (bodies[main + 1 + _DELETE_BYTES] & _DELETE_IS_SUPER == 0)
    return result
