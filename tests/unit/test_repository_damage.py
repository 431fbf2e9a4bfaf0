"""Bit flips and strangers' bytes: every one is found, by verification and by the reader that needs it; no traceback."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from polarvault.errors import IntegrityError, ObjectDamaged, PolarvaultError
from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.repository.format.chunks import ChunkKind, ChunkRef, placed
from polarvault.repository.format.frame import Kind
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.reading.rescue import Rescue
from polarvault.repository.reading.verify import verify_backup, verify_objects
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from support.repositories import PAGE, Tree, back_up, new_repository, reopened, restore

GENERATION = Generation(7_000_000_000_000_000_001, 180000, False, 16 << 20, 1 << 30, True)


def made(encrypted: bool) -> tuple[MemoryStore, Repository, dict[str, Tree]]:
    """Return a repository with a full and two incremental backups, and what is in them."""
    store = MemoryStore()
    repository = new_repository(WriteOnce(store), encrypted=encrypted)
    chance = random.Random(3)
    tree: Tree = {(0, b"base/5/%d" % number): chance.randbytes(number * 30_000) for number in range(12)}
    kept = {}
    parent = None
    for number in range(3):
        outcome = back_up(repository, tree, parent=parent, minutes=number)
        parent = outcome.label
        kept[parent] = dict(tree)
        for key, content in tree.items():
            if len(content) > PAGE:
                tree[key] = content[: 4 * PAGE] + chance.randbytes(9) + content[4 * PAGE + 9 :]
    repository.ensure_generation("shop", GENERATION)
    return store, repository, kept


def problems(repository: Repository) -> list[str]:
    """Return everything that opening, listing, verifying and restoring all backups says is wrong."""
    found: list[str] = []
    try:
        again = reopened(repository)
        again.ensure_generation("shop", GENERATION)
        found += again.damaged_keys()
        for label in again.labels("shop"):
            found += [one.message for one in verify_objects(again.store, again.codec, ClusterNames("shop"), label)]
            with ThreadPoolExecutor(1) as pool:
                reader = again.open_backup("shop", label)
                found += [one.message for one in verify_backup(reader, again.page_key, pool)]
    except PolarvaultError as problem:
        found.append(problem.message)
    return found


@pytest.mark.parametrize("encrypted", [False, True])
def test_every_flipped_bit_is_found_and_no_wrong_byte_is_restored(encrypted: bool) -> None:
    store, repository, kept = made(encrypted)
    assert problems(repository) == []
    chance = random.Random(4)
    kinds = set()
    names = [one.name for one in store.list_objects()]
    assert len(names) > 10
    for name in [*names, *chance.choices(names, k=200)]:
        content, modified = store._objects[name]
        flipped = bytearray(content)
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        store._objects[name] = bytes(flipped), modified
        kinds.add(name.split("/")[-1] if "backups" in name else name.split("/")[0])
        assert problems(repository), name
        for label, tree in kept.items():
            try:
                again = restore(reopened(repository), label)
            except PolarvaultError:
                continue
            assert again == tree, f"{name} is damaged, and other bytes were restored"
        store._objects[name] = content, modified
    assert {"record", "root", "refs", "manifest", "polarvault.json", "clusters"} <= kinds


@pytest.mark.parametrize("encrypted", [False, True])
def test_objects_that_are_cut_swapped_or_gone_are_found(encrypted: bool) -> None:
    store, repository, _ = made(encrypted)
    names = [one.name for one in store.list_objects() if not one.name.startswith("keys")]
    for number, name in enumerate(names):
        kept = dict(store._objects)
        content, modified = kept[name]
        other = kept[names[(number + 1) % len(names)]][0]
        for wrong in (content[:-1], content[: len(content) // 2], b"", content + b"\0", other):
            store._objects[name] = wrong, modified
            assert problems(repository), (name, len(wrong))
        del store._objects[name]
        if name.endswith(("record", str(GENERATION.system_identifier))):
            store._objects = kept
            continue
        assert problems(repository), name
        store._objects = kept


def test_damage_names_chunk_file_and_block() -> None:
    store, repository, kept = made(False)
    label = next(iter(kept))
    reader = repository.open_backup("shop", label)
    row = next(row for row in reader.rows() if row.path == b"base/5/11")
    piece = reader.index.table(row.tables[0]).table.pieces[1]
    name = ClusterNames("shop").pack(piece.base.label, piece.base.pack)
    content, modified = store._objects[name]
    damaged = bytearray(content)
    damaged[piece.base.offset + 1000] ^= 4
    store._objects[name] = bytes(damaged), modified
    with ThreadPoolExecutor(1) as pool:
        found = list(verify_backup(reader, repository.page_key, pool))
    assert {(one.path, one.block) for one in found} == {("base/5/11", 32)}
    assert {one.chunk for one in found} == {piece.base}
    with pytest.raises(ObjectDamaged, match=r"'base/5/11' cannot be read at block 32: chunk \d+ of .*pack"):
        restore(repository, label)
    with pytest.raises(ObjectDamaged, match=r"'base/5/11' cannot be read at block 32: chunk \d+ of .*pack"):
        list(reader.stream(row))


def test_sums_that_do_not_fit_are_found() -> None:
    _, repository, kept = made(False)
    reader = repository.open_backup("shop", next(iter(kept)))
    with ThreadPoolExecutor(1) as pool:
        found = list(verify_backup(reader, bytes(32), pool))
    assert {one.message for one in found} == {
        "the content and its page sums do not agree",
        "its content and its page sums do not agree",
    }


def test_what_a_stranger_put_together_is_refused_and_never_a_traceback() -> None:
    _, repository, _ = made(False)
    chance = random.Random(5)
    codec = repository.codec
    for kind in (Kind.RECORD, Kind.ROOT, Kind.REFS):
        for number in range(300):
            sealed = chance.randbytes(chance.choice([0, 1, 2, 10, 60, 300]))
            parts = codec.document(kind, "clusters/shop/backups/x/y", {"a": number}, sealed)
            content = bytearray(b"".join(parts))
            body = content[48:-32]
            for _ in range(chance.choice([0, 1, 3])):
                body[chance.randrange(len(body))] = chance.randrange(256)
            made_up, _ = codec.close("n", codec.new_header(kind), [bytes(body)])
            try:
                codec.read_document(kind, "n", b"".join(made_up))
            except IntegrityError:
                continue


def test_kinds_of_chunks_are_all_used() -> None:
    _, repository, kept = made(False)
    names = ClusterNames("shop")
    reader = repository.open_backup("shop", next(iter(kept)))
    kinds = set()
    for one in repository.store.list_objects(names.all_packs):
        label, number = one.name.split("/")[-2:]
        kinds |= {chunk.kind for chunk in reader.chunks.footer(label, int(number), one.size_bytes)}
    assert kinds == set(ChunkKind) - {ChunkKind.ATTACHMENT, ChunkKind.ATTACHMENTS}
    assert reader.attachments() == {"backup_manifest": b'{"PostgreSQL-Backup-Manifest-Version": 2}'}


def test_a_damaged_index_of_the_parent_is_no_evidence_and_no_obstacle() -> None:
    store, repository, kept = made(False)
    label = list(kept)[-1]
    names = ClusterNames("shop")
    reader = repository.open_backup("shop", label)
    rows = [row for row in reader.rows() if row.tables]
    refs = [rows[0].tables[0], reader.index.table(rows[1].tables[0]).table.sums[0], reader.root.files[0].ref]
    for number, ref in enumerate(refs):
        before = dict(store._objects)
        name = names.pack(ref.label, ref.pack)
        content, modified = store._objects[name]
        damaged = bytearray(content)
        damaged[ref.offset + ref.stored // 2] ^= 1
        store._objects[name] = bytes(damaged), modified
        tree = {
            key: content[:-9] + b"different" if len(content) > 9 else content for key, content in kept[label].items()
        }
        outcome = back_up(repository, tree, parent=label, minutes=9 + number)
        assert len(outcome.unusable) == 1
        assert f"{ref.label}/{ref.pack:06}" in outcome.unusable[0]
        assert restore(repository, outcome.label) == tree
        store._objects = before


@pytest.mark.parametrize("encrypted", [False, True])
def test_pages_that_another_backup_has_elsewhere_are_taken_from_there(encrypted: bool) -> None:
    store = MemoryStore()
    repository = new_repository(WriteOnce(store), encrypted=encrypted)
    chance = random.Random(5)
    content = chance.randbytes(300 * PAGE + 100)
    tree: Tree = {(0, b"base/5/1"): content, (0, b"small"): b"s" * 999}
    first = back_up(repository, tree).label
    # A full one: it has everything once more, in packs of its own, but for the first page.
    second = back_up(repository, {**tree, (0, b"base/5/1"): b"other" + content[5:]}, minutes=1).label
    reader = repository.open_backup("shop", first)
    rows = {row.path: row for row in reader.rows()}
    pieces = reader.index.table(rows[b"base/5/1"].tables[0]).table.pieces

    def flip(chunk: ChunkRef) -> None:
        name = ClusterNames("shop").pack(chunk.label, chunk.pack)
        kept, modified = store._objects[name]
        flipped = bytearray(kept)
        flipped[chunk.offset + chunk.stored // 2] ^= 1
        store._objects[name] = bytes(flipped), modified

    def restored() -> tuple[Tree, Rescue]:
        again = reopened(repository)
        opened = again.open_backup("shop", first)
        rescue = opened.rescue = Rescue(again, "shop", opened)
        found = {(row.part, row.path): bytearray(row.size) for row in opened.rows() if row.kind is FileKind.FILE}

        def put(row: FileRow, offset: int, view: memoryview) -> None:
            found[row.part, row.path][offset : offset + len(view)] = view

        for share in opened.shares():
            share.deliver(put)
        return {key: bytes(into) for key, into in found.items()}, rescue

    for chunk in (rows[b"small"].bundle, pieces[3].base, pieces[-1].base):
        flip(placed(chunk) if chunk is not None else pieces[1].base)
    with pytest.raises(ObjectDamaged):
        restore(reopened(repository), first)
    found, rescue = restored()
    assert found == tree
    same = f"taken from shop@{second}, which has the same"
    assert {where for _, where in rescue.taken} == {same}
    assert sorted(rescue.taken["base/5/1", same]) == [*range(96, 128), *range(288, 301)]
    assert [note for note in rescue.notes() if "'small' (block 0), damaged" in note and same in note]
    assert [note for note in rescue.notes() if "'base/5/1' (blocks 96-127, 288-300)" in note]
    # The first page is another one there: nothing is made up.
    flip(placed(pieces[0].base))
    with pytest.raises(ObjectDamaged, match="at block 0:"):
        restored()
