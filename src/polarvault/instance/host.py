"""What the plan has to know about this machine: directories, free space, users. Reads only, changes nothing."""

from __future__ import annotations

import os
import pwd
import socket

from polarvault.errors import UsageError
from polarvault.instance.debian import DebianCluster, cluster_of, configuration_root
from polarvault.instance.model import Account
from polarvault.storage.files import storage_failed
from polarvault.storage.free_space import free_space
from polarvault.storage.occupants import Occupant, enclosing_occupant, occupant_of
from polarvault.storage.trees.pfs.host_ids import used_host_ids
from polarvault.storage.trees.pfs.mount import PfsMount
from polarvault.storage.trees.pfs.tree import PfsTree, PfsWritableTree

# statfs types of file systems that share extents: a copy there may take no space at all.
_REFLINK_FILE_SYSTEMS = frozenset({"btrfs", "xfs", "bcachefs", "ocfs2"})


def existing_ancestor(path: str) -> str:
    """Return the path itself, or the nearest directory above it that exists."""
    path = os.path.abspath(path)
    while not os.path.isdir(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


class Host:
    """This machine, as the plan asks about it; tests use one of their own."""

    def read(self, path: str) -> bytes | None:
        """Return a configuration file outside of the data directory, or None."""
        try:
            with open(path, "rb") as stream:
                return stream.read()
        except OSError:
            return None

    def list_names(self, directory: str) -> list[str] | None:
        """Return the names in a directory, or None when it cannot be listed."""
        try:
            return os.listdir(directory)
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Tell whether a path exists."""
        return os.path.exists(path)

    def occupant(self, path: str) -> Occupant | None:
        """Return what stands in a directory; None when it is absent or empty."""
        try:
            return occupant_of(path)
        except OSError as problem:
            raise storage_failed(problem, "use as a target", path) from problem

    def enclosing_occupant(self, path: str) -> Occupant | None:
        """Return the nearest directory above a path in which a database, or a backup of one, lives."""
        return enclosing_occupant(path)

    def debian_cluster(self, data_directory: str) -> DebianCluster | None:
        """Return the cluster of Debian's tools whose configuration names a data directory; None without one."""
        return cluster_of(data_directory, configuration_root(os.environ), self)

    def real_path(self, path: str) -> str:
        """Return the path with every link resolved, also when its last parts do not exist yet."""
        return os.path.realpath(path)

    def available_bytes(self, path: str) -> tuple[int, int | None]:
        """Return the device and the bytes that this user may still write on the file system of a path.

        None: the file system does not tell.
        """
        ancestor = existing_ancestor(path)
        try:
            found = free_space(ancestor)
            return os.stat(ancestor).st_dev, None if found is None else found.available_bytes
        except OSError as problem:
            raise storage_failed(problem, "look at the file system of", ancestor) from problem

    def shares_extents(self, source: str, target: str) -> bool:
        """Tell whether copies from source to target can be reflinks, which take no space."""
        ancestor = existing_ancestor(target)
        if os.stat(source).st_dev != os.stat(ancestor).st_dev:
            return False
        return _file_system_type(ancestor) in _REFLINK_FILE_SYSTEMS

    def takes_direct_io(self, path: str) -> bool:
        """Tell whether the file system of a path takes O_DIRECT, with an unnamed file that leaves no trace."""
        ancestor = existing_ancestor(path)
        try:
            os.close(os.open(ancestor, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT, 0o600))
        except OSError:
            return False
        return True

    def is_writable_directory(self, path: str, account: Account) -> bool:
        """Tell from owner and mode whether the account may create a socket in a directory."""
        try:
            status = os.stat(path)
        except OSError:
            return False
        if not os.path.isdir(path):
            return False
        if account.uid == os.geteuid():
            return os.access(path, os.W_OK | os.X_OK)
        if status.st_uid == account.uid:
            return bool(status.st_mode & 0o300 == 0o300)
        return bool(status.st_mode & (0o030 if status.st_gid == account.gid else 0o003) in (0o030, 0o003))

    def open_pfs(self, mount: PfsMount) -> PfsTree:
        """Open a directory in PFS for reading; raise OSError."""
        return PfsTree(mount)

    def open_writable_pfs(self, mount: PfsMount) -> PfsWritableTree:
        """Open a directory in PFS for writing; raise OSError."""
        return PfsWritableTree(mount)

    def host_ids(self, disk: str) -> dict[int, str]:
        """Return the host numbers of a disk in PFS that somebody on this machine uses, and who, in words."""
        return used_host_ids(disk)

    def port_is_taken(self, port: int) -> bool:
        """Tell whether somebody listens on a TCP port of this machine."""
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def account(self, wanted: str | None, backup: str | None) -> Account:
        """Return the user for the restored files: the caller, or when root `--owner`, the backup's owner, postgres.

        PostgreSQL refuses to run as root.
        """
        own = os.geteuid()
        if own != 0:
            me = _account_of(own)
            if wanted not in (None, me.name):
                raise UsageError(f"--owner {wanted}: only root can give files to another user")
            return me
        candidates = [wanted] if wanted else []
        if not wanted:
            owner = 0 if backup is None else os.stat(backup).st_uid
            candidates = [_account_of(owner).name] if owner != 0 else []
            candidates.append("postgres")
        for name in candidates:
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            if entry.pw_uid != 0:
                return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
        named = f'user "{wanted}"' if wanted else "a user for the restored server"
        raise UsageError(
            f"{named} does not exist or is root, and PostgreSQL does not run as root",
            hint="name an ordinary user: --owner USER",
        )


def _account_of(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(str(uid), uid, os.getegid())
    return Account(entry.pw_name, uid, entry.pw_gid)


def _file_system_type(path: str) -> str:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as stream:
            lines = stream.readlines()
    except OSError:
        return ""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        fields = line.split()
        if fields[2] == wanted and "-" in fields:
            return fields[fields.index("-") + 1]
    return ""
