"""Values of the use case: what is asked for, what a backup holds, where things go. Frozen, no I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from polarvault.backupset.backup import Backup, Shelf
from polarvault.backupset.listing import Disagreement
from polarvault.backupset.model import CONTROL_NAME, Inventory
from polarvault.backupset.source import OnDisk
from polarvault.instance.model import Account, Binaries, Instance, Role
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.recovery.target import RecoveryRequest
from polarvault.restore.only.model import LeftOut

if TYPE_CHECKING:
    from polarvault.instance.debian import DebianCluster
    from polarvault.model.pfs_address import PfsAddress
    from polarvault.recovery.reachability import RecoveryPlan
    from polarvault.restore.facts import RestoreFacts
    from polarvault.restore.plan.configuration import PutBack
    from polarvault.restore.plan.roles.rules import RoleRules
    from polarvault.restore.standby.primary import Primary
    from polarvault.storage.trees.pfs.mount import PfsMount

# Where a backup is put together inside of its target: a chain of incremental ones, or a tar from a pipe.
STAGING_NAME = ".polarvault-incoming"


class Archiving(Enum):
    """Whether the restored server archives WAL: never, once it is promoted, or also while it is a standby."""

    OFF = "off"
    ON = "on"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Link:
    """One backup of an incremental backup's chain."""

    path: str
    label: BackupLabel
    source: Backup
    inventory: Inventory
    warnings: tuple[str, ...] = ()
    """What nobody can tell of it, such as one without a manifest; each names it."""


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What the user asked for; paths are absolute."""

    backup: str
    target: str
    older: tuple[str, ...] = ()
    """The other backups of an incremental one's chain; empty: they are looked for beside it."""
    shared_target: str | None = None
    pfs: PfsAddress | None = None
    """Where in PFS the shared half goes, or a replica's primary has it; shared_target is None then."""
    pfs_cluster: str | None = None
    """What the storage of that disk is called; None: as in the source, if that is on PFS."""
    pfs_force: bool = False
    """Take the disk from whoever has it."""
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
    verify_checksums: bool = True
    """Compare the content of every file with the manifest while it is copied."""
    reports_damage: bool = False
    """Go on with a damaged backup, because the caller reports `RestorePlan.disagreements` itself."""
    jobs: int = 0
    shelf: Shelf = field(default_factory=OnDisk)
    """Where `backup` is found."""
    brings_wal: bool = False
    """All WAL that recovery needs is laid into pg_wal, so that the server has to reach nobody for it."""
    delta: bool = False
    """The target may be a stopped cluster, which is brought to the backup in place."""
    yes_shared: bool = False
    """Its shared half may be changed as well: no node has it open."""
    only: tuple[str, ...] = ()
    """Databases that are restored, beside those that every cluster has; empty: all."""
    recovery: RecoveryRequest = field(default_factory=RecoveryRequest)
    superuser: str | None = None
    """Who to log in as when the server is asked what it is; None tries the likely ones."""
    configuration: str | None = None
    """Where kept configuration is put back: `data`, or a directory of Debian's layout; None: nowhere."""
    confined_to: str | None = None
    """A throw-away copy's own directory: nothing outside of it is written to, nor read for settings."""
    start_through: tuple[str, ...] = ()
    """What pg_ctl is started through, see `Instance`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each area goes; shared is None for a plain or merged instance."""

    local: str
    shared: str | None
    tablespaces: Mapping[int, str]
    merged: bool = False
    live_datadir: str | None = None
    """Replica: polar_datadir of the primary's own storage, which the restore never writes to."""
    pfs: PfsMount | None = None
    """How PFS is mounted where the shared half lies there: `shared` is its address then, and no path."""

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
        """Every directory of this machine that the restore fills, outer before inner."""
        shared = [self.shared] if self.shared and self.pfs is None else []
        return [self.local, *shared, *self.tablespaces.values()]

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
    """Bytes wanted and available on the file system of a target; available: None where it does not tell.

    needed_files: inodes, where they can run out before the bytes do, as in PFS; None: nobody counts them.
    """

    path: str
    needed: int
    available: int | None
    needed_files: int | None = None
    available_files: int | None = None

    @property
    def is_met(self) -> bool:
        """Tell whether there is room, as far as anybody can know."""
        return (self.available is None or self.needed <= self.available) and self.has_files

    @property
    def has_files(self) -> bool:
        """Tell whether there are inodes enough, as far as anybody can know."""
        return self.needed_files is None or self.available_files is None or self.needed_files <= self.available_files


@dataclass(frozen=True, slots=True)
class DeltaCounts:
    """What a delta restore does, or would do: bytes of the target that are read and compared, stored bytes fetched for
    those that differ, bytes written, and files that do not belong, with their bytes, removed.
    """

    compared_bytes: int = 0
    fetched_bytes: int = 0
    written_bytes: int = 0
    removed_files: int = 0
    removed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """Everything a restore will do; `--plan` prints it, `write` follows it.

    source and inventory: of what is laid out, once a chain has been combined of that. disagreements: what is not as the
    manifest says, and was accepted; more can be found while files are copied.
    """

    request: RestoreRequest
    facts: RestoreFacts
    rules: RoleRules
    source: Backup
    inventory: Inventory
    changes: tuple[Change, ...]
    files: Mapping[str, bytes]
    signal_path: str
    space: tuple[SpaceNeed, ...]
    warnings: tuple[str, ...]
    recovery: RecoveryPlan | None = None
    disagreements: tuple[Disagreement, ...] = ()
    left_out: LeftOut | None = None
    """Databases that become files of zeros; None: all are restored."""
    delta: DeltaCounts | None = None
    """None: nothing was compared, or not yet."""

    @property
    def laid_out_bytes(self) -> int:
        """The size of the files that get content."""
        return self.inventory.total_bytes - (self.left_out.bytes if self.left_out is not None else 0)

    @property
    def layout(self) -> Layout:
        """Where everything goes."""
        return self.facts.host.layout

    @property
    def label(self) -> BackupLabel | None:
        """The backup's label; None for a copy of a server that was shut down, and for a replica."""
        return self.facts.backup.label

    @property
    def major_version(self) -> int:
        """Of the backup's server."""
        return self.facts.backup.major_version

    @property
    def is_polardb(self) -> bool:
        """Tell whether the backup is of PolarDB."""
        return self.facts.backup.is_polardb

    @property
    def chain(self) -> tuple[Link, ...]:
        """The backups that are combined, full one first."""
        return self.facts.backup.chain

    @property
    def account(self) -> Account:
        """The user that is to own the files and run the server."""
        return self.facts.host.account

    @property
    def binaries(self) -> Binaries | None:
        """The programs that fit the backup."""
        return self.facts.host.binaries

    @property
    def combine_program(self) -> str | None:
        """The pg_combinebackup for a chain."""
        return self.facts.host.combine_program

    @property
    def debian(self) -> DebianCluster | None:
        """The cluster of Debian's tools whose configuration names the data directory: its server reads that one."""
        return self.facts.host.cluster

    @property
    def put_back(self) -> PutBack | None:
        """Kept configuration that is put back."""
        return self.facts.host.put_back

    @property
    def primary(self) -> Primary | None:
        """The server to follow, as it answered before anything was written."""
        return self.facts.primary.primary if self.facts.primary is not None else None

    @property
    def broken(self) -> frozenset[str]:
        """Backups of the same directory that cannot be used at all."""
        return self.facts.choice.broken if self.facts.choice is not None else frozenset()

    @property
    def instance(self) -> Instance:
        """The server that the restore makes, as those see it who start it and watch it."""
        control = self.inventory.control
        return Instance(
            data_directory=self.layout.local,
            control_path=self.layout.control_path,
            pfs=self.layout.pfs if self.layout.shared else None,
            wal_directory=os.path.join(self.layout.data, "pg_wal"),
            role=self.request.role,
            signal_path=self.signal_path,
            is_polardb=self.is_polardb,
            source_timeline_id=self.label.timeline_id if self.label else control.timeline_id if control else 0,
            segment_size_bytes=control.wal_segment_size if control is not None else None,
            superuser=self.request.superuser,
            timeout_s=self.request.timeout_s,
            debian=self.debian,
            start_through=self.request.start_through,
        )
