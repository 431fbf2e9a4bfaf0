"""What is asked for when a backup goes into a repository."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.taking.request import CourtesyLimits, ServerRequest, SourceKind


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupJob:
    """One backup of one cluster. level: of zstd, None for the repository's; max_rate: bytes a second; note: for people.

    full: take no parent, whatever there is.
    """

    cluster: str
    full: bool = False
    note: str | None = None
    checkpoint_fast: bool = True
    level: int | None = None
    max_rate: int | None = None
    courtesy: CourtesyLimits | None = None
    estimate_size: bool = False
    slot: str | None = None
    checkpoint_timeout_s: float = 60.0
    source: SourceKind = SourceKind.AUTO

    @property
    def server_request(self) -> ServerRequest:
        """What the server is asked for."""
        return ServerRequest(
            max_rate_kb=None if self.max_rate is None else max(32, self.max_rate // 1024),
            courtesy=self.courtesy,
            checkpoint_fast=self.checkpoint_fast,
            label=f"polarvault {self.cluster}",
            slot=self.slot,
            manifest_checksums="CRC32C",
            estimate_size=self.estimate_size,
            checkpoint_timeout_s=self.checkpoint_timeout_s,
            refuses_bad_pages=False,
            server_verifies=False,
            source=self.source,
        )
