"""Look at the directory in PFS that a restore is to fill: is it empty, in nobody's database, and is there room?"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace

from polarvault.instance.host import Host
from polarvault.model.pfs_address import PfsAddress
from polarvault.restore.facts import PfsPlace
from polarvault.storage.files import storage_failed
from polarvault.storage.trees.pfs.mount import LIBRARY_VARIABLE, PfsMount
from polarvault.storage.trees.pfs.occupants import enclosing_database, occupancy_of


def look_at_pfs(mount: PfsMount, host: Host) -> PfsPlace:
    """Ask for what stands in the directory, and above it; raise StorageFailed where PFS does not answer.

    Mounted for reading, and as a host of its own, so that whoever runs there is not disturbed.
    """
    address = mount.address
    used = host.host_ids(address.disk)
    top, *below = address.directory.split("/")
    try:
        with closing(host.open_pfs(replace(mount, address=PfsAddress(address.disk, top), host_id=None))) as tree:
            room = tree.room()
            name = "/".join(below)
            around = enclosing_database(tree, name)
            occupancy = occupancy_of(tree, name)
    except OSError as problem:
        raise storage_failed(problem, "look at", str(address)) from problem
    named = os.environ.get(LIBRARY_VARIABLE)
    library = os.path.abspath(named) if named else None
    return PfsPlace(str(address), occupancy, around, room.available_bytes, room.available_files, used, library)
