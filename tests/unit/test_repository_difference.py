"""What differs between files at hand and a backup: found by page sums, and enough to make one of the other."""

from __future__ import annotations

import random

import pytest

import polarvault.repository.reading.difference
from polarvault.repository.index.files import FileRow
from polarvault.repository.reading.backup_reader import deliver_extents
from polarvault.repository.reading.difference import Difference, Found, jobs
from support.repositories import PAGE, Tree, back_up, new_repository

SIZES = [0, 1, PAGE, 64 << 10, (64 << 10) + 1, 256 << 10, (256 << 10) + 5, 9_000_000]


class InMemory:
    """A file at hand."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, offset: int, into: memoryview) -> int:
        part = self.content[offset : offset + len(into)]
        into[: len(part)] = part
        return len(part)


def tree_of(seed: int) -> Tree:
    chance = random.Random(seed)
    return {(number % 2, b"base/5/%d" % number): chance.randbytes(size) for number, size in enumerate(SIZES)}


def brought(held: Tree, wanted: Tree, *, rounds: int = 1) -> tuple[Tree, Found]:
    """Bring files to a backup; return what became of them, and what was found."""
    repository = new_repository()
    parent = None
    for number in range(rounds):
        parent = back_up(repository, wanted if number == rounds - 1 else held, parent=parent, minutes=number).label
    assert parent is not None
    reader = repository.open_backup("shop", parent)
    difference, found, result = Difference(reader, repository.page_key), Found(), {}
    for job in jobs(reader, lambda row: True):
        for row in job.rows:
            content = held.get((row.part, row.path))
            difference.find(row, job.start, None if content is None else InMemory(content), found)
            result[row.part, row.path] = bytearray((content or b"")[: row.size].ljust(row.size, b"\0"))

    def put(row: FileRow, offset: int, view: memoryview) -> None:
        result[row.part, row.path][offset : offset + len(view)] = view

    deliver_extents(reader, found.extents, put)
    return {key: bytes(content) for key, content in result.items()}, found


def test_the_same_files_need_nothing() -> None:
    tree = tree_of(1)
    became, found = brought(tree, tree)
    assert became == tree
    assert (found.differing_bytes, found.stored_bytes) == (0, 0)
    assert found.compared_bytes == sum(SIZES)


@pytest.mark.parametrize("rounds", [1, 2])
def test_only_the_pages_that_differ_are_delivered(rounds: int) -> None:
    tree = tree_of(2)
    held = dict(tree)
    key = (1, b"base/5/7")
    content = bytearray(tree[key])
    for page in (0, 3, 500, len(content) // PAGE):
        content[page * PAGE] ^= 1
    held[key] = bytes(content)
    became, found = brought(held, tree, rounds=rounds)
    assert became == tree
    last = len(content) % PAGE
    assert found.differing_bytes == 3 * PAGE + last
    assert 0 < found.stored_bytes < 1_200_000


@pytest.mark.parametrize("cut", [0, 1, PAGE, PAGE + 1, 256 << 10, 8 << 20, 8_999_999])
def test_what_a_short_file_lacks_differs(cut: int) -> None:
    tree = tree_of(3)
    held = {key: content[:cut] for key, content in tree.items()}
    became, found = brought(held, tree)
    assert became == tree
    longest = max(SIZES)
    assert found.differing_bytes >= longest - cut


def test_files_that_are_not_there_differ_whole() -> None:
    tree = tree_of(4)
    became, found = brought({}, tree)
    assert became == tree
    assert found.differing_bytes == sum(SIZES)


def test_a_longer_file_is_compared_up_to_the_size_that_it_is_to_have() -> None:
    tree = tree_of(5)
    became, found = brought({key: content + b"more" * 5000 for key, content in tree.items()}, tree)
    assert became == tree
    assert not found.extents


@pytest.mark.parametrize("stretch", [64 << 20, 1 << 20])
@pytest.mark.parametrize("seed", range(4))
def test_anything_becomes_the_backup(monkeypatch: pytest.MonkeyPatch, seed: int, stretch: int) -> None:
    monkeypatch.setattr(polarvault.repository.reading.difference, "SHARE_BYTES", stretch)
    chance = random.Random(seed)
    tree, held = tree_of(6), {}
    for key, content in tree.items():
        changed = bytearray(content[: chance.randrange(len(content) + 1)] if chance.random() < 0.4 else content)
        for _ in range(chance.randrange(4)):
            if changed:
                changed[chance.randrange(len(changed))] ^= 255
        if chance.random() < 0.9:
            held[key] = bytes(changed)
    assert brought(held, tree)[0] == tree
