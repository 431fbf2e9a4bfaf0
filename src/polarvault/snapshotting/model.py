"""Values of snapshots of servers: what is asked for, what is written down. Frozen, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from polarvault.config.model import SnapshotConfiguration


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRequest:
    """What the user asked for. at: the directory of snapshots, absolute; label: goes into backup_label.

    configured: the commands of the configuration, for the paths that they serve. series: of `follow`, which removes
    those of its own; None for one that stays until it is removed.
    """

    at: str
    name: str | None = None
    label: str = "polarvault snapshot"
    checkpoint_fast: bool = True
    checkpoint_timeout_s: float = 60.0
    configured: tuple[SnapshotConfiguration, ...] = ()
    series: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """What is written down about a snapshot; that it is being made, first of all.

    provider, datasets: who made it and, on ZFS, where. backup: the plain backup that it is, local half first; shared:
    its shared half. held_s: how long it took between the start and the end of the backup. is_atomic: all of it is of
    one moment. connected: the server was told. commands: the words of those that made
    it, as the configuration had them then.
    """

    id: str
    name: str
    made: datetime
    source: str
    provider: str
    directories: tuple[str, ...]
    datasets: tuple[str, ...] = ()
    backup: str = ""
    shared: str | None = None
    system_identifier: str = ""
    version: str = ""
    is_polardb: bool = False
    from_standby: bool = False
    is_atomic: bool = False
    start_lsn: str = ""
    stop_lsn: str = ""
    timeline_id: int = 0
    held_s: float = 0.0
    connected: bool = True
    commands: Mapping[str, Any] | None = None
    series: str | None = None


class SnapshotState(Enum):
    """What is seen of a snapshot."""

    WHOLE = "whole"
    UNFINISHED = "unfinished"
    """What made it was killed, or is at work."""
    GONE = "gone"
    """Somebody has removed what the provider had made, or a part of it."""


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """A snapshot as `snapshot list` shows it. used_bytes: what would be free without it, where that is known."""

    record: SnapshotRecord | None
    id: str
    directory: str
    state: SnapshotState
    used_bytes: int | None
