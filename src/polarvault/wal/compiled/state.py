"""What the compiled reader and the Python around it share; needs no compiler, so that code can come from the cache."""

from __future__ import annotations

from enum import Enum, IntEnum

CRC_START = 0xFFFFFFFF


class Crc32cMethod(Enum):
    """How the checksum is calculated."""

    X86 = "x86"
    ARM = "arm"
    TABLES = "tables"


class Slot(IntEnum):
    """The words of the reader's state."""

    AT = 0
    PASSING = 1
    # The record that has begun: its LSN (0: none has), what there is of its header, what is to come of its body.
    LSN = 2
    HEAD_BYTES = 3
    HEAD = 4
    HEAD_PREVIOUS = 5
    HEAD_REST = 6
    BODY_LEFT = 7
    CRC = 8
    IS_MARK = 9
    LAST_LSN = 10
    NEXT_LSN = 11
    RECORDS = 12
    # Why valid WAL ended: the fields of WalEnd.
    ENDING = 13
    END_LSN = 14
    FOUND = 15
    EXPECTED = 16
    # What the pages have in common.
    MAGIC = 17
    SYSTEM = 18
    TIMELINE = 19
    SEGMENT_BYTES = 20
    CHECK_CRC = 21
    # Where marks go, how many there are and how many fit.
    ENTRIES = 22
    MARKS = 23
    MARKS_CAPACITY = 24
    # Where bodies go; the last one begins at BODY_START, and WANTED more bytes of it are to be kept.
    BODIES = 25
    BODY_START = 26
    BODIES_BYTES = 27
    BODIES_CAPACITY = 28
    WANTED = 29
    # Bytes of bodies that have been taken out of the buffer: entries count from the first of all.
    BODIES_TAKEN = 30
    # Not 0: every record is kept, not marks alone.
    WITH_BLOCKS = 31


class Status(IntEnum):
    """Why the reader returned."""

    GOES_ON = 0
    NEEDS_BYTES = 1
    # The buffers for marks must be emptied before the record at AT; WANTED says how many bytes of a body must fit.
    NEEDS_ROOM = 2
