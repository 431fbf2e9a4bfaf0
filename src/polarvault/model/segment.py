"""WAL segment arithmetic at any legal segment size (1 MB to 1 GB, a power of two)."""

from __future__ import annotations

from polarvault.model.dataclass import dataclass
from polarvault.model.lsn import Lsn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_HEXADECIMAL = frozenset("0123456789ABCDEF")
MIN_SEGMENT_BYTES = 1 << 20
MAX_SEGMENT_BYTES = 1 << 30


def is_segment_size(size_bytes: int) -> bool:
    """Tell whether initdb accepts the size: a power of two from 1 MB to 1 GB."""
    return MIN_SEGMENT_BYTES <= size_bytes <= MAX_SEGMENT_BYTES and size_bytes & (size_bytes - 1) == 0


@dataclass(frozen=True, slots=True, order=True)
class WalSegment:
    """One WAL segment file: its timeline, its number since the start of the WAL, its size in bytes."""

    timeline_id: int
    number: int
    size_bytes: int

    @classmethod
    def holding(cls, lsn: int, timeline_id: int, size_bytes: int) -> Self:
        """Return the segment that holds the byte at the LSN."""
        return cls(timeline_id, lsn // size_bytes, size_bytes)

    @classmethod
    def parse(cls, file_name: str, size_bytes: int) -> Self:
        """Parse a 24-digit file name; raise ValueError for anything else."""
        if len(file_name) != 24 or not _HEXADECIMAL.issuperset(file_name):
            raise ValueError(f"{file_name!r} is not a WAL segment name")
        per_field = 0x1_0000_0000 // size_bytes
        high, low = int(file_name[8:16], 16), int(file_name[16:], 16)
        if low >= per_field:
            raise ValueError(f"{file_name!r} is not a WAL segment name for {size_bytes}-byte segments")
        return cls(int(file_name[:8], 16), high * per_field + low, size_bytes)

    @property
    def start(self) -> Lsn:
        """The LSN of the segment's first byte."""
        return Lsn(self.number * self.size_bytes)

    @property
    def end(self) -> Lsn:
        """The LSN just past the segment's last byte."""
        return Lsn((self.number + 1) * self.size_bytes)

    @property
    def file_name(self) -> str:
        """The 24-digit name that the server gives the file."""
        # A name's middle field changes every 4 GiB of WAL, so the split depends on the segment size,
        # which initdb may set anywhere from 1 MB to 1 GB. The server reports it; 16 MB is only the default.
        per_field = 0x1_0000_0000 // self.size_bytes
        return f"{self.timeline_id:08X}{self.number // per_field:08X}{self.number % per_field:08X}"

    def next(self) -> Self:
        """Return the segment that follows on the same timeline."""
        return type(self)(self.timeline_id, self.number + 1, self.size_bytes)
