"""pg_control (server file catalog/pg_control.h) of every version in `polarvault.model.versions`, and of PolarDB.

Byte layout (little endian, natural alignment): 0 system identifier u64, 8 control version u32, 12 catalog version u32,
16 state i32, 32 checkpoint LSN u64, 40 its redo LSN u64, 48 its timeline u32, 56 full_page_writes at that time (bool);
from there on as the version's `ControlLayout` says: the checkpoint's time i64 (seconds since 1970), minimum recovery
point u64, the settings that hot standby needs, sizes, checksum version u32, then the CRC-32C of all that is before it.
The first 16 bytes lie alike in every version there will be, as the server's source promises.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from enum import IntEnum

import google_crc32c

from polarvault.errors import IntegrityError
from polarvault.model import versions
from polarvault.model.dataclass import dataclass
from polarvault.model.lsn import Lsn
from polarvault.model.segment import is_segment_size

_HEAD = struct.Struct("<QII")
# PG_DATA_CHECKSUM_VERSION; other numbers than 0 would be states in between, in which pages need not have checksums.
_CHECKSUMS_ON = 1
_LARGEST_FORMAT = 1 << 16
# Behind the minimum recovery point come its timeline (u32, aligned) and the start of a backup that is not yet replayed.
_TO_BACKUP_START = 16


class ControlDamage(IntegrityError):
    """pg_control cannot be used; aspect says what is wrong with it: "size", "version", "crc" or "values"."""

    id = "control-file-damaged"
    remedy = "use another backup; keep the damaged one until it is known why"

    def __init__(self, aspect: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.aspect = aspect


class ControlOfNewerServer(ControlDamage):
    """pg_control is of a format that is newer than all known ones: a newer polarvault is needed to read it."""

    id = "control-file-newer"
    remedy = "install a newer polarvault"


class ClusterState(IntEnum):
    """What the server was doing when it last wrote pg_control (enum DBState)."""

    STARTING_UP = 0
    SHUT_DOWN = 1
    SHUT_DOWN_IN_RECOVERY = 2
    SHUTTING_DOWN = 3
    IN_CRASH_RECOVERY = 4
    IN_ARCHIVE_RECOVERY = 5
    IN_PRODUCTION = 6

    @property
    def is_clean(self) -> bool:
        """Tell whether a copy of the files in this state needs no backup_label."""
        return self in (ClusterState.SHUT_DOWN, ClusterState.SHUT_DOWN_IN_RECOVERY)


@dataclass(frozen=True, slots=True)
class ControlFile:
    """The fields of pg_control that backup and restore need; sizes in bytes, except relation_segment_blocks."""

    system_identifier: int
    control_version: int
    catalog_version: int
    state: ClusterState
    checkpoint_lsn: Lsn
    redo_lsn: Lsn
    timeline_id: int
    minimum_recovery_lsn: Lsn
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    block_size: int
    relation_segment_blocks: int
    wal_block_size: int
    wal_segment_size: int
    data_checksum_version: int
    checkpoint_time: datetime | None = None
    full_page_writes: bool = True
    minimum_recovery_timeline_id: int = 0
    backup_start_lsn: Lsn = Lsn(0)
    """While recovery from a base backup has not yet reached its end: where that backup began."""

    @property
    def major_version(self) -> int | None:
        """The server's major version, or None for a catalog version that no release has."""
        known = versions.of_catalog(self.catalog_version)
        return known.major if known else None

    @property
    def has_data_checksums(self) -> bool:
        """Tell whether every page carries a checksum."""
        return self.data_checksum_version == _CHECKSUMS_ON


def parse_control(content: bytes, what: str = "global/pg_control") -> ControlFile:
    """Parse pg_control; raise ControlDamage when it is short, of an unknown version, or its CRC or a value is wrong.

    ControlOfNewerServer when the version says that it is of a newer server.
    """
    if len(content) < 16:
        raise ControlDamage("size", f"{what} is {len(content)} bytes long, too short for pg_control")
    system_identifier, control_version, catalog_version = _HEAD.unpack_from(content)
    layout = versions.control_layout(control_version)
    if layout is None:
        raise _unknown_version(control_version, what)
    if len(content) < layout.crc + 4:
        raise ControlDamage("size", f"{what} is {len(content)} bytes long, too short for version {control_version}")
    (stored,) = struct.unpack_from("<I", content, layout.crc)
    if stored != google_crc32c.value(content[: layout.crc]):
        raise ControlDamage("crc", f"{what} is damaged: its CRC is wrong", hint="restore another backup")
    (state,) = struct.unpack_from("<i", content, 16)
    checkpoint, redo, timeline_id = struct.unpack_from("<QQI", content, 32)
    (checkpoint_time,) = struct.unpack_from("<q", content, layout.checkpoint_time)
    minimum, its_timeline = struct.unpack_from("<QI", content, layout.minimum_recovery_lsn)
    connections, workers, senders, prepared, locks = struct.unpack_from("<5i", content, layout.hot_standby_settings)
    block_size, relation_blocks = struct.unpack_from("<2I", content, layout.block_sizes)
    wal_block_size, segment_size = struct.unpack_from("<2I", content, layout.wal_sizes)
    (checksum_version,) = struct.unpack_from("<I", content, layout.data_checksums)
    if not is_segment_size(segment_size):
        raise ControlDamage(
            "values", f"{what} names a WAL segment size of {segment_size} bytes, which initdb cannot make"
        )
    if not ClusterState.STARTING_UP <= state <= ClusterState.IN_PRODUCTION:
        raise ControlDamage("values", f"{what} names the cluster state {state}, which no server writes")
    return ControlFile(
        system_identifier=system_identifier,
        control_version=control_version,
        catalog_version=catalog_version,
        state=ClusterState(state),
        checkpoint_lsn=Lsn(checkpoint),
        redo_lsn=Lsn(redo),
        timeline_id=timeline_id,
        minimum_recovery_lsn=Lsn(minimum),
        max_connections=connections,
        max_worker_processes=workers,
        max_wal_senders=senders,
        max_prepared_transactions=prepared,
        max_locks_per_transaction=locks,
        block_size=block_size,
        relation_segment_blocks=relation_blocks,
        wal_block_size=wal_block_size,
        wal_segment_size=segment_size,
        data_checksum_version=checksum_version,
        checkpoint_time=_time(checkpoint_time),
        full_page_writes=content[56] != 0,
        minimum_recovery_timeline_id=its_timeline,
        backup_start_lsn=Lsn(struct.unpack_from("<Q", content, layout.minimum_recovery_lsn + _TO_BACKUP_START)[0]),
    )


def as_recovering(content: bytes, minimum_recovery_lsn: Lsn) -> bytes:
    """Return pg_control of a server in recovery that has to get as far as an LSN on the timeline of its checkpoint.

    So pg_rewind leaves it (server: bin/pg_rewind/pg_rewind.c, perform_rewind); recovery ends with an error before that
    LSN. content: one that `parse_control` takes.
    """
    control = parse_control(content)
    layout = versions.control_layout(control.control_version)
    assert layout is not None
    changed = bytearray(content)
    struct.pack_into("<i", changed, 16, ClusterState.IN_ARCHIVE_RECOVERY)
    struct.pack_into("<QI", changed, layout.minimum_recovery_lsn, minimum_recovery_lsn, control.timeline_id)
    struct.pack_into("<I", changed, layout.crc, google_crc32c.value(bytes(changed[: layout.crc])))
    return bytes(changed)


def parse_known_control(content: bytes, major: int | None, what: str = "global/pg_control") -> ControlFile | None:
    """Parse pg_control as `parse_control` does, but return None for one that a newer server wrote.

    major: of PG_VERSION. Beside that of an older server a newer format is damage.
    """
    try:
        return parse_control(content, what)
    except ControlOfNewerServer:
        if major is None or major < versions.NEWEST.major:
            raise
        return None


def system_identifier_of(content: bytes) -> int:
    """Return the system identifier of pg_control of any version; raise ControlDamage when it is too short."""
    if len(content) < _HEAD.size:
        raise ControlDamage("size", f"global/pg_control is {len(content)} bytes long, too short for pg_control")
    identifier: int = _HEAD.unpack_from(content)[0]
    return identifier


def _unknown_version(control_version: int, what: str) -> ControlDamage:
    known = versions.KNOWN_VERSIONS
    message = f"{what} has control file version {control_version}, which is none of {known}"
    if versions.NEWEST.control.version < control_version < _LARGEST_FORMAT:
        newer = "use a newer polarvault"
        return ControlOfNewerServer("version", f"{message}, but of a newer server", hint=newer)
    hint = "version 1201 is PostgreSQL 12; a number such as 335806464 means another byte order"
    return ControlDamage("version", message, hint=hint)


def _time(seconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds > 0 else None
    except (OverflowError, ValueError):
        return None
