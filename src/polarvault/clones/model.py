"""Values of clones: what is asked for, what is written down about one, what is seen of it. Frozen, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from polarvault.backupset.backup import Shelf
from polarvault.backupset.source import OnDisk
from polarvault.recovery.target import RecoveryRequest

GIB = 1 << 30
# A full file system stops whatever else writes there, such as the standby that the source is.
LEAST_FREE_SHARE = 0.05
MOST_LEAST_FREE_BYTES = 10 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneRequest:
    """What the user asked for; paths are absolute.

    area: the directory of clones. name: for people, None lets the id be it. port: TCP port on 127.0.0.1, None for a
    private socket alone. ttl_s: after so many seconds it is removed. max_bytes: what it may take beyond what it shares
    with others. least_free_bytes: what has to stay free on its file system, None for a share of it.
    """

    source: str
    area: str
    name: str | None = None
    port: int | None = None
    read_only: bool = False
    ttl_s: int | None = None
    max_bytes: int | None = None
    least_free_bytes: int | None = None
    shared_from: str | None = None
    merge: bool = False
    shelf: Shelf = field(default_factory=OnDisk)
    recovery: RecoveryRequest = field(default_factory=RecoveryRequest)
    settings: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 3600.0
    bindir: str | None = None
    owner: str | None = None
    superuser: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneRecord:
    """What is written down about a clone, in a file that the server's account cannot change.

    origin: the directories that it was laid out from, local half first; shares: by reflink. moment: where recovery
    stopped, in words; lsn, timeline_id: the same for programs. source_timeline_id, segment_size_bytes, is_polardb and
    the places are what a start needs. boot_id: of the start of the machine in which its server was started last.
    stopped: why it does not run, None: it is to run.
    """

    id: str
    name: str
    source: str
    made: datetime
    origin: tuple[str, ...]
    shares: bool
    moment: str
    lsn: str | None
    timeline_id: int | None
    major: int
    is_polardb: bool
    read_only: bool
    port: int
    listens: bool
    superuser: str
    socket_directory: str
    data: str
    control_path: str
    wal_directory: str
    signal_path: str
    source_timeline_id: int
    segment_size_bytes: int | None
    binaries: str
    version: str
    account: str
    uid: int
    gid: int
    timeout_s: float
    ttl_s: int | None = None
    max_bytes: int | None = None
    least_free_bytes: int = 0
    boot_id: str = ""
    stopped: str | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    """The command line that made it, for a reset."""

    @property
    def expires(self) -> datetime | None:
        """When it is to be removed."""
        return None if self.ttl_s is None else self.made + timedelta(seconds=self.ttl_s)


class CloneState(Enum):
    """What is seen of a clone."""

    RUNNING = "running"
    STOPPED = "stopped"
    DIED = "died"
    """Its server has ended by itself, or was killed."""
    HOST_RESTARTED = "host restarted"
    UNFINISHED = "unfinished"
    """What made it was killed; only good for being removed."""


@dataclass(frozen=True, slots=True)
class CloneStatus:
    """A clone as `clone list` shows it. record None: it is unfinished. own_bytes: what it does not share, if known."""

    id: str
    directory: str
    state: CloneState
    record: CloneRecord | None
    own_bytes: int | None
    connection: str | None = None
