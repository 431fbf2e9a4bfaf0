"""Damaged pages that are nowhere else: what recovery makes right, what older backups and WAL prove, what neither does.

Every backup has the table of 40 pages and a few small files; the chunk with the table's pages is damaged in the newest.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import lz4.block
import pytest
import zstandard

from polarvault.errors import ObjectDamaged
from polarvault.model.lsn import Lsn
from polarvault.model.relation import BlockId, RelationFile
from polarvault.pgfiles.pages import PAGE_BYTES, page_checksum, read_page_header
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.format.chunks import ChunkRef, placed
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.format.record import RecordFacts
from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.reading.rescue import Rescue
from polarvault.repository.wal.source import RepositoryWalSource
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.wal.images import expand_pglz, page_image
from polarvault.wal.records import Record
from support import page_records as made
from support.page_records import Touched, image_of, made_page, record_body
from support.repositories import NOW, PARTS, Tree, feed, new_repository, reopened
from support.wal_bytes import WalBuilder

SYSTEM, SEGMENT = 77, 1 << 20
TABLE = "base/5/16384"
PAGES = 40


class Site:
    """A repository with WAL, and backups that begin where the WAL is at that moment."""

    def __init__(self, *, checksums: bool = True) -> None:
        self.store = MemoryStore()
        self.repository: Repository = new_repository(WriteOnce(self.store))
        self.repository.ensure_generation("shop", Generation(SYSTEM, 150000, False, SEGMENT, 1 << 30, checksums))
        self.wal = WalBuilder(segment_bytes=SEGMENT, magic=0xD110, system=SYSTEM)
        self.wal.add()
        self.timeline = 1
        self.details: dict[str, object] = {}
        self.pages = [made_page(block) for block in range(PAGES)]
        self.labels: list[str] = []
        self._started: list[int] = []

    def tree(self, **more: bytes) -> Tree:
        table = {(0, TABLE.encode()): b"".join(self.pages)}
        return table | {(0, name.replace("__", "/").encode()): content for name, content in more.items()}

    def log(self, *touched: Touched, main: bytes = b"main", rmgr: int = made.HEAP, info: int = 0) -> int:
        return self.wal.add(record_body(touched, main), rmgr=rmgr, info=info)

    def back_up(self, during: Callable[[], object] = lambda: None, **files: bytes) -> None:
        """Back the pages up as they are; during: what is written to the WAL meanwhile."""
        start = self.wal.add()
        during()
        self.wal.add()
        stop = self.wal.lsn
        at = NOW + timedelta(minutes=len(self.labels))
        writer = self.repository.begin_backup("shop", started=at, parts=PARTS)
        feed(writer, self.tree(**files))
        facts = RecordFacts(
            at, at, SYSTEM, self.timeline, Lsn(start), Lsn(stop), self.timeline, 150000, details=self.details
        )
        self.labels.append(writer.commit(facts).label)
        self.repository.end_intents()

    def hint(self, block: int) -> None:
        """Change a page as a hint bit does, without WAL: the sum is another one."""
        page = bytearray(self.pages[block])
        page[PAGE_BYTES - 5] ^= 1
        page[8:10] = page_checksum(bytes(page), block).to_bytes(2, "little")
        self.pages[block] = bytes(page)

    def flip(self, chunk: ChunkRef) -> None:
        name = ClusterNames("shop").pack(chunk.label, chunk.pack)
        content, modified = self.store._objects[name]
        flipped = bytearray(content)
        flipped[chunk.offset + chunk.stored // 2] ^= 1
        self.store._objects[name] = bytes(flipped), modified

    def archive(self, wal: Repository) -> RepositoryWalSource:
        return RepositoryWalSource(wal.wal("shop", SYSTEM, SEGMENT), place="WAL of shop")

    def put_wal(self, *, until: int | None = None) -> None:
        archived = self.repository.wal("shop", SYSTEM, SEGMENT)
        content = bytes(self.wal.content)[: None if until is None else until - self.wal.start]
        for offset in range(0, len(content), SEGMENT):
            archived.put_range(1, Lsn(self.wal.start + offset), content[offset : offset + SEGMENT])

    def restored(
        self, path: str = TABLE, *, with_wal: bool = True, damaged: int = -1, gone: bool = False
    ) -> tuple[bytes, Sequence[str]]:
        """Damage every chunk of a file in the newest backup, and return what a restore lays out, and its notes.

        gone: remove the packs.
        """
        reader = self.repository.open_backup("shop", self.labels[damaged])
        row = next(row for row in reader.rows() if row.path == path.encode())
        if row.bundle is not None:
            self.flip(row.bundle)
        else:
            for piece in reader.index.table(row.tables[0]).table.pieces:
                chunk = placed(piece.base)
                if gone:
                    self.store._objects.pop(ClusterNames("shop").pack(chunk.label, chunk.pack), None)
                else:
                    self.flip(chunk)
        if with_wal:
            self.put_wal()
        again = reopened(self.repository)
        opened = again.open_backup("shop", self.labels[damaged])
        rescue = opened.rescue = Rescue(again, "shop", opened, self.archive(again))
        found = {row.path: bytearray(row.size) for row in opened.rows() if row.kind is FileKind.FILE}

        def put(row: FileRow, offset: int, view: memoryview) -> None:
            found[row.path][offset : offset + len(view)] = view

        for share in opened.shares():
            share.deliver(put)
        return bytes(found[path.encode()]), rescue.notes()


def refusal(restore: Callable[[], object]) -> str:
    """Return why a restore ended."""
    with pytest.raises(ObjectDamaged) as refused:
        restore()
    return refused.value.message


def test_zeros_do_where_the_wal_of_the_backup_writes_the_page_whole_first() -> None:
    site = Site()

    def during() -> None:
        for block in range(PAGES):
            if block % 2:
                site.log(image_of(site.pages[block], block))
            else:
                site.log(Touched(block, will_init=True))
            site.log(Touched(block))

    site.back_up(during)
    found, (note,) = site.restored()
    assert found == bytes(PAGES * PAGE_BYTES)
    assert f"40 pages of '{TABLE}' (blocks 0-39)" in note
    assert "zeros, which recovery overwrites with the whole page from the WAL" in note


def test_a_pack_that_is_gone_is_as_a_damaged_one() -> None:
    site = Site()
    site.back_up(lambda: [site.log(image_of(site.pages[block], block)) for block in range(PAGES)])
    found, (note,) = site.restored(gone=True)
    assert found == bytes(PAGES * PAGE_BYTES)
    assert "zeros, which recovery overwrites" in note


def test_whoever_does_not_recover_gets_the_very_same_bytes_or_none() -> None:
    site = Site()
    site.back_up(lambda: [site.log(image_of(site.pages[block], block)) for block in range(PAGES)])
    site.restored()
    again = reopened(site.repository)
    opened = again.open_backup("shop", site.labels[0])
    opened.rescue = Rescue(again, "shop", opened, site.archive(again))
    row = next(row for row in opened.rows() if row.name == TABLE)
    assert refusal(lambda: list(opened.stream(row))).endswith("no other backup has the same page")


@pytest.mark.parametrize("image_first", [False, True])
def test_a_page_that_the_wal_of_the_backup_changes_before_it_holds_it_is_refused(image_first: bool) -> None:
    site = Site()

    def during() -> None:
        for block in range(PAGES):
            if block != 7 or image_first:
                site.log(image_of(site.pages[block], block))
        site.log(Touched(7))
        site.log(image_of(site.pages[7], 7))

    site.back_up(during)
    if image_first:
        assert site.restored()[0] == bytes(PAGES * PAGE_BYTES)
        return
    why = refusal(site.restored)
    assert f"'{TABLE}' cannot be read at block 0: chunk" in why
    assert "block 7: no other backup has the same page, and the WAL of the backup reads the page before it holds" in why


def test_an_image_that_replay_only_compares_with_does_not_count() -> None:
    site = Site()
    site.back_up(
        lambda: [site.log(replace(image_of(site.pages[block], block), image_flags=0)) for block in range(PAGES)]
    )
    assert re.search("reads the page before it holds the whole", refusal(site.restored))


def test_a_page_that_no_record_touches_is_taken_from_an_older_backup() -> None:
    site = Site()
    older = list(site.pages)
    site.back_up()
    for block in range(PAGES):
        # Of another page, another fork, another relation: none of them is the page.
        site.log(Touched(block + PAGES), Touched(block, fork=1), Touched(block, relation=(1663, 6, 16384)))
        site.hint(block)
    site.back_up(lambda: site.log(Touched(99)))
    found, (note,) = site.restored()
    assert found == b"".join(older) != b"".join(site.pages)
    assert "an older version, which no record of the WAL since has changed" in note
    assert f"(shop@{site.labels[0]})" in note


def test_the_newest_older_backup_that_has_the_page_whole_is_taken() -> None:
    site = Site()
    oldest = list(site.pages)
    site.back_up()
    for block in range(PAGES):
        site.hint(block)
    # Rotten on the server when it was backed up: its checksum is wrong.
    rotten = bytearray(site.pages[3])
    rotten[5000] ^= 1
    kept, site.pages[3] = site.pages[3], bytes(rotten)
    site.back_up()
    middle = list(site.pages)
    site.pages[3] = kept
    for block in range(PAGES):
        page = bytearray(site.pages[block])
        page[PAGE_BYTES - 9] ^= 1
        site.pages[block] = bytes(page)
    site.back_up()
    found, notes = site.restored()
    assert found == b"".join([*middle[:3], oldest[3], *middle[4:]])
    assert len(notes) == 2


def test_a_page_newer_than_the_start_of_its_backup_is_not_what_the_wal_says_it_is() -> None:
    site = Site()
    site.pages[5] = made_page(5, lsn=site.wal.lsn + 100_000)
    site.back_up()
    for block in range(PAGES):
        site.hint(block)
    site.back_up()
    assert re.search(r"block 5: .* no older backup of the same history has a version of", refusal(site.restored))


def test_the_last_image_in_front_of_the_backup_is_what_replay_would_put_in_place() -> None:
    site = Site()
    site.back_up()
    older = list(site.pages)
    lsns = {}
    for block in range(0, PAGES, 2):
        new = made_page(block, fill=b"n%d" % block, hole=500)
        site.log(Touched(block))
        lsns[block] = site.log(Touched(77), image_of(new, block), Touched(78))
        site.pages[block] = new
    for block in range(PAGES):
        site.hint(block)
    site.back_up()
    found, notes = site.restored()
    ends = dict(site.wal.records)
    for block in range(PAGES):
        page = found[block * PAGE_BYTES : (block + 1) * PAGE_BYTES]
        if block % 2:
            assert page == older[block]
            continue
        lsn, checksum, _ = read_page_header(page)
        assert (lsn, checksum) == (ends[lsns[block]], page_checksum(page, block))
        assert page[10:] == made_page(block, fill=b"n%d" % block, hole=500)[10:]
    said = f"its image in the WAL, which no later record has changed (hint bits may differ) ({Lsn(lsns[0])})"
    assert any(said in note for note in notes)


@pytest.mark.parametrize("after", ["image", "init"])
def test_a_record_that_changes_the_page_has_to_be_replayed_by_a_server(after: str) -> None:
    site = Site()
    site.back_up()
    site.log(image_of(site.pages[4], 4))
    at = site.log(Touched(4, will_init=after == "init"))
    for block in range(PAGES):
        site.hint(block)
    site.back_up()
    assert re.search(f"block 4: .* the record at {Lsn(at)} changes the page, and does not hold", refusal(site.restored))


def test_wal_with_a_gap_proves_nothing() -> None:
    site = Site()
    site.back_up()
    for _ in range(20):
        site.wal.add(bytes(60_000))
    for block in range(PAGES):
        site.hint(block)
    site.back_up()
    # The second segment is there, with the backup's own WAL; the first one is not.
    archived = site.repository.wal("shop", SYSTEM, SEGMENT)
    archived.put_range(1, Lsn(site.wal.start + SEGMENT), bytes(site.wal.content[SEGMENT:]))
    assert re.search(
        r"the WAL since shop@\S+ cannot be read: segment 0000000100000000000000\d\d is",
        refusal(lambda: site.restored(with_wal=False)),
    )


def test_the_wal_of_the_backup_has_to_be_there_to_its_end() -> None:
    site = Site()
    site.back_up()
    site.hint(1)
    site.back_up()
    site.put_wal(until=site.wal.lsn - 20)
    assert re.search(
        "what the WAL of the backup does to it cannot be told: segment", refusal(lambda: site.restored(with_wal=False))
    )


def test_with_wal_level_minimal_in_between_pages_may_have_changed_without_a_record() -> None:
    site = Site()
    site.back_up()
    main = struct.pack("<5iIBB", 100, 8, 10, 0, 64, 0, 0, 0)
    at = site.wal.add_main(main, rmgr=made.XLOG, info=made.PARAMETER_CHANGE)
    for block in range(PAGES):
        site.hint(block)
    site.back_up()
    assert re.search(f"wal_level was minimal at {Lsn(at)}", refusal(site.restored))


def test_files_that_are_no_relations_are_never_made_up() -> None:
    site = Site()
    status = {"pg_xact__0000": bytes(range(256)) * 256}
    site.back_up(**status)
    site.back_up(pg_xact__0000=bytes(range(1, 256)) + status["pg_xact__0000"][255:])
    assert re.search(
        "the file is no relation's, and WAL does not tell of it", refusal(lambda: site.restored("pg_xact/0000"))
    )


@pytest.mark.parametrize("fork", ["fsm", "vm"])
def test_maps_become_zeros(fork: str) -> None:
    site = Site()
    content = bytes([9]) * PAGE_BYTES * 3
    site.back_up(**{f"base__5__16384_{fork}": content})
    found, (note,) = site.restored(f"{TABLE}_{fork}")
    assert found == bytes(len(content))
    assert "nothing but a map of free space or of visibility is lost" in note


def test_what_pg_checksums_did_is_in_no_record() -> None:
    site = Site(checksums=False)
    site.pages = [page[:8] + bytes(2) + page[10:] for page in site.pages]
    site.back_up()
    for block in range(PAGES):
        site.hint(block)
    # Enabled with the server stopped: every page of the next backup has a checksum, those before it have none.
    site.details = {"data_checksums": True}
    site.back_up()
    assert "no older backup of the same history has a version of the page" in refusal(site.restored)


def test_pages_of_small_files_are_looked_up_as_well() -> None:
    site = Site()
    small = {"base__5__2619": made_page(0) + made_page(1), "base__5__3456": made_page(0, fill=b"q")}

    def during() -> None:
        site.log(image_of(made_page(0), 0, relation=(1663, 5, 2619)))

    site.back_up(**small)
    changed = {"base__5__2619": made_page(0, flags=1) + made_page(1, flags=1), "base__5__3456": made_page(0, flags=1)}
    site.back_up(during, **changed)
    found, notes = site.restored("base/5/2619")
    assert found == bytes(PAGE_BYTES) + made_page(1)
    assert len([note for note in notes if "base/5/2619" in note]) == 2


def test_a_relation_that_goes_during_the_backup_needs_nothing() -> None:
    site = Site()
    # A commit of a transaction that drops the relation: flags, no database, no subtransactions, one file.
    main = struct.pack("<QII", 0, 4, 1) + struct.pack("<III", 1663, 5, 16384)
    site.back_up(lambda: site.wal.add_main(main, rmgr=1, info=0x80, xid=9))
    assert site.restored()[0] == bytes(PAGES * PAGE_BYTES)


def test_a_database_whose_files_are_copied_meanwhile_is_read_before_it_is_written() -> None:
    site = Site()

    def during() -> None:
        site.wal.add_main(struct.pack("<4I", 99, 1663, 5, 1663), rmgr=made.DATABASE, info=0)
        for block in range(PAGES):
            site.log(image_of(site.pages[block], block))

    site.back_up(during)
    assert re.search("reads the page before it holds the whole", refusal(site.restored))


def test_a_database_that_was_moved_or_filled_in_between_is_refused() -> None:
    site = Site()
    site.back_up()
    at = site.wal.add_main(struct.pack("<4I", 5, 1663, 1, 1663), rmgr=made.DATABASE, info=0)
    for block in range(PAGES):
        site.hint(block)
    site.back_up()
    assert re.search(f"the record at {Lsn(at)} changes the page", refusal(site.restored))


def test_a_truncation_counts_for_the_blocks_that_it_takes() -> None:
    site = Site()
    site.back_up()
    at = site.wal.add_main(struct.pack("<I3II", 30, 1663, 5, 16384, 7), rmgr=made.STORAGE, info=0x20)
    for block in range(PAGES):
        site.hint(block)
    site.back_up()
    assert re.search(rf"block \d+: .* the record at {Lsn(at)}", refusal(site.restored))


def test_backups_of_another_timeline_are_none_of_the_history() -> None:
    site = Site()
    site.timeline = 2
    site.back_up()
    site.timeline = 1
    for block in range(PAGES):
        site.hint(block)
    site.back_up()
    assert re.search("no older backup of the same history has a version of the page", refusal(site.restored))


@pytest.mark.parametrize("with_history", [True, False])
def test_wal_is_followed_over_a_switch_of_timelines(with_history: bool) -> None:
    site = Site()
    older = list(site.pages)
    site.back_up()
    site.wal.add_up_to(site.wal.start + SEGMENT)
    image = made_page(5, fill=b"i")
    before = site.log(image_of(image, 5))
    switch = site.wal.lsn
    # A server that is promoted goes on in a copy of the segment, within the page, under the new timeline's name.
    site.timeline = site.wal.timeline = 2
    site.wal.add(bytes(20_000))
    for block in range(PAGES):
        site.hint(block)
    site.log(image_of(made_page(6, fill=b"j"), 6))
    site.back_up()
    archived = site.repository.wal("shop", SYSTEM, SEGMENT)
    content = bytes(site.wal.content)
    archived.put_range(1, Lsn(site.wal.start), content[:SEGMENT])
    archived.put_range(1, Lsn(site.wal.start + SEGMENT), content[SEGMENT : switch - site.wal.start])
    archived.put_range(2, Lsn(site.wal.start + SEGMENT), content[SEGMENT:])
    if not with_history:
        assert "the history of timeline 2 is not in" in refusal(lambda: site.restored(with_wal=False))
        return
    archived.put_file(2, "00000002.history", f"1\t{Lsn(switch)}\tno recovery target\n".encode())
    found, _ = site.restored(with_wal=False)
    pages = [found[block * PAGE_BYTES : (block + 1) * PAGE_BYTES] for block in range(PAGES)]
    assert read_page_header(pages[5])[0] == dict(site.wal.records)[before]
    assert (pages[5][10:], pages[6][10:]) == (image[10:], made_page(6, fill=b"j")[10:])
    assert [page for block, page in enumerate(pages) if block not in (5, 6)] == [
        page for block, page in enumerate(older) if block not in (5, 6)
    ]


def test_a_page_of_zeros_is_known_by_its_sum() -> None:
    site = Site()
    site.pages[3:5] = [bytes(PAGE_BYTES)] * 2

    def during() -> None:
        for block in range(PAGES):
            if block not in (3, 4):
                site.log(image_of(site.pages[block], block))

    site.back_up(during)
    found, notes = site.restored()
    assert found == bytes(PAGES * PAGE_BYTES)
    assert any("(blocks 3-4)" in note and "nothing but zeros" in note for note in notes)


def _pglz(page: bytes) -> bytes:
    """Compress as pglz may: all that can be as repetitions of the byte before, of up to 273 bytes."""
    result, items = bytearray(), []
    at = 0
    while at < len(page):
        run = 0
        while at and at + run < len(page) and page[at + run] == page[at - 1] and run < 273:
            run += 1
        if run >= 18:
            items.append((True, bytes([0x0F, 0x01, run - 18])))
            at += run
        elif run >= 3:
            items.append((True, bytes([run - 3, 0x01])))
            at += run
        else:
            items.append((False, page[at : at + 1]))
            at += 1
    for first in range(0, len(items), 8):
        group = items[first : first + 8]
        result.append(sum(1 << bit for bit, (is_tag, _) in enumerate(group) if is_tag))
        result += b"".join(content for _, content in group)
    return bytes(result)


METHODS: list[tuple[int, int, Callable[[bytes], bytes]]] = [
    (0xD10D, 0x02 | 0x04, _pglz),
    (0xD110, made.PGLZ | made.APPLIES, _pglz),
    (0xD110, made.LZ4 | made.APPLIES, lambda raw: lz4.block.compress(raw, store_size=False)),
    (0xD118, made.ZSTD | made.APPLIES, lambda raw: zstandard.ZstdCompressor().compress(raw)),
]


@pytest.mark.parametrize(("magic", "flags", "compress"), METHODS)
@pytest.mark.parametrize("with_hole", [False, True])
def test_images_are_decompressed(magic: int, flags: int, compress: Callable[[bytes], bytes], with_hole: bool) -> None:
    page = made_page(6, lsn=0x5_0000_1234, hole=3000 if with_hole else 0, fill=b"abcabcabdd")
    lower, upper = struct.unpack_from("<HH", page, 12)
    one = Touched(
        6, image=compress(page[:lower] + page[upper:]), image_flags=flags, hole=(lower, upper - lower),
        is_compressed=True,
    )  # fmt: skip
    body = record_body([Touched(5), one, Touched(7, image=b"x" * PAGE_BYTES, image_flags=0)])
    record = Record(Lsn(0x100), Lsn(0x5_0000_1234), 24 + len(body), 0, Lsn(0), 0, made.HEAP, magic, body)
    block = BlockId(RelationFile(1663, 5, 16384), 0, 6)
    assert page_image(record, block) == page
    assert page_image(record, block._replace(block=7)) is None
    assert page_image(record, block._replace(block=8)) is None
    chance = random.Random(magic)
    for _ in range(300):
        # Cut or changed: refused, or another page; never anything else.
        wrong = bytearray(body)
        for _ in range(chance.choice([1, 3])):
            wrong[chance.randrange(len(wrong))] = chance.randrange(256)
        cut = bytes(wrong[: chance.choice([len(wrong), chance.randrange(len(wrong))])])
        try:
            found = page_image(replace(record, body=cut), block)
        except ValueError:
            continue
        assert found is None or len(found) == PAGE_BYTES


def test_pglz_repeats_what_it_wrote_and_refuses_what_makes_no_sense() -> None:
    assert expand_pglz(b"\x02a\x01\x01bcd", 8) == b"aaaaabcd"
    assert expand_pglz(bytes([0b10, ord("a"), 0x0F, 0x01, 255]), 274) == b"a" * 274
    for wrong in (b"\x01\x01\x01", b"\x02a\x01\x02", b"\x02a\x01", b"\x00ab", b"\x00abcdefghijk"):
        with pytest.raises(ValueError, match=r"repeats|within a tag|came out"):
            expand_pglz(wrong, 8)
