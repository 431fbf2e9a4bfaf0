"""Which host numbers of a disk are in use, as far as this machine knows; another host may have others.

Every client of pfsd keeps a file with what it has asked for in a directory of the disk, named by its process; whoever
writes also locks a range of a file that all of them share (PolarDB-FileSystem: pfsd_chnl_shm.h, pfsd_sdk_mount.cc).
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress

from polarvault.storage.trees.pfs.mount import MOST_HOST_ID
from polarvault.storage.trees.pfs.problems import RUN_DIRECTORY

_LOCK_FILE = "/var/run/pfs/{}-paxos-hostid"
_LOCK_BYTES = 1024
# How many hosts disks are made for: as in PFS's own examples, and fewer.
_USUAL_MOST = (30, 16, 8, 4, 2)
# version, name of the storage, disk, host id, flags
_CLIENT = struct.Struct("=I64s64sii")
# struct flock with 64-bit offsets: type, whence, start, length, process.
_FLOCK = struct.Struct("hhqqixxxx")


def used_host_ids(disk: str, *, run_directory: str = RUN_DIRECTORY, lock_file: str = _LOCK_FILE) -> dict[int, str]:
    """Return the numbers in use and by whom, in words. What cannot be read counts as not there."""
    used = _locked(lock_file.format(disk))
    directory = os.path.join(run_directory, disk)
    with suppress(OSError):
        for name in os.listdir(directory):
            process, _, kind = name.partition(".")
            if kind == "pid" and process.isdecimal() and _is_alive(int(process)):
                with suppress(OSError):
                    host_id = _host_id_in(os.path.join(directory, name))
                    if host_id is not None:
                        used[host_id] = f"process {process}"
    return used


def free_host_ids(used: dict[int, str]) -> list[int]:
    """Return numbers that nobody uses, to be tried in this order: servers are numbered from 1, so high ones first.

    A disk is made for some number of hosts, which only a mount tells; the usual ones are tried.
    """
    found = (next((one for one in range(most, 0, -1) if one not in used), None) for most in _USUAL_MOST)
    return list(dict.fromkeys(one for one in found if one is not None))


def _host_id_in(path: str) -> int | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        content = os.pread(descriptor, _CLIENT.size, 0)
    finally:
        os.close(descriptor)
    if len(content) < _CLIENT.size:
        return None
    number: int = _CLIENT.unpack(content)[3]
    return number if 1 <= number <= MOST_HOST_ID else None


def _locked(path: str) -> dict[int, str]:
    used: dict[int, str] = {}
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for number in range(1, MOST_HOST_ID + 1):
                asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number * _LOCK_BYTES, _LOCK_BYTES, 0)
                kind, _, _, _, process = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
                if kind != fcntl.F_UNLCK:
                    used[number] = f"process {process}"
        finally:
            os.close(descriptor)
    return used


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # Another user's.
    return True
