"""The real PFS that tests may use: which disks, and a directory on one of them for one test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from polarvault.model.pfs_address import PfsAddress
from polarvault.storage.trees.model import EntryKind
from polarvault.storage.trees.pfs.mount import PfsMount
from polarvault.storage.trees.pfs.tree import PfsWritableTree

DISKS_VARIABLE = "POLARVAULT_PFS"
MISSING = (
    f"no PFS: name disks that pfsd serves on this machine in {DISKS_VARIABLE}, such as loop1,loop2 (docs/pfs.md); "
    "tests make directories on them and remove them"
)
_numbers = itertools.count(1)


def pfs_disks() -> list[str]:
    """Return the disks that tests may write to."""
    return [name for name in os.environ.get(DISKS_VARIABLE, "").split(",") if name]


def fresh_directory(disk: str) -> PfsAddress:
    """Return a directory that nobody has."""
    return PfsAddress(disk, f"polarvault-test-{os.getpid()}-{next(_numbers)}")


def own_host_id() -> int:
    """Return a host number for a test's own mounts; servers of tests are numbered from 1."""
    return 20 + os.getpid() % 9


def remove_all(tree: PfsWritableTree, name: str = "") -> None:
    """Empty a directory."""
    for entry in tree.list(name):
        path = f"{name}/{entry.name}" if name else entry.name
        if entry.kind is EntryKind.DIRECTORY:
            remove_all(tree, path)
            tree.remove_directory(path)
        else:
            tree.remove(path)


@contextmanager
def scratch_tree(disk: str) -> Iterator[PfsWritableTree]:
    """Make an empty directory and open it; it is gone afterwards."""
    tree = PfsWritableTree(PfsMount(fresh_directory(disk), host_id=own_host_id()))
    made = tree.make_root()
    try:
        yield tree
    finally:
        with suppress(OSError):
            remove_all(tree)
            tree.remove_root(made)
        tree.close()
