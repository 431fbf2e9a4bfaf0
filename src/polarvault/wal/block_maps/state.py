"""What the compiled gatherer and the Python around it share; needs no compiler: code may come from the cache."""

from __future__ import annotations

from enum import IntEnum

from polarvault.wal.records import LAST_BLOCK_ID

# Words of an entry of `polarvault.wal.marks.Marks`.
LSN, CODE, MORE, BODY, BODY_BYTES = 0, 4, 5, 6, 7
# A record has at most 33 blocks; before each record there must be room for so many.
MOST_OF_RECORD = LAST_BLOCK_ID + 1


class Slot(IntEnum):
    """The words of the state."""

    ENTRIES = 0
    NEXT = 1
    END = 2
    BODIES = 3
    IS_COMPRESSED = 4
    ROWS = 5
    ROW_COUNT = 6
    ROW_PLACES = 7
    ROW_MASK = 8
    BLOCKS = 9
    BLOCK_COUNT = 10
    BLOCK_MASK = 11
    # The number of the first record that cannot be read, and 1.
    WRONG = 12
    # Of the record that is read: where, how many bytes the blocks have, the relation of the block before, if any.
    AT = 13
    DATA = 14
    DATABASE = 15
    RELATION = 16
    HAS_RELATION = 17
    # The fork that was found last.
    LAST_DATABASE = 18
    LAST_RELATION = 19
    LAST_ROW = 20
    PROBE = 21
