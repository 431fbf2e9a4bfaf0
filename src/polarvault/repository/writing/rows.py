"""The rows of a backup in the making, packed: a million files in 150 MB, sorted by key when the table is written."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

from polarvault.repository.format.chunks import AnyRef, placed
from polarvault.repository.index.files import FileKind, FileRow

# part, kind, mode, size, mtime, position of bundle or first table (or none), tables, offset, hash
_ROW = struct.Struct("<HBIQqiII16s")
_NONE = -1


@dataclass(slots=True)
class OpenRow:
    """A row of which it is not known yet where its content lies."""

    part: int
    path: bytes
    kind: FileKind
    mode: int
    size: int
    mtime: int
    link: bytes = b""


class Rows:
    """Collects rows in any order."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        self._refs: list[AnyRef] = []
        self._bundles: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._packed)

    def add_plain(self, row: OpenRow) -> None:
        """Add what has no content: a directory, a link, an empty file."""
        self._add(row, _NONE, 0, 0, b"")

    def add_bundled(self, row: OpenRow, bundle: AnyRef, offset: int, digest: bytes) -> None:
        """Add a small file."""
        position = self._bundles.get(id(bundle))
        if position is None:
            # The list keeps the object alive, so that its id stays its own.
            position = self._bundles[id(bundle)] = len(self._refs)
            self._refs.append(bundle)
        self._add(row, position, 0, offset, digest)

    def add_long(self, row: OpenRow, tables: list[AnyRef]) -> None:
        """Add a file that has tables."""
        first = len(self._refs)
        self._refs += tables
        self._add(row, first, len(tables), 0, b"")

    def _add(self, row: OpenRow, position: int, tables: int, offset: int, digest: bytes) -> None:
        fixed = _ROW.pack(row.part, row.kind, row.mode, row.size, row.mtime, position, tables, offset, digest)
        # The key comes first, so that sorting the packed rows sorts by it, and then by when they came; no path holds a
        # zero byte.
        number = len(self._packed).to_bytes(4, "big")
        self._packed.append(row.part.to_bytes(2, "big") + row.path + b"\0" + number + fixed + row.link)

    def __iter__(self) -> Iterator[FileRow]:
        """Yield all rows, sorted; every chunk must have its place by now.

        A file that was made anew while the server listed its directory may come twice: the last one counts.
        """
        self._packed.sort()
        for packed, following in pairwise(chain(self._packed, [b""])):
            end = packed.index(b"\0", 2)
            if following.startswith(packed[: end + 1]):
                continue
            fixed = _ROW.unpack_from(packed, end + 5)
            part, kind, mode, size, mtime, position, tables, offset, digest = fixed
            link = packed[end + 5 + _ROW.size :]
            bundled = position != _NONE and not tables
            yield FileRow(
                part,
                packed[2:end],
                FileKind(kind),
                mode,
                size,
                mtime,
                link,
                placed(self._refs[position]) if bundled else None,
                offset,
                digest if bundled else b"",
                tuple(map(placed, self._refs[position : position + tables])),
            )
