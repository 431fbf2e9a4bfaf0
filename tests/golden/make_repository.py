"""Make the golden repository of format 1, once: later versions must read it as it is. Run with the tests' path."""

from __future__ import annotations

import base64
import json
import random
import sys
from pathlib import Path

import zstandard

from polarvault.config.model import Retention
from polarvault.retention.expire import ExpireRequest, expire
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from support.crossing import with_wal
from support.repositories import PAGE, Tree, back_up, new_repository


def golden_trees() -> list[Tree]:
    """Return what the two backups hold."""
    chance = random.Random(20261126)
    first: Tree = {
        (0, b"PG_VERSION"): b"18\n",
        (0, b"base/5/1259"): bytes(PAGE) + chance.randbytes(PAGE),
        (0, b"base/5/16384"): chance.randbytes(2 * PAGE) * 40,
        (1, b"PG_18_202506291/5/16390"): b"tablespace" * 10_000,
        (0, b"empty"): b"",
        (0, b"name \xff that is no UTF-8"): b"x",
    }
    content = first[0, b"base/5/16384"]
    second = {**first, (0, b"base/5/16384"): content[: 3 * PAGE] + b"changed!" + content[3 * PAGE + 8 :] + b"tail"}
    del second[0, b"empty"]
    return [first, second]


def main(target: str, *, encrypted: bool, compacted: bool) -> None:
    """Write the objects of the repository into one compressed JSON file. compacted: with one backup and its moves."""
    store = MemoryStore()
    repository = new_repository(WriteOnce(store), seed=42, encrypted=encrypted)
    if compacted:
        with_wal(repository)
    first, second = golden_trees()
    full = back_up(repository, first)
    back_up(repository, second, parent=full.label, minutes=1)
    if compacted:
        policy = ExpireRequest("shop", Retention(keep=1), safety_s=0, compact_below=0.999)
        assert expire(repository, policy).compacted.packs
        assert expire(repository, policy).removed.packs
    objects = {
        one.name: base64.b64encode(store.get(one.name, most_bytes=1 << 26)).decode() for one in store.list_objects()
    }
    Path(target).write_bytes(zstandard.compress(json.dumps(objects, indent=0).encode(), 19))


if __name__ == "__main__":
    main(sys.argv[1], encrypted="encrypted" in sys.argv[2:], compacted="compacted" in sys.argv[2:])
