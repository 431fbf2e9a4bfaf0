"""Values: the parts of a backup, and what a look at them found. Frozen, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from polarvault.model.lsn import Lsn
from polarvault.pgfiles.control import ControlFile

if TYPE_CHECKING:
    from polarvault.backupset.listing import Listing

SHARED_PREFIX = "polar_shared_data"
CONTROL_NAME = "global/pg_control"
# PolarDB leaves a copy of the label in the shared half at each backup start; the server never reads it.
SHARED_LABEL_NAME = "polar_non_exclusive_backup_label"
DESCRIPTION_NAME = "polarvault_backup.json"
FULL_PAGE_DIRECTORY = "polar_fullpage"
# The path of a backup that comes as one tar through a pipe.
STANDARD_INPUT = "-"
_COMPRESSION_MAGIC = {b"\x1f\x8b": "gz", b"\x04\x22\x4d\x18": "lz4", b"\x28\xb5\x2f\xfd": "zst"}


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
    REPOSITORY = "backup in a repository"


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

    @property
    def inside_local(self) -> frozenset[str]:
        """Names in a plain local half that are no part of it: the shared half, wherever --polardata has put it."""
        roots = [part.path.rstrip("/") + "/" for part in self.parts_of(Area.LOCAL) if not part.is_tar]
        shared = [part.path for part in self.parts_of(Area.SHARED) if not part.is_tar]
        return frozenset(
            {SHARED_PREFIX} | {path.removeprefix(root) for root in roots for path in shared if path.startswith(root)}
        )


@dataclass(frozen=True, slots=True)
class Tablespace:
    """A tablespace outside of the data directory: its original location and, for plain backups, its copy.

    is_missing: the link in a plain backup leads nowhere.
    """

    oid: int
    location: str
    copy: str | None
    is_missing: bool = False


@dataclass(frozen=True, slots=True)
class ManifestSpan:
    """Where the backup of a manifest began and ended, by the manifest."""

    path: str
    start_lsn: Lsn
    end_lsn: Lsn
    end_timeline_id: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a look at the backup found, before anything is written.

    files: contents of small files by area and name. sizes: bytes per area, tablespaces by oid. wal: size by file name.
    control is None while a compressed tar was not read to its end; it is then checked when it is unpacked. It is None
    as well where is_newer: for a server newer than all that are known, nothing but names and sizes is understood.
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
    is_newer: bool = False
    spans: tuple[ManifestSpan, ...] = ()
    """Of every manifest that is there: one of each half, or one of both."""
    listing: Listing | None = None
    """What the manifests say."""
    lengths: Mapping[tuple[Area, str], int] = field(default_factory=dict)
    """The length of every file that is compared with the manifests, by its key there."""
    is_whole: bool = True
    """False if a compressed tar was not read to its end, so that lengths lacks what comes after."""
    unlisted_tablespaces: Mapping[int, str] = field(default_factory=dict)
    """Where tablespaces are that appeared while the backup was taken, by oid; nothing of theirs is in it."""

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


def compression_of(head: bytes) -> str | None:
    """Return the compression of a file by its first bytes; None for none that we undo."""
    return next((kind for magic, kind in _COMPRESSION_MAGIC.items() if head.startswith(magic)), None)


def area_of(area: Area, name: str) -> tuple[Area, str]:
    """Return the area and the name there of a member; one tar can hold the shared half below a prefix."""
    if area is Area.LOCAL and name.startswith(SHARED_PREFIX + "/"):
        return Area.SHARED, name.removeprefix(SHARED_PREFIX + "/")
    if area is Area.LOCAL and name == SHARED_PREFIX:
        return Area.SHARED, ""
    return area, name


def wal_name_of(area: Area, name: str) -> str | None:
    """Return the name in pg_wal of a tar member that lies directly there; None for any other member."""
    area, name = area_of(area, name)
    if area is Area.WAL:
        return name if "/" not in name else None
    top, _, rest = name.partition("/")
    return rest if top == "pg_wal" and rest and "/" not in rest else None
