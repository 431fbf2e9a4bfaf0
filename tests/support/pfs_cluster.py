"""A PolarDB primary whose shared half lies in a real PFS: in a directory of its own on one of the disks for tests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from polarvault.demo.server import SUPERUSER
from polarvault.instance.model import Binaries
from polarvault.model.pfs_address import PfsAddress
from polarvault.storage.trees.pfs.mount import LIBRARY_VARIABLE, PfsMount
from polarvault.storage.trees.pfs.tree import PfsWritableTree
from polarvault.storage.trees.small_files import remove_contents
from support.cluster import PASSWORD
from support.pfs_disks import own_host_id, pfs_disks
from support.polar_cluster import PolarCluster


def missing_pfs(installation: Binaries) -> str | None:
    """Say why tests of a PolarDB on PFS cannot run here; None if they can."""
    if len(pfs_disks()) < 2:
        return "no PFS: name two disks that pfsd serves in POLARVAULT_PFS, such as loop1,loop2 (docs/pfs.md)"
    if not os.environ.get(LIBRARY_VARIABLE):
        return f"no PFS: name its library in {LIBRARY_VARIABLE}"
    library = Path(installation.directory).parent / "lib/postgresql/polar_vfs.so"
    if not library.exists() or b"pfsd_mount" not in library.read_bytes():
        return "the PolarDB of POLARDB_BIN was built without pfsd"
    return None


class PfsCluster(PolarCluster):
    """A primary on PFS; `place` is its shared half."""

    place: PfsAddress

    @classmethod
    def made_in_pfs(
        cls, installation: Binaries, directory: Path, place: PfsAddress, *, host_id: int, settings: Mapping[str, str],
        wal_segment_mb: int = 16,
    ) -> Self:  # fmt: skip
        """Create a primary on an ordinary directory, move its shared half into PFS, start it and fill it."""
        cluster = cls.made_polar(installation, directory, wal_segment_mb=wal_segment_mb, start=False)
        cluster.place = place
        copy_into_pfs(cluster.shared, place)
        cluster.configure(
            {
                "polar_datadir": f"{place.path}/",
                "polar_vfs.localfs_mode": "off",
                "polar_disk_name": place.disk,
                "polar_storage_cluster_name": "disk",
                "polar_hostid": str(host_id),
                "polar_vfs.pfs_force_mount": "off",
                "full_page_writes": "on",
                **settings,
            }
        )
        cluster.start()
        cluster.query(f"ALTER USER {SUPERUSER} PASSWORD '{PASSWORD}'")
        cluster.fill()
        return cluster


def copy_into_pfs(source: Path, place: PfsAddress) -> None:
    """Copy a directory tree."""
    tree = PfsWritableTree(PfsMount(place, host_id=own_host_id()))
    tree.make_root()
    paths = sorted(source.rglob("*"))
    for path in paths:
        if path.is_dir():
            tree.make_directory(str(path.relative_to(source)), 0o700)

    def copy(path: Path) -> None:
        file = tree.create(str(path.relative_to(source)), 0o600)
        if content := path.read_bytes():
            file.write(0, memoryview(content))
        file.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(copy, [path for path in paths if path.is_file()]))
    tree.close()


def remove_from_pfs(place: PfsAddress) -> None:
    """Remove a directory, if it is there."""
    tree = PfsWritableTree(PfsMount(place, host_id=own_host_id()))
    try:
        remove_contents(tree)
        tree.remove_root(1)
    except FileNotFoundError:
        pass
    finally:
        tree.close()


def contents_in_pfs(place: PfsAddress) -> dict[str, int]:
    """Return the names and sizes of all files in a directory."""
    tree = PfsWritableTree(PfsMount(place, host_id=own_host_id()))
    found: dict[str, int] = {}

    def walk(name: str) -> None:
        for entry in tree.list(name):
            path = f"{name}/{entry.name}" if name else entry.name
            if entry.kind.value == "directory":
                walk(path)
            else:
                found[path] = entry.size_bytes

    try:
        walk("")
    except FileNotFoundError:
        return {}
    finally:
        tree.close()
    return found
