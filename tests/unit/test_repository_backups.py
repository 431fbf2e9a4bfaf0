"""Backups in a repository against a naive store: random trees that change over ten rounds, each restored whole."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from polarvault.errors import PolarvaultError, RemoteProtocolError, RepositoryMismatch, RepositoryNotFound, UsageError
from polarvault.repository.catalogue import beginning
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.index.files import FileKind
from polarvault.repository.reading.refs import read_refs
from polarvault.repository.reading.verify import verify_backup, verify_objects
from polarvault.repository.writing.backup_writer import Member
from support.repositories import NOW, PAGE, PARTS, Tree, back_up, facts, feed, new_repository, reopened, restore

SIZES = [
    0,
    1,
    700,
    PAGE,
    3 * PAGE,
    64 << 10,
    (64 << 10) + 1,
    9 * PAGE,
    256 << 10,
    (256 << 10) + 5,
    700 << 10,
    1300 << 10,
]


def first_tree(chance: random.Random, count: int = 24) -> Tree:
    tree: Tree = {}
    for number in range(count):
        size = SIZES[number % len(SIZES)]
        content = chance.randbytes(size // 2) + bytes(size - size // 2)
        tree[number % 5 == 4, b"base/5/%d" % (16384 + number)] = content
    return tree


def change(chance: random.Random, tree: Tree, round_number: int) -> Tree:
    """Write pages, grow, cut, remove, make and replace files, as a server does."""
    changed = dict(tree)
    for key, content in list(changed.items()):
        what = chance.random()
        pages = bytearray(content)
        if what < 0.5 and content:
            for _ in range(chance.choice([1, 1, 2, 5, 60])):
                at = chance.randrange(len(pages)) // PAGE * PAGE
                pages[at : at + 8] = chance.randbytes(len(pages[at : at + 8]))
            changed[key] = bytes(pages)
        elif what < 0.6:
            changed[key] = content + chance.randbytes(chance.choice([1, PAGE, 3 * PAGE, 300_000]))
        elif what < 0.7:
            changed[key] = content[: chance.randrange(len(content) + 1) // PAGE * PAGE]
        elif what < 0.75:
            changed[key] = content[: chance.randrange(len(content) + 1)]
        elif what < 0.8:
            del changed[key]
    changed[0, b"base/5/new%d" % round_number] = chance.randbytes(chance.choice(SIZES))
    return changed


@pytest.mark.parametrize(("seed", "encrypted"), [(1, False), (2, False), (3, True)])
def test_ten_rounds_are_each_restored_byte_for_byte(seed: int, encrypted: bool) -> None:
    chance = random.Random(seed)
    repository = new_repository(seed=seed, encrypted=encrypted)
    tree, parent = first_tree(chance), None
    naive: dict[str, Tree] = {}
    for number in range(11):
        outcome = back_up(repository, tree, parent=parent, minutes=number)
        naive[outcome.label] = parent_tree = tree
        parent = outcome.label
        assert restore(repository, parent) == parent_tree
        tree = change(chance, tree, number)
    again = reopened(repository)
    names = ClusterNames("shop")
    for label, expected in naive.items():
        assert restore(again, label) == expected
        reader = again.open_backup("shop", label)
        with ThreadPoolExecutor(2) as pool:
            assert list(verify_backup(reader, again.page_key, pool)) == []
        assert list(verify_objects(again.store, again.codec, names, label)) == []
        for row in list(reader.rows())[::3]:
            content = expected.get((row.part, row.path), b"")
            for offset in (0, 5, row.size // 2, row.size - 1, row.size + 10):
                if row.kind is FileKind.FILE and offset >= 0:
                    assert reader.read(row, offset, 20_000) == content[offset : offset + 20_000]
    assert again.labels("shop") == sorted(naive)


def test_an_unchanged_tree_costs_next_to_nothing() -> None:
    repository = new_repository()
    tree = first_tree(random.Random(5), 60)
    full = back_up(repository, tree)
    again = back_up(repository, tree, parent=full.label, minutes=1)
    assert again.counts.read_bytes == full.counts.read_bytes
    assert (again.counts.changed_bytes, again.counts.new_bytes, again.counts.stored_bytes) == (0, 0, 0)
    assert again.packs == 0
    assert restore(repository, again.label) == tree


def test_one_changed_page_costs_a_page_and_little_index() -> None:
    repository = new_repository()
    content = random.Random(6).randbytes(64 << 20)
    full = back_up(repository, {(0, b"base/5/1"): content})
    everything = sum(one.size_bytes for one in repository.store.list_objects())
    assert everything - len(content) < 0.0025 * len(content), "pages of random bytes: the rest is index"
    changed = content[: 40 << 20] + bytes(PAGE) + content[(40 << 20) + PAGE :]
    more = back_up(repository, {(0, b"base/5/1"): changed}, parent=full.label, minutes=1)
    assert more.counts.changed_bytes == PAGE
    assert more.counts.stored_bytes < 2000
    assert restore(repository, more.label) == {(0, b"base/5/1"): changed}


def test_many_incrementals_of_one_hot_page_keep_the_list_of_overlays_short() -> None:
    repository = new_repository()
    chance = random.Random(7)
    tree: Tree = {(0, b"base/5/1"): chance.randbytes(512 << 10)}
    parent = back_up(repository, tree).label
    for number in range(20):
        content = bytearray(tree[0, b"base/5/1"])
        for page in (number % 3, 40):
            content[page * PAGE : page * PAGE + 9] = chance.randbytes(9)
        tree = {(0, b"base/5/1"): bytes(content)}
        outcome = back_up(repository, tree, parent=parent, minutes=number + 1)
        parent = outcome.label
        assert outcome.counts.new_bytes <= 12 * PAGE
        assert restore(repository, parent) == tree
    (row,) = [row for row in repository.open_backup("shop", parent).rows() if row.kind is FileKind.FILE]
    table = repository.open_backup("shop", parent).index.table(row.tables[0]).table
    assert max(len(piece.overlays) for piece in table.pieces) <= 7
    assert len(table.sums) <= 8


def test_what_a_killed_backup_left_is_adopted_and_needs_no_record() -> None:
    repository = new_repository()
    chance = random.Random(8)
    tree: Tree = {(0, b"base/5/%d" % number): chance.randbytes(1 << 20) for number in range(80)}
    killed = repository.begin_backup("shop", started=NOW, parts=PARTS)
    feed(killed, tree)
    killed.abandon()
    assert repository.labels("shop") == []
    with pytest.raises(RepositoryNotFound, match="no backup"):
        repository.find_label("shop", "latest")
    outcome = back_up(repository, tree, minutes=1)
    assert outcome.counts.adopted_bytes >= 60 << 20
    assert outcome.counts.stored_bytes < 22 << 20
    assert restore(repository, outcome.label) == tree
    used = read_refs(repository.store, repository.codec, ClusterNames("shop"), outcome.label).packs
    assert {pack.label for pack in used} == {killed.label, outcome.label}


def test_labels_are_found_by_beginning_and_latest() -> None:
    repository = new_repository()
    tree: Tree = {(0, b"PG_VERSION"): b"18\n"}
    labels = [back_up(repository, tree, minutes=number).label for number in (0, 1)]
    assert labels[0].startswith("20261125T224401Z-")
    assert repository.find_label("shop", "latest") == labels[1]
    assert repository.find_label("shop", "20261125T2244") == labels[0]
    with pytest.raises(UsageError, match="2 backups"):
        repository.find_label("shop", "20261125T22")
    with pytest.raises(RepositoryNotFound):
        repository.find_label("shop", "2025")
    for wrong in ("", "..", "Shop", "a/b", "a" * 64, "-a"):
        with pytest.raises(UsageError, match="cannot be the name"):
            repository.labels(wrong)


def test_a_full_backup_of_other_content_under_a_parent_is_right() -> None:
    repository = new_repository()
    one = back_up(repository, {(0, b"base/5/1"): bytes(900_000), (0, b"x"): b"1"})
    tree: Tree = {(0, b"base/5/1"): b"\1" * 20, (0, b"x"): bytes(400_000)}
    assert restore(repository, back_up(repository, tree, parent=one.label, minutes=1).label) == tree


def test_distrusted_chunks_are_stored_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    repository = new_repository()
    tree = first_tree(random.Random(9))
    full = back_up(repository, tree)
    monkeypatch.setattr(beginning, "_known_damage", lambda repository, cluster: lambda ref: True)
    writer = repository.begin_backup("shop", started=NOW, parts=PARTS, parent=full.label)
    feed(writer, tree)
    outcome = writer.commit(facts(3))
    assert outcome.counts.new_bytes == sum(map(len, tree.values()))
    used = read_refs(repository.store, repository.codec, ClusterNames("shop"), outcome.label).packs
    data = {pack.label for pack in used if pack.digest is None}
    assert data <= {full.label}
    assert restore(repository, outcome.label) == tree


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([(b"../x", 0, 0)], "no file can be"),
        ([(b"x", 3, 2)], "lacks 1 bytes"),
        ([(b"x", 3, 4)], "longer"),
    ],
)
def test_a_stream_that_cannot_be_makes_no_backup(members: list[tuple[bytes, int, int]], message: str) -> None:
    repository = new_repository()
    writer = repository.begin_backup("shop", started=NOW, parts=PARTS)

    def send_all() -> None:
        for path, size, sent in members:
            writer.begin(Member(0, path, FileKind.FILE, size))
            writer.data([b"a" * sent])
            writer.end()
        writer.commit(facts())

    with pytest.raises(RemoteProtocolError, match=message):
        send_all()
    writer.abandon()
    writer.abandon()
    assert repository.labels("shop") == []


def test_of_a_file_that_comes_twice_the_last_one_counts() -> None:
    repository = new_repository()
    writer = repository.begin_backup("shop", started=NOW, parts=PARTS)
    for path, content in ((b"y", b"1"), (b"x", bytes(300_000)), (b"xx", b"2"), (b"x", b"3"), (b"y", b"44")):
        writer.begin(Member(0, path, FileKind.FILE, len(content)))
        writer.data([content])
        writer.end()
    label = writer.commit(facts()).label
    assert restore(repository, label) == {(0, b"x"): b"3", (0, b"xx"): b"2", (0, b"y"): b"44"}


def test_another_repository_or_a_plain_one_in_its_place_is_refused() -> None:
    repository = new_repository()
    with pytest.raises(RepositoryMismatch, match="expected"):
        Repository.open(repository.store, expected_id=bytes(16))
    with pytest.raises(RepositoryMismatch, match="not encrypted"):
        Repository.open(repository.store, encrypted=True)
    with pytest.raises(PolarvaultError, match="holds a repository already"):
        new_repository(repository.store)


def test_the_index_of_many_files_is_read_with_few_requests() -> None:
    repository = new_repository()
    chance = random.Random(10)
    tree: Tree = {(0, b"base/5/%d" % number): chance.randbytes(70_000) for number in range(400)}
    full = back_up(repository, tree)
    before = repository.store.counts()
    for key in list(tree)[::2]:
        tree[key] = tree[key][:-1] + b"!"
    more = back_up(repository, tree, parent=full.label, minutes=1)
    assert more.counts.changed_bytes == 200 * PAGE
    assert repository.store.counts().since(before).gets < 40
    assert restore(repository, more.label) == tree
