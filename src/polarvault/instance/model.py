"""Values about a server on this machine: who runs it, with which programs, what it is and where. Frozen, no I/O."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polarvault.instance.debian import DebianCluster
    from polarvault.storage.trees.pfs.mount import PfsMount


@dataclass(frozen=True, slots=True)
class Account:
    """The user that owns the restored files and runs the server."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Binaries:
    """One set of server programs; for a restore, those that fit the backup."""

    directory: str
    major: int
    version: str
    is_polardb: bool

    def program(self, name: str) -> str:
        """Return the path of a program."""
        return os.path.join(self.directory, name)

    def __str__(self) -> str:
        return f"{'PolarDB' if self.is_polardb else 'PostgreSQL'} {self.version}"


class Role(Enum):
    """What the restored server is to be."""

    PRIMARY = "primary"
    STANDBY = "standby"
    REPLICA = "replica"

    @property
    def signal_file(self) -> str:
        """The file whose presence makes the server take the role."""
        return "recovery.signal" if self is Role.PRIMARY else f"{self.value}.signal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A server that was laid out here and is to be started, as far as starting and watching it have to know it."""

    data_directory: str
    """What postgres and pg_ctl take as -D; on shared storage the local half."""
    control_path: str
    """Where pg_control lies; on shared storage in the shared half."""
    pfs: PfsMount | None = None
    """How the shared half is reached where it lies in PFS: control_path and wal_directory are no paths then."""
    wal_directory: str
    role: Role
    signal_path: str
    """The file that is there as long as the server recovers or follows."""
    is_polardb: bool
    source_timeline_id: int
    """The timeline of the server that it is a copy of, which a primary must have left; 0 when it is not known."""
    segment_size_bytes: int | None
    superuser: str | None
    """Who to log in as when the server is asked what it is; None tries the likely ones."""
    timeout_s: float
    debian: DebianCluster | None = None
    """The cluster of Debian's tools that it belongs to, which start it."""
    start_through: tuple[str, ...] = ()
    """A program, run as the caller, that becomes the server's account and then pg_ctl."""
