"""What a server says of itself on a replication connection, where every role with REPLICATION may ask."""

from __future__ import annotations

import re
from dataclasses import dataclass

from polarvault.errors import RemoteProtocolError, ServerError, ServerRefused
from polarvault.model import versions
from polarvault.model.lsn import Lsn
from polarvault.model.names import shown_name
from polarvault.model.segment import MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, is_segment_size
from polarvault.server.connection import Connection
from polarvault.wire.messages import parse_number

_UNKNOWN_PARAMETER = "42704"
_NOT_ALLOWED = "42501"
_UNITS = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """The facts about a server that decide how it is backed up; sizes are bytes."""

    system_identifier: str
    timeline_id: int
    flush_lsn: Lsn
    version_num: int
    version: str
    segment_size_bytes: int
    relation_segment_bytes: int
    block_bytes: int
    data_checksums: bool
    full_page_writes: bool
    group_access: bool
    in_recovery: bool
    log_directory: str
    # PolarDB only: None on PostgreSQL.
    polar_version: str | None
    shared_data_directory: str | None

    @property
    def shared_storage(self) -> bool:
        """Tell whether the data lies in two halves."""
        return self.shared_data_directory is not None

    @property
    def is_newer(self) -> bool:
        """Tell whether the server is newer than all versions that are known: what it writes is not to be guessed at."""
        return versions.is_newer(self.version_num // 10000)

    @property
    def product(self) -> str:
        """Name the server for people."""
        if self.polar_version:
            return f"PolarDB {self.version} ({'shared storage' if self.shared_storage else 'local storage'})"
        return f"PostgreSQL {self.version}"


def read_identity(connection: Connection) -> ServerIdentity:
    """Ask the server who it is; refuse versions that are too old to be spoken to.

    A newer one than is known is for the caller to speak of (`ServerIdentity.is_newer`).
    """
    version_num = connection.server_version_num
    if version_num < versions.OLDEST.number:
        raise ServerRefused(
            f"server version {connection.parameter('server_version')} is not supported",
            hint=f"polarvault backs up {versions.KNOWN_VERSIONS}, and PolarDB",
        )
    system = connection.query("IDENTIFY_SYSTEM")
    if len(system.rows) != 1 or len(system.rows[0]) < 3:
        raise RemoteProtocolError("IDENTIFY_SYSTEM did not return one row of at least three columns")
    shared = show(connection, "polar_enable_shared_storage_mode") == "on"
    return ServerIdentity(
        system_identifier=str(parse_number(system.value(0, 0), "its system identifier", most=(1 << 64) - 1)),
        timeline_id=system.timeline(0, 1, "its timeline"),
        flush_lsn=system.lsn(0, 2, "its position in the WAL"),
        version_num=version_num,
        version=connection.parameter("server_version") or str(version_num),
        segment_size_bytes=_segment_size(show(connection, "wal_segment_size") or "16MB"),
        relation_segment_bytes=parse_size(show(connection, "segment_size") or "1GB"),
        block_bytes=parse_number(show(connection, "block_size") or "8192", "block_size", least=512, most=64 << 10),
        data_checksums=show(connection, "data_checksums") == "on",
        full_page_writes=show(connection, "full_page_writes") != "off",
        group_access=_grants_group(show(connection, "data_directory_mode") or "0700"),
        in_recovery=_in_recovery(connection),
        log_directory=show(connection, "log_directory") or "log",
        polar_version=show(connection, "polar_version"),
        shared_data_directory=(show(connection, "polar_datadir") or "") if shared else None,
    )


def _in_recovery(connection: Connection) -> bool:
    """Tell whether the server recovers or follows; 13 does not report that, but its transactions show it.

    `Connector.replication` sees to it that no default of a server, database or role makes them read-only.
    """
    if (reported := connection.parameter("in_hot_standby")) is not None or (
        versions.of_server(connection.server_version_num).reports_hot_standby
    ):
        return reported == "on"
    return show(connection, "transaction_read_only") == "on"


def parse_size(text: str) -> int:
    """Parse a size as SHOW prints it, such as 16MB; return bytes."""
    match = re.fullmatch(r"([1-9][0-9]{0,9})(B|kB|MB|GB|TB)", text)
    if match is None:
        raise RemoteProtocolError(f"the server reports a size as {shown_name(text)}")
    return int(match[1]) * _UNITS[match[2]]


def _segment_size(text: str) -> int:
    size = parse_size(text)
    if not is_segment_size(size):
        raise RemoteProtocolError(
            f"the server reports {shown_name(text)} as its WAL segment size, "
            f"which is no power of two from {MIN_SEGMENT_BYTES >> 20} MB to {MAX_SEGMENT_BYTES >> 30} GB"
        )
    return size


def _grants_group(mode: str) -> bool:
    """Tell whether the mode of the data directory lets its group in."""
    if re.fullmatch(r"[0-7]{3,5}", mode) is None:
        raise RemoteProtocolError(f"the server reports {shown_name(mode)} as the mode of its data directory")
    return bool(int(mode, 8) & 0o050)


def show(connection: Connection, name: str) -> str | None:
    """Return a setting, or None where the server does not know it or does not tell this role."""
    try:
        return connection.query(f"SHOW {name}").value(0, 0)
    except ServerError as error:
        # PostgreSQL answers 42704 to every polar_ name: that is how the two are told apart (facts 1.1).
        if error.sqlstate in (_UNKNOWN_PARAMETER, _NOT_ALLOWED):
            return None
        raise
