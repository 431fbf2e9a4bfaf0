"""Files of which the server sent only what has changed since the parent: PostgreSQL 17 and later, `summarize_wal`.

Pieces of which nothing came are the parent's, and of most others what came is laid over them; neither is read. What has
to be stored anew as a whole is read from the parent. **Nothing of a visibility map is taken from it**: clearing one of
its bits registers no block of it in the WAL of all releases (and truncation not in any so far), so that summaries miss
it. What the server did not send of it becomes zeros, which only means that a vacuum has to look again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from polarvault.errors import RemoteProtocolError
from polarvault.model.names import shown_name
from polarvault.model.relation import VISIBILITY_FORK
from polarvault.pgfiles.incremental_file import IncrementalReader
from polarvault.pgfiles.manifest import Manifest, ManifestFile, checksum, encode_manifest
from polarvault.pgfiles.pages import PAGE_BYTES
from polarvault.pgfiles.relation_paths import relation_of
from polarvault.repository.format.chunks import PIECE_BYTES
from polarvault.repository.index.files import FileRow
from polarvault.repository.reading.backup_reader import BackupReader
from polarvault.repository.writing.backup_writer import BackupWriter, Member

_PIECE_PAGES = PIECE_BYTES // PAGE_BYTES
LABEL_NAME = "backup_label"
_LABEL_LINE = b"INCREMENTAL FROM "
MOST_LABEL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class WholeFile:
    """What became of a file of the stream: its path in the manifest, and what the manifest is to say of it.

    is_parents: it is what the parent has, byte for byte.
    """

    path: str
    size: int
    checksum: str | None = None
    is_parents: bool = False


def label_without_parent(content: bytes) -> bytes:
    """Return backup_label as a full backup has it: with the lines about the parent no server would start."""
    return b"".join(line for line in content.splitlines(keepends=True) if not line.startswith(_LABEL_LINE))


class ChangedFile:
    """One file that is being received. member: of the whole file, its size is not known yet."""

    def __init__(
        self, writer: BackupWriter, reader: BackupReader, member: Member, size: int, *, full_path: str,
        segment_blocks: int,
    ) -> None:  # fmt: skip
        """`size`: of what the server sends; full_path: in the data directory, tablespaces by their oid."""
        self._writer, self._reader, self._member = writer, reader, member
        shown = member.path.decode("utf-8", "surrogateescape")
        self._blocks = IncrementalReader(shown, size, segment_blocks=segment_blocks)
        row = writer.parent_row(member.part, member.path)
        if row is None:
            raise RemoteProtocolError(f"the server sent changes of {shown_name(shown)}, which the parent does not have")
        relation = relation_of(full_path)
        is_map = relation is not None and relation[1] == VISIBILITY_FORK
        self._parent: FileRow | None = None if is_map else row
        self._parent_size = row.size
        self._pages: dict[int, bytes] = {}
        self._size: int | None = None
        self._at = 0

    @property
    def size(self) -> int:
        """The size of the whole file; known when the header has come."""
        assert self._size is not None
        return self._size

    @property
    def is_parents(self) -> bool:
        """Tell whether nothing has changed."""
        header = self._blocks.header
        return header is not None and not header.blocks and self._parent is not None and self._parent_size == self._size

    def data(self, views: Sequence[memoryview]) -> None:
        """Take the next bytes."""
        for view in views:
            for block, page in self._blocks.feed(view):
                self._begin()
                # They rise: what lies in front of this piece is complete.
                self._fill_until(block // _PIECE_PAGES * PIECE_BYTES)
                self._pages[block % _PIECE_PAGES] = bytes(page)

    def end(self) -> None:
        """It is complete."""
        self._blocks.end()
        self._begin()
        if not (self.is_parents and self._writer.keep_file()):
            self._fill_until(self.size)
        self._writer.end()

    def _begin(self) -> None:
        if self._size is not None:
            return
        assert self._blocks.header is not None
        self._size = self._blocks.header.length * PAGE_BYTES
        self._writer.begin(replace(self._member, size=self._size), by_pieces=True)

    def _fill_until(self, end: int) -> None:
        while self._at < end:
            length = min(PIECE_BYTES, self.size - self._at)
            if self._parent is None or not self._writer.keep_piece(self._pages):
                self._writer.data([self._piece(length)])
            self._pages = {}
            self._at += length

    def _piece(self, length: int) -> bytes:
        content = bytearray(length)
        if self._parent is not None and len(self._pages) < -(-length // PAGE_BYTES):
            earlier = self._writer.parent_piece() or self._reader.read(self._parent, self._at, length)
            content[: min(len(earlier), length)] = earlier[:length]
        for page, replaced in self._pages.items():
            content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = replaced
        return bytes(content)


def whole_manifest(sent: Manifest, whole: Mapping[str, WholeFile], parent: Manifest) -> bytes:
    """Return the manifest of the backup as a full one; whole: what became of files, by their paths in what was sent.

    A file of which parts are the parent's has no checksum: nobody has read all of it.
    """
    earlier = {entry.path: entry for entry in parent.files}
    files = []
    for entry in sent.files:
        found = whole.get(entry.path)
        if found is None:
            files.append(entry)
            continue
        there = earlier.get(found.path) if found.is_parents else None
        if there is not None and there.size == found.size:
            files.append(there._replace(last_modified=entry.last_modified))
        else:
            algorithm = entry.algorithm if found.checksum is not None else None
            files.append(ManifestFile(found.path, found.size, entry.last_modified, algorithm, found.checksum))
    return encode_manifest(replace(sent, files=files))


def whole_label(path: str, content: bytes, algorithm: str) -> WholeFile:
    """Return what the manifest says of a backup_label that was changed."""
    return WholeFile(path, len(content), checksum(content, algorithm))
