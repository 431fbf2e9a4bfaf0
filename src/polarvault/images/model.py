"""Values of images: what is asked for, what is written down about one, what is seen of it. Frozen, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from polarvault.backupset.backup import Shelf
from polarvault.backupset.source import OnDisk
from polarvault.recovery.target import RecoveryRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """What the user asked for; paths are absolute.

    source: a backup, for the first image; for the next ones the backup whose archive has the WAL, "" for none. area:
    the directory of images. series: what people call it. keep: how many of the series stay.
    """

    source: str
    area: str
    series: str
    keep: int
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
class ImageRecord:
    """What is written down about an image.

    name: SERIES.NUMBER. start_lsn: from where on it needs WAL, which it has; lsn: up to where it was replayed, and time
    of the last transaction there, in ISO 8601. shares: made by reflink. backup: the plain backup that it is; shared:
    its shared half. request: the command line that made the first one.
    """

    id: str
    name: str
    series: str
    number: int
    made: datetime
    source: str
    start_lsn: str
    lsn: str
    time: str | None
    start_timeline_id: int
    timeline_id: int
    shares: bool
    system_identifier: str
    version: str
    major: int
    is_polardb: bool
    backup: str
    shared: str | None
    keep: int
    request: Mapping[str, Any] = field(default_factory=dict)


class ImageState(Enum):
    """What is seen of an image."""

    WHOLE = "whole"
    UNFINISHED = "unfinished"
    """What made it was killed, or is at work."""
    GONE = "gone"
    """Somebody has removed its files, or a part of them."""


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """An image as `image list` shows it. own_bytes: what it shares with nobody, if known."""

    id: str
    directory: str
    state: ImageState
    record: ImageRecord | None
    own_bytes: int | None
