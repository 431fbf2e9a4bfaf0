"""Files of which only changes come, over many backups in a row: the bytes that come out, and what is read for them."""

from __future__ import annotations

import random
import struct
from datetime import timedelta

import pytest

from polarvault.backup.increments import ChangedFile
from polarvault.errors import ObjectDamaged
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.chunks import OVERLAYS, placed
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.index.files import FileKind
from polarvault.repository.writing.backup_writer import Member
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from support.repositories import NOW, PAGE, PARTS, Tree, back_up, facts, new_repository, restore

MAGIC = 0xD3AE1F0D
LARGE = b"base/5/16384"
PIECES = 60
SMALL = 40


def increment(content: bytes, blocks: list[int]) -> bytes:
    """Return what a server sends of a file of which some blocks have changed."""
    head = struct.pack("<III", MAGIC, len(blocks), len(content) // PAGE) + struct.pack(f"<{len(blocks)}I", *blocks)
    head += bytes(-len(head) % PAGE) if blocks else b""
    return head + b"".join(content[block * PAGE : (block + 1) * PAGE] for block in blocks)


class Chain:
    """A repository in which backups build on each other, with what the server sends of changes."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.repository: Repository = new_repository(WriteOnce(self.store))
        chance = random.Random(7)
        self.tree: Tree = {(0, LARGE): chance.randbytes(PIECES * 32 * PAGE)}
        self.tree |= {(0, b"base/5/%d" % number): chance.randbytes(2 * PAGE) for number in range(SMALL)}
        self.label = back_up(self.repository, self.tree).label
        self.count = 0

    def change(self, path: bytes, blocks: list[int]) -> None:
        content = bytearray(self.tree[0, path])
        self.count += 1
        for block in blocks:
            content[block * PAGE : block * PAGE + 12] = struct.pack("<III", self.count, block, 7)
        self.tree[0, path] = bytes(content)

    def back_up(self, changed: dict[bytes, list[int]]) -> int:
        """Take the next backup; return how many requests read something while the files came."""
        for path, blocks in changed.items():
            self.change(path, blocks)
        self.count += 1
        at = NOW + timedelta(minutes=self.count)
        writer = self.repository.begin_backup("shop", started=at, parts=PARTS, parent=self.label)
        reader = self.repository.open_backup("shop", self.label)
        before = self.repository.store.counts().gets
        try:
            for (part, path), content in self.tree.items():
                sent = increment(content, changed.get(path, []))
                member = Member(part, path, FileKind.FILE)
                name = path.decode()
                file = ChangedFile(writer, reader, member, len(sent), full_path=name, segment_blocks=1 << 17)
                file.data([memoryview(sent)])
                file.end()
            asked = self.repository.store.counts().gets - before
            self.label = writer.commit(facts(self.count)).label
        except BaseException:
            writer.abandon()
            raise
        self.repository.end_intents()
        return asked


@pytest.fixture
def chain() -> Chain:
    """The first backup is a full one."""
    return Chain()


def test_ten_in_a_row_are_right_and_overlays_that_are_merged_are_read_in_stretches(chain: Chain) -> None:
    asked = []
    for number in range(12):
        # A page of every piece, another one each time: lists of overlays are full in the eighth.
        asked.append(chain.back_up({LARGE: [piece * 32 + number for piece in range(PIECES)]}))
        assert restore(chain.repository, chain.label) == chain.tree
    reader = chain.repository.open_backup("shop", chain.label)
    (row,) = [row for row in reader.rows() if row.path == LARGE]
    pieces = reader.index.table(row.tables[0]).table.pieces
    assert {len(piece.overlays) for piece in pieces} == {12 - OVERLAYS}
    # Seven pages of each of 60 pieces were read again: once for each piece and overlay would be 420 requests.
    assert max(asked) < 60, asked
    assert asked.index(max(asked)) == OVERLAYS


def test_pieces_of_which_most_has_changed_are_read_in_stretches_too(chain: Chain) -> None:
    asked = []
    for number in range(OVERLAYS + 2):
        # Four pages of every piece, and nearly all of them together.
        changed = [piece * 32 + (number * 4 + page) % 32 for piece in range(PIECES) for page in range(4)]
        asked.append(chain.back_up({LARGE: changed}))
        assert restore(chain.repository, chain.label) == chain.tree
    reader = chain.repository.open_backup("shop", chain.label)
    (row,) = [row for row in reader.rows() if row.path == LARGE]
    pieces = reader.index.table(row.tables[0]).table.pieces
    # Stored anew as a whole, and once changed since.
    assert {len(piece.overlays) for piece in pieces} == {1}
    # Each base once, and each overlay chunk once, for these do not compress; not each overlay for each piece.
    assert max(asked) < PIECES * 3, asked


def test_small_files_that_are_as_before_are_not_read(chain: Chain) -> None:
    assert chain.back_up({}) < 10
    changed = {b"base/5/%d" % number: [number % 2] for number in range(0, SMALL, 3)}
    chain.back_up(changed)
    assert restore(chain.repository, chain.label) == chain.tree
    # A file that has become longer is not what it was, though nothing of it was sent.
    chain.tree[0, b"base/5/1"] += bytes(PAGE)
    chain.back_up({})
    assert restore(chain.repository, chain.label) == chain.tree


def test_an_overlay_that_is_damaged_is_not_merged(chain: Chain) -> None:
    for number in range(OVERLAYS):
        chain.back_up({LARGE: [number]})
    reader = chain.repository.open_backup("shop", chain.label)
    (row,) = [row for row in reader.rows() if row.path == LARGE]
    piece = reader.index.table(row.tables[0]).table.pieces[0]
    assert len(piece.overlays) == OVERLAYS
    chunk = placed(piece.overlays[2].chunk)
    name = ClusterNames("shop").pack(chunk.label, chunk.pack)
    content, modified = chain.store._objects[name]
    flipped = bytearray(content)
    flipped[chunk.offset + chunk.stored // 2] ^= 1
    chain.store._objects[name] = bytes(flipped), modified
    with pytest.raises(ObjectDamaged, match="'base/5/16384' cannot be read at block 2:"):
        chain.back_up({LARGE: [OVERLAYS]})
