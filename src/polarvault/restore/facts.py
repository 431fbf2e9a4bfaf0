"""What a restore is decided from: facts about the backup, this machine, the primary and the WAL. Frozen, no I/O.

`plan/gather.py` asks for all of them, once and in one order; `plan/plan.py` decides from them and asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polarvault.backupset.backup import Backup
from polarvault.backupset.listing import Disagreement
from polarvault.backupset.model import Inventory
from polarvault.instance.debian import DebianCluster
from polarvault.instance.model import Account, Binaries
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.restore.model import Layout, Link
from polarvault.storage.occupants import Occupancy, Occupant

if TYPE_CHECKING:
    from polarvault.recovery.reachability import RecoveryPlan, Window
    from polarvault.restore.plan.configuration import PutBack
    from polarvault.restore.standby.primary import Primary


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFacts:
    """What the backup says of itself.

    inventory: of a chain with the sizes that the combined backup will have, for a replica of the local half alone.
    had_shared_half: there is one, or both halves are in one name space. disagreements: what is not as the manifest
    says, and was accepted. warnings: what nobody can tell of it, or what is odd but accepted.
    """

    source: Backup
    inventory: Inventory
    label: BackupLabel | None
    major_version: int
    is_polardb: bool
    had_shared_half: bool
    chain: tuple[Link, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def system_identifier(self) -> str | None:
        """Of pg_control, or what the description claims where that was not read yet."""
        if self.inventory.control is not None:
            return str(self.inventory.control.system_identifier)
        claimed = self.source.description.get("system_identifier")
        return None if claimed is None else str(claimed)


@dataclass(frozen=True, slots=True)
class Place:
    """A directory that is to be filled, as it is now.

    available_bytes: None where its file system does not tell. around: the database or backup that it lies in.
    """

    path: str
    real_path: str
    device: int
    available_bytes: int | None
    occupant: Occupant | None = None
    around: Occupant | None = None


@dataclass(frozen=True, slots=True)
class PfsPlace:
    """The directory in PFS that is to be filled, as it is now.

    occupancy: what stands in it; None: nothing. around: the nearest directory above it in which a database lives.
    available_bytes, available_files: what the disk has free; None where pfsd does not tell. used_host_ids: by number,
    who on this machine has it, in words. library: the path that POLARVAULT_LIBPFSD names.
    """

    address: str
    occupancy: Occupancy | None = None
    around: str | None = None
    available_bytes: int | None = None
    available_files: int | None = None
    used_host_ids: Mapping[int, str] = field(default_factory=dict)
    library: str | None = None


@dataclass(frozen=True, slots=True)
class Outside:
    """What the configuration names outside of the restored directories, as far as it is here.

    files: further configuration files, in the directories that could be listed. present: paths that exist. sockets:
    directories in which the account may make a socket.
    """

    files: Mapping[str, bytes]
    directories: frozenset[str] = frozenset()
    present: frozenset[str] = frozenset()
    sockets: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Existing:
    """A stopped cluster that a delta restore goes on with.

    occupied: its roots that hold something. growth_bytes: how much each will grow. kept_wal: its segments that the
    repository lacks.
    """

    occupied: frozenset[str]
    growth_bytes: Mapping[str, int]
    kept_wal: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What this machine says about the places that were chosen, `layout` and `put_back`, and about programs.

    places: of the layout's roots, in their order. cluster: Debian's, whose configuration names the data directory, or
    will. saved_configuration: the directory beside the backup that holds its configuration. taken_port: what the
    server would listen on, if another one does. wal_directories_hold_files: every one of them holds something.
    storage_path: of the live storage of a replica, without links.
    """

    account: Account
    layout: Layout
    places: tuple[Place, ...]
    shares_extents: bool
    outside: Outside
    takes_direct_io: bool
    cluster: DebianCluster | None = None
    put_back: PutBack | None = None
    saved_configuration: str | None = None
    taken_port: int | None = None
    wal_directories_hold_files: bool = False
    storage_path: str | None = None
    binaries: Binaries | None = None
    combine_program: str | None = None
    existing: Existing | None = None
    pfs: PfsPlace | None = None


@dataclass(frozen=True, slots=True)
class WithheldWal:
    """WAL behind the backup that the primary does not send any more: from where on, and its words.

    is_certain: false where the segment may be in the backup up to its end.
    """

    lsn: Lsn
    refusal: str
    is_certain: bool = True


@dataclass(frozen=True, slots=True)
class Storage:
    """The live storage that a replica is to open, and what the primary calls its own, both as seen from here.

    control: its pg_control; None: there is none. holds_slot: the slot of the request shows in it. on_pfs: it lies in
    PFS; unseen: why it could not be looked into there.
    """

    directory: str
    real_path: str
    primarys_path: str
    primarys_real_path: str
    control: bytes | None
    holds_slot: bool
    on_pfs: bool = False
    unseen: str | None = None


@dataclass(frozen=True, slots=True)
class PrimaryFacts:
    """What the server to follow says of itself, and what of it goes with the backup, but only just."""

    primary: Primary
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """How the backup was chosen among several: which were not, and why; which are broken; what all of them reach."""

    rejected: tuple[tuple[str, str], ...]
    broken: frozenset[str]
    windows: tuple[Window, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreFacts:
    """All that a restore is decided from.

    recovery: what the WAL allows, where recovery goes beyond the backup. choice: where several backups were there.
    """

    backup: BackupFacts
    host: HostFacts
    primary: PrimaryFacts | None = None
    recovery: RecoveryPlan | None = None
    choice: Choice | None = None
