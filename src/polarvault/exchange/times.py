"""When a backup that lies in files began and ended, by whatever says so."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from polarvault.exchange.barman import BarmanInfo
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.pgfiles.control import ControlFile


def times_of(
    description: Mapping[str, object], info: BarmanInfo | None, label: BackupLabel, control: ControlFile
) -> tuple[datetime, datetime]:
    """Return start and end; the end is the start where nothing says it."""
    began = _iso(description.get("started_at")) or (info.began if info else None) or _label_time(label)
    began = began or control.checkpoint_time or datetime.fromtimestamp(0, UTC)
    ended = _iso(description.get("finished_at")) or (info.ended if info else None)
    return began, max(began, ended) if ended is not None else began


def _iso(text: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def _label_time(label: BackupLabel) -> datetime | None:
    # The server writes it in its log_timezone, by an abbreviation: only that of UTC is one and the same everywhere.
    text, _, zone = label.start_time.rpartition(" ")
    if zone not in ("UTC", "GMT"):
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None
