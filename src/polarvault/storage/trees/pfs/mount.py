"""How a disk is mounted: by what name of the storage, as which host. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.model.pfs_address import PfsAddress

# What PolarDB's own scripts call the storage where disks are devices of the machine.
DEFAULT_CLUSTER = "disk"
# Names the library, where it is not in one of the usual places.
LIBRARY_VARIABLE = "POLARVAULT_LIBPFSD"
# Host numbers are 1 to this one (PolarDB-FileSystem: DEFAULT_MAX_HOSTS in pfs_paxos.h).
MOST_HOST_ID = 254
# As whom PFS's own tools mount: all together as one host, the last one that the disk was made for.
TOOLS = 0
# Files are allocated in blocks of this size (facts: PolarDB-FileSystem, README; measured).
PFS_BLOCK_BYTES = 4 << 20
# Calls wait for the disk; a frozen daemon must not look like a slow one for ever.
CALL_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class PfsMount:
    """A directory in PFS and how to come to it.

    host_id: None takes one that nobody on this machine uses, which is for reading only; TOOLS is for short calls, of
    which one at a time may write on each machine. force: take the disk over from
    whoever holds it (the library's force flag).
    """

    address: PfsAddress
    cluster: str = DEFAULT_CLUSTER
    host_id: int | None = None
    force: bool = False
    call_timeout_s: float = CALL_TIMEOUT_S
    connect_timeout_s: float = CONNECT_TIMEOUT_S
