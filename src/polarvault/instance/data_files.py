"""Files of the server's data after its start, wherever they lie: in directories of this machine, or in PFS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from polarvault.backupset.model import CONTROL_NAME
from polarvault.instance.model import Instance
from polarvault.model.pfs_address import PfsAddress
from polarvault.storage.files import storage_failed
from polarvault.storage.trees.pfs.tree import PfsTree
from polarvault.storage.trees.small_files import read_file


def read_control(instance: Instance) -> bytes:
    """Return pg_control as it is now; raise OSError, and StorageFailed where PFS does not answer."""
    if instance.pfs is not None:
        with opened_data(instance) as tree:
            return read_file(tree, CONTROL_NAME)
    with open(instance.control_path, "rb") as stream:
        return stream.read()


def read_wal_file(instance: Instance, name: str) -> bytes:
    """Return a small file of pg_wal, such as a history; raise as `read_control`."""
    if instance.pfs is not None:
        with opened_data(instance) as tree:
            return read_file(tree, f"pg_wal/{name}")
    with open(os.path.join(instance.wal_directory, name), "rb") as stream:
        return stream.read()


def wal_names(instance: Instance) -> list[str]:
    """Return the names in pg_wal; raise as `read_control`."""
    if instance.pfs is not None:
        with opened_data(instance) as tree:
            return [entry.name for entry in tree.list("pg_wal")]
    return os.listdir(instance.wal_directory)


@contextmanager
def opened_data(instance: Instance) -> Iterator[PfsTree]:
    """Have the server's directory in PFS open for reading, as a host that nobody else is; raise StorageFailed."""
    assert instance.pfs is not None
    address: PfsAddress = instance.pfs.address
    try:
        tree = PfsTree(replace(instance.pfs, host_id=None))
    except OSError as problem:
        raise storage_failed(problem, "open", str(address)) from problem
    with closing(tree):
        yield tree
