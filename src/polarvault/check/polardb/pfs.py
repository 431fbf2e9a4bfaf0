"""What of PFS is seen on the server's own host: room, host ids, who may reach it. Nothing is mounted for it.

Facts: measured on a real PFS on loop devices; what a file takes, and the numbers of hosts, are those of its sources.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from polarvault.check.session import CheckSession
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.pfs_address import PfsAddress
from polarvault.model.units import format_bytes
from polarvault.polardb.settings import DATADIR, HOST_ID, LOCALFS_MODE, SHARED_STORAGE_MODE, pfs_path_of
from polarvault.storage.trees.pfs.host_ids import used_host_ids
from polarvault.storage.trees.pfs.problems import RUN_DIRECTORY
from polarvault.storage.trees.pfs.room import read_room

# The server makes segments and log indexes ahead; with less it stops soon.
_LITTLE_BYTES, _LITTLE_FILES = 8 << 30, 400
_NO_BYTES, _NO_FILES = 1 << 30, 50
_SHARED_MEMORY = "/dev/shm/pfsd"


@dataclass(frozen=True, slots=True, kw_only=True)
class PfsFacts:
    """room: free bytes and inodes, None where pfsd does not tell, as on another host than the server's.

    used_host_ids: by number, who on this machine has it. open_to_all: directories of pfsd that everybody may write to.
    """

    address: PfsAddress
    host_id: str | None
    room: tuple[int, int] | None = None
    used_host_ids: Mapping[int, str] = field(default_factory=dict)
    open_to_all: tuple[str, ...] = ()


def check_pfs(session: CheckSession) -> list[Finding]:
    """Return the findings about PFS; none for a server on an ordinary file system."""
    facts = read_pfs(session)
    return [] if facts is None else judge_pfs(facts)


def read_pfs(session: CheckSession) -> PfsFacts | None:
    """Ask the server where its shared half is, and this machine about that disk."""
    names = (SHARED_STORAGE_MODE, DATADIR, LOCALFS_MODE)
    address = pfs_path_of({name: session.setting(name) for name in names}.get)
    if address is None:
        return None
    places = (os.path.join(RUN_DIRECTORY, address.disk), _SHARED_MEMORY)
    return PfsFacts(
        address=address,
        host_id=session.setting(HOST_ID),
        room=read_room(address.disk),
        used_host_ids=used_host_ids(address.disk),
        open_to_all=tuple(place for place in places if _is_open_to_all(place)),
    )


def _is_open_to_all(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_IWOTH)
    except OSError:
        return False


def judge_pfs(facts: PfsFacts) -> list[Finding]:
    """Return the findings about PFS."""
    findings = [_room(facts), _host_ids(facts)]
    if facts.open_to_all:
        findings.append(
            warning(
                "pfs-access",
                str(facts.address),
                f"every user of this machine may use PFS: {', '.join(facts.open_to_all)} are open to all",
                meaning="PFS knows no privileges: whoever logs in here can read and overwrite the database's storage",
                advice="let nobody else log in on this host, and run nothing else there",
            )
        )
    return findings


def _room(facts: PfsFacts) -> Finding:
    subject = f"disk {facts.address.disk}"
    if facts.room is None:
        return ok("pfs-room", subject, f"{subject}: pfsd on this machine does not tell how much room it has")
    size, files = facts.room
    there = f"{subject} has {format_bytes(size)} in blocks of 4 MB and {files} inodes free"
    advice = f"grow the disk (pfs growfs), or remove what is not needed: pfs -C disk du /{facts.address.disk}/"
    meaning = "every file takes a block and an inode; the server stops when it can make no WAL segment"
    if size < _NO_BYTES or files < _NO_FILES:
        return problem("pfs-room", subject, there, meaning=meaning, advice=advice)
    if size < _LITTLE_BYTES or files < _LITTLE_FILES:
        return warning("pfs-room", subject, there, meaning=meaning, advice=advice)
    return ok("pfs-room", subject, there)


def _host_ids(facts: PfsFacts) -> Finding:
    subject = HOST_ID
    own = f"{HOST_ID} is {facts.host_id or 'not told'}"
    if not facts.used_host_ids:
        return ok("pfs-host-id", subject, f"{own}; nobody on this machine has disk {facts.address.disk} mounted")
    used = ", ".join(f"{number} ({who})" for number, who in sorted(facts.used_host_ids.items()))
    return ok(
        "pfs-host-id",
        subject,
        f"{own}; in use on this machine: {used}; servers on other hosts need numbers of their own as well",
    )
