"""What is asked of the server for one base backup; where it goes is the target's affair."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from polarvault.model.compression import Compression


@dataclass(frozen=True, slots=True)
class CourtesyLimits:
    """Above these the backup slows down: how long a commit may take, how far standbys may be behind; seconds."""

    commit_s: float = 0.05
    lag_s: float = 10.0


class SourceKind(Enum):
    """Where the bytes come from: the server's stream, its files read here, or whichever is better."""

    AUTO = "auto"
    STREAM = "stream"
    LOCAL = "local"
    PFS = "pfs"
    """Its files read here, of which the shared half lies in PFS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRequest:
    """The server's part of a backup; field names follow pg_basebackup's long options.

    target: where the server itself is to store the backup, None if it is to be sent. max_rate_kb: kB a second.
    incremental: the earlier backup's manifest, or its path. compression counts here where its location is the server.
    refuses_bad_pages: raise ChecksumFailure instead of leaving it to the target what becomes of damaged pages.
    courtesy: slow down while the server is slower than this.
    server_verifies: the server verifies page checksums as well where they are verified here as they pass.
    """

    target: str | None = None
    format: str | None = None
    max_rate_kb: int | None = None
    wal_method: str = "stream"
    compression: Compression = field(default_factory=Compression)
    checkpoint_fast: bool = False
    create_slot: bool = False
    label: str = "pg_basebackup base backup"
    slot: str | None = None
    no_slot: bool = False
    manifest: bool = True
    manifest_checksums: str | None = None
    manifest_force_encode: bool = False
    estimate_size: bool = True
    verify_checksums: bool = True
    incremental: str | bytes | None = None
    status_interval_s: float = 10.0
    checkpoint_timeout_s: float = 60.0
    refuses_bad_pages: bool = True
    server_verifies: bool = True
    source: SourceKind = SourceKind.STREAM
    courtesy: CourtesyLimits | None = None
