"""Repositories that an earlier version wrote: they must be read for ever, byte for byte."""

from __future__ import annotations

import base64
import json
import runpy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard

from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.reading.verify import verify_backup, verify_objects
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from support.repositories import Tree, back_up, reopened, restore

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str) -> Repository:
    store = MemoryStore()
    objects = json.loads(zstandard.decompress((GOLDEN / name).read_bytes()))
    for object_name, content in objects.items():
        store.put_new(object_name, [base64.b64decode(content)])
    return reopened(Repository(WriteOnce(store), None, b"", lambda length: bytes(length)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["repository-1-plain.json.zst", "repository-1-encrypted.json.zst"])
def test_a_repository_of_format_1_is_read_verified_and_continued(name: str) -> None:
    golden_trees: Callable[[], list[Tree]] = runpy.run_path(str(GOLDEN / "make_repository.py"))["golden_trees"]
    repository = load(name)
    labels = repository.labels("shop")
    assert [label[:16] for label in labels] == ["20261125T224401Z", "20261125T224501Z"]
    for label, tree in zip(labels, golden_trees(), strict=True):
        assert restore(repository, label) == tree
        assert list(verify_objects(repository.store, repository.codec, ClusterNames("shop"), label)) == []
        reader = repository.open_backup("shop", label)
        with ThreadPoolExecutor(1) as pool:
            assert list(verify_backup(reader, repository.page_key, pool)) == []
        assert list(reader.attachments()) == ["backup_manifest"]
    assert repository.records("shop")[1].parent == labels[0]
    tree = golden_trees()[1]
    more = back_up(repository, tree, parent=labels[1], minutes=2)
    assert more.counts.new_bytes == 0, "page sums are no longer what they were"
    assert restore(repository, more.label) == tree


@pytest.mark.parametrize("name", ["repository-1-compacted-plain.json.zst", "repository-1-compacted-encrypted.json.zst"])
def test_what_compaction_has_moved_is_found(name: str) -> None:
    golden_trees: Callable[[], list[Tree]] = runpy.run_path(str(GOLDEN / "make_repository.py"))["golden_trees"]
    repository = load(name)
    (label,) = repository.labels("shop")
    tree = golden_trees()[1]
    assert [one.name for one in repository.store.list_objects("moves")]
    assert restore(repository, label) == tree
    assert list(verify_objects(repository.store, repository.codec, ClusterNames("shop"), label)) == []
    more = back_up(repository, tree, parent=label, minutes=2)
    assert more.counts.new_bytes == 0
    assert restore(repository, more.label) == tree
