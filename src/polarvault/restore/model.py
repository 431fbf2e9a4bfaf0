"""Values of the use case: what is asked for, what a backup holds, where things go. Frozen, no I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.pgfiles.control import ControlFile
from polarvault.restore.recovery_target import RecoveryRequest

if TYPE_CHECKING:
    from polarvault.restore.primary import Primary
    from polarvault.restore.reachability import RecoveryPlan

SHARED_PREFIX = "polar_shared_data"
CONTROL_NAME = "global/pg_control"
# pg_control lies under this name until everything else is durable, so that a broken restore cannot be started.
CONTROL_WAITING_NAME = "global/pg_control.polarvault"
# PolarDB leaves a copy of the label in the shared half at each backup start; the server never reads it.
SHARED_LABEL_NAME = "polar_non_exclusive_backup_label"
DESCRIPTION_NAME = "polarvault_backup.json"


class Role(Enum):
    """What the restored server is to be."""

    PRIMARY = "primary"
    STANDBY = "standby"
    REPLICA = "replica"

    @property
    def signal_file(self) -> str:
        """The file whose presence makes the server take the role."""
        return "recovery.signal" if self is Role.PRIMARY else f"{self.value}.signal"


class Archiving(Enum):
    """Whether the restored server archives WAL: never, once it is promoted, or also while it is a standby."""

    OFF = "off"
    ON = "on"
    ALWAYS = "always"


class Area(Enum):
    """Which part of a cluster a directory tree or a tar file holds."""

    LOCAL = "local"
    SHARED = "shared"
    WAL = "wal"
    TABLESPACE = "tablespace"
    # The real polar_basebackup writes both halves of a backup to standard output in one name space.
    MERGED = "merged"


class Form(Enum):
    """How the backup is laid out."""

    PLAIN = "plain directory"
    TAR_DIRECTORY = "directory of tar files"
    TAR_FILE = "single tar file"


@dataclass(frozen=True, slots=True)
class Part:
    """One directory tree (compression None, is_tar False) or tar file of a backup."""

    area: Area
    path: str
    is_tar: bool = False
    compression: str | None = None
    tablespace_oid: int = 0


@dataclass(frozen=True, slots=True)
class BackupSource:
    """A backup that was recognised: its form, its parts, and what its description file claims."""

    path: str
    form: Form
    parts: tuple[Part, ...]
    description: Mapping[str, object] = field(default_factory=dict)

    def parts_of(self, area: Area) -> list[Part]:
        """Return the parts that hold an area."""
        return [part for part in self.parts if part.area is area]


@dataclass(frozen=True, slots=True)
class Tablespace:
    """A tablespace outside of the data directory: its original location and, for plain backups, its copy."""

    oid: int
    location: str
    copy: str | None


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a look at the backup found, before anything is written.

    files: contents of small files by area and name. sizes: bytes per area, tablespaces by oid. wal: size by file name.
    control is None while a compressed tar was not read to its end; it is then checked when it is unpacked.
    """

    files: Mapping[tuple[Area, str], bytes]
    sizes: Mapping[Area, int]
    tablespace_sizes: Mapping[int, int]
    wal: Mapping[str, int]
    names: frozenset[tuple[Area, str]]
    tablespaces: tuple[Tablespace, ...]
    has_control: bool
    control: ControlFile | None
    group_readable: bool
    file_count: int

    @property
    def has_shared_half(self) -> bool:
        """Tell whether a separate shared half was found."""
        return Area.SHARED in self.sizes

    @property
    def total_bytes(self) -> int:
        """The size of everything that is to be laid out."""
        return sum(self.sizes.values()) + sum(self.tablespace_sizes.values())

    def file(self, name: str, area: Area = Area.LOCAL) -> bytes | None:
        """Return the content of a small file of the backup."""
        return self.files.get((area, name))


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What the user asked for; paths are absolute."""

    backup: str
    target: str
    shared_target: str | None = None
    shared_from: str | None = None
    port: int | None = None
    role: Role = Role.PRIMARY
    primary_conninfo: str | None = None
    slot: str | None = None
    create_slot: bool = False
    archiving: Archiving = Archiving.OFF
    archive_command: str | None = None
    host_id: int | None = None
    tablespace_mapping: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[tuple[str, str], ...] = ()
    merge: bool = False
    start: bool = False
    timeout_s: float = 600.0
    bindir: str | None = None
    owner: str | None = None
    sync: bool = True
    force: bool = False
    jobs: int = 0
    recovery: RecoveryRequest = field(default_factory=RecoveryRequest)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each area goes; shared is None for a plain or merged instance."""

    local: str
    shared: str | None
    tablespaces: Mapping[int, str]
    merged: bool = False

    @property
    def data(self) -> str:
        """The directory that gets pg_control, relations and pg_wal."""
        return self.shared or self.local

    @property
    def control_path(self) -> str:
        """Where pg_control is in the end."""
        return os.path.join(self.data, CONTROL_NAME)

    @property
    def roots(self) -> list[str]:
        """Every directory that the restore fills, outer before inner."""
        return [self.local, *([self.shared] if self.shared else []), *self.tablespaces.values()]

    @property
    def outer_roots(self) -> list[str]:
        """The roots without a shared half that lies inside the data directory."""
        return [root for root in self.roots if not root.startswith(self.local + os.sep)]


@dataclass(frozen=True, slots=True)
class Change:
    """One setting changed: values before and after (None: not set), and the file that decides."""

    name: str
    before: str | None
    after: str | None
    path: str
    why: str


@dataclass(frozen=True, slots=True)
class SpaceNeed:
    """Bytes wanted and available on the file system of a target."""

    path: str
    needed: int
    available: int


@dataclass(frozen=True, slots=True)
class Binaries:
    """Server programs that fit the backup."""

    directory: str
    major: int
    version: str
    is_polardb: bool

    def program(self, name: str) -> str:
        """Return the path of a program."""
        return os.path.join(self.directory, name)


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """Everything a restore will do; `--plan` prints it, `apply` follows it."""

    request: RestoreRequest
    source: BackupSource
    inventory: Inventory
    layout: Layout
    label: BackupLabel | None
    major_version: int
    is_polardb: bool
    changes: tuple[Change, ...]
    files: Mapping[str, bytes]
    signal_path: str
    space: tuple[SpaceNeed, ...]
    warnings: tuple[str, ...]
    binaries: Binaries | None
    recovery: RecoveryPlan | None = None
    primary: Primary | None = None
    """The server to follow, as it answered before anything was written."""
    follow_warnings: tuple[str, ...] = ()
    live_datadir: str | None = None
    """Replica: polar_datadir of the primary's own storage, which the restore never writes to."""
