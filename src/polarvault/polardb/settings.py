"""Which settings a PolarDB instance needs on an ordinary file system, and which values name a place. Pure.

The facts are measured on PolarDB 15.8: polar_datadir may carry a protocol (file-dio:// is O_DIRECT, file:// buffered,
pfsd:// the PolarDB FileSystem); with polar_vfs.localfs_mode on, disk and cluster name are not used, but an instance
that is started with it off by mistake would mount the named disk by force and fence the source off.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass

from polarvault.errors import UsageError
from polarvault.model.pfs_address import PROTOCOL as PFS_PROTOCOL
from polarvault.model.pfs_address import PfsAddress, is_pfs_address, parse_pfs_path
from polarvault.storage.trees.pfs.mount import PfsMount

SHARED_STORAGE_MODE = "polar_enable_shared_storage_mode"
DATADIR = "polar_datadir"
LOCALFS_MODE = "polar_vfs.localfs_mode"
DISK_NAME = "polar_disk_name"
CLUSTER_NAME = "polar_storage_cluster_name"
HOST_ID = "polar_hostid"
FORCE_MOUNT = "polar_vfs.pfs_force_mount"
# What a server on PFS mounts, and as whom.
PFS_SETTINGS = (DISK_NAME, CLUSTER_NAME, HOST_ID)
DIRECT_PROTOCOL = "file-dio"
BUFFERED_PROTOCOL = "file"
# Any name will do on an ordinary file system; these cannot be mistaken for a PFS disk or cluster of the source.
LOCAL_DISK_NAME = "home"
LOCAL_CLUSTER_NAME = "localfs"

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)\Z", re.DOTALL)
_TRUE = re.compile(r"(t|tr|tru|true|y|ye|yes|on|1)\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A setting that has to have this value, and why, in words for the plan."""

    name: str
    value: str
    why: str


def is_true(value: str | None) -> bool:
    """Tell whether the server reads a value as on; an unset value counts as off."""
    return value is not None and _TRUE.match(value) is not None


def split_protocol(datadir: str) -> tuple[str | None, str]:
    """Split a polar_datadir value into protocol and path: ``file-dio:///srv/x`` is ("file-dio", "/srv/x")."""
    match = _PROTOCOL.match(datadir)
    return (match[1], match[2]) if match else (None, datadir)


def uses_shared_storage(value: Callable[[str], str | None]) -> bool:
    """Tell from the settings whether the instance keeps its database outside of the data directory."""
    return is_true(value(SHARED_STORAGE_MODE)) and bool(value(DATADIR))


def names_directory(datadir: str | None, directory: str) -> bool:
    """Tell whether a polar_datadir value means this place, whatever its protocol: an absolute path, or one of PFS."""
    protocol, path = split_protocol(datadir or "")
    if is_pfs_address(directory):
        return protocol in (None, PFS_PROTOCOL) and posixpath.normpath(path) == split_protocol(directory)[1]
    return protocol in (None, DIRECT_PROTOCOL, BUFFERED_PROTOCOL) and posixpath.normpath(path) == directory


def shared_storage_settings(
    shared_directory: str, value: Callable[[str], str | None], *, direct_io: bool
) -> list[Wanted]:
    """Return the settings of an instance whose shared half is an ordinary directory (an absolute path).

    value: the source's settings by name. direct_io: whether the file system takes O_DIRECT; tmpfs may not.
    """
    protocol, _ = split_protocol(value(DATADIR) or "")
    # A source that was set to buffered I/O stays so; everything else gets what PolarDB's own scripts write.
    buffered = protocol == BUFFERED_PROTOCOL or not direct_io
    prefix = BUFFERED_PROTOCOL if buffered else DIRECT_PROTOCOL
    on_pfs = not is_true(value(LOCALFS_MODE))
    wanted = [
        Wanted(SHARED_STORAGE_MODE, "on", "two directories, as in the source"),
        Wanted(DATADIR, f"{prefix}://{shared_directory}", "the restored shared half"),
        Wanted(LOCALFS_MODE, "on", "an ordinary file system, not PFS"),
    ]
    if on_pfs or not value(DISK_NAME):
        wanted.append(Wanted(DISK_NAME, LOCAL_DISK_NAME, "must not name the source's disk"))
    if on_pfs or not value(CLUSTER_NAME):
        wanted.append(Wanted(CLUSTER_NAME, LOCAL_CLUSTER_NAME, "must not name the source's storage"))
    if on_pfs or not value(HOST_ID):
        wanted.append(Wanted(HOST_ID, "1", "the only node on this storage"))
    return wanted + torn_page_settings()


def pfs_settings(mount: PfsMount, host_id: int) -> list[Wanted]:
    """Return the settings of an instance whose shared half lies in PFS. Torn pages are left to what the source has."""
    return [
        Wanted(SHARED_STORAGE_MODE, "on", "two halves"),
        Wanted(DATADIR, f"{mount.address.path}/", "the shared half, in PFS"),
        Wanted(LOCALFS_MODE, "off", "the shared half lies in PFS"),
        Wanted(DISK_NAME, mount.address.disk, "the disk of the shared half"),
        Wanted(CLUSTER_NAME, mount.cluster, "the storage that the disk belongs to"),
        Wanted(HOST_ID, str(host_id), "its own number among the servers on this disk"),
    ]


def gentle_mount() -> Wanted:
    """Return what keeps a server from taking a disk in PFS over from whoever has it, as it does by default."""
    return Wanted(FORCE_MOUNT, "off", "must not take the disk from a server that has it")


def pfs_path_of(value: Callable[[str], str | None]) -> PfsAddress | None:
    """Return where in PFS a server's settings say that its shared half lies; None for an ordinary file system."""
    datadir = value(DATADIR) or ""
    protocol, path = split_protocol(datadir)
    if not uses_shared_storage(value) or is_true(value(LOCALFS_MODE)) or protocol not in (None, PFS_PROTOCOL):
        return None
    try:
        return parse_pfs_path(path)
    except UsageError:
        return None


def merged_settings() -> list[Wanted]:
    """Return the settings of both halves in one directory, an instance without shared storage (facts 4.4)."""
    return [Wanted(SHARED_STORAGE_MODE, "off", "both halves are in one directory"), *torn_page_settings()]


def torn_page_settings() -> list[Wanted]:
    """Return what makes 8 kB writes safe where the file system does not write them atomically."""
    return [
        Wanted("full_page_writes", "on", "an ordinary file system can tear pages"),
        Wanted("polar_has_partial_write", "on", "an ordinary file system can tear pages"),
    ]
