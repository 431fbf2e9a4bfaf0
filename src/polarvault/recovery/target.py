"""What `--target-...` means: one value for each recovery target, parsed from the command line. No files are read.

The rules are the server's (manual, 20.5.6 "Recovery Target"): time, xid and LSN stop after or, exclusively, before
their record; a restore point and `immediate` always after; `latest` is no target at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from enum import Enum

from polarvault.errors import UsageError
from polarvault.model.lsn import Lsn

LATEST_TIMELINE = "latest"
CURRENT_TIMELINE = "current"
# A restore point's name has this many bytes in its WAL record, one of them a zero (server: MAXFNAMELEN).
_MAX_NAME_BYTES = 63
_FIRST_NORMAL_XID = 3
_TIME_EXAMPLE = "for example: {} '2026-11-22 14:03:00+01', '2026-11-22T13:03:00Z'"


class TargetKind(Enum):
    """The kinds of recovery target."""

    TIME = "time"
    XID = "xid"
    LSN = "lsn"
    NAME = "name"
    IMMEDIATE = "immediate"
    LATEST = "latest"

    @property
    def option(self) -> str:
        """The option that asks for it."""
        is_word = self in (TargetKind.IMMEDIATE, TargetKind.LATEST)
        return f"--target {self.value}" if is_word else f"--target-{self.value}"


class TargetAction(Enum):
    """What the server does when it has reached its target."""

    PAUSE = "pause"
    PROMOTE = "promote"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class RecoveryTarget:
    """One target; the field of its kind is set. assumed_zone names the zone of a time that was given without one."""

    kind: TargetKind
    time: datetime | None = None
    xid: int | None = None
    lsn: Lsn | None = None
    name: str | None = None
    inclusive: bool = True
    assumed_zone: str | None = None

    @property
    def value(self) -> str:
        """The value as the server reads it in recovery_target_*; empty for `latest`."""
        if self.time is not None:
            return format_time(self.time.astimezone(UTC))
        if self.kind in (TargetKind.IMMEDIATE, TargetKind.LATEST):
            return "immediate" if self.kind is TargetKind.IMMEDIATE else ""
        return str(self.xid if self.xid is not None else self.lsn if self.lsn is not None else self.name)

    def __str__(self) -> str:
        if self.time is not None:
            text = f"time {format_time(self.time)}"
        elif self.kind is TargetKind.NAME:
            text = f'restore point "{self.name}"'
        elif self.kind is TargetKind.XID:
            text = f"transaction {self.xid}"
        elif self.kind is TargetKind.LSN:
            text = f"LSN {self.lsn}"
        elif self.kind is TargetKind.IMMEDIATE:
            return "the end of the backup"
        else:
            return "the end of the WAL"
        return text if self.inclusive else text + ", exclusive"


@dataclass(frozen=True, slots=True)
class RecoveryRequest:
    """What the user asked for about recovery; directories are absolute. timeline: latest, current or a number."""

    target: RecoveryTarget | None = None
    timeline: str | int = LATEST_TIMELINE
    action: TargetAction | None = None
    wal_directories: tuple[str, ...] = ()
    keep_archiving: bool = False
    accepted_end: Lsn | None = None
    """Where the WAL ends, when the user has said that this end is meant, whatever is behind it."""
    archive_is_unknown: bool = field(default=False)
    """A --set restore_command names an archive that cannot be looked into."""
    uses_archive: bool = False
    """WAL comes also from where the backup says that its cluster's WAL is archived: its repository."""

    @property
    def has_places(self) -> bool:
        """Tell whether WAL can come from elsewhere than the backup itself."""
        return bool(self.wal_directories) or self.uses_archive

    @property
    def is_wanted(self) -> bool:
        """Tell whether recovery goes beyond the backup, so that it has to be planned."""
        is_led = self.has_places or self.accepted_end is not None
        return self.target is not None or is_led or self.timeline != LATEST_TIMELINE

    @property
    def effective_target(self) -> RecoveryTarget:
        """The target; without one it is the end of the WAL."""
        return self.target or RecoveryTarget(TargetKind.LATEST)

    @property
    def effective_action(self) -> TargetAction:
        """The action: the server's own default is to pause at a target; at the end of the WAL it can only promote."""
        if self.effective_target.kind is TargetKind.LATEST:
            return TargetAction.PROMOTE
        return self.action or TargetAction.PAUSE


def format_time(time: datetime) -> str:
    """Return a time with its offset, as PostgreSQL writes and reads it: 2026-11-22 14:03:00.5+01."""
    offset = time.strftime("%z")
    hours, minutes, seconds = offset[:3], offset[3:5], offset[5:]
    zone = hours + (f":{minutes}" if minutes != "00" or seconds else "") + (f":{seconds}" if seconds else "")
    fraction = f".{time.microsecond:06}".rstrip("0").rstrip(".") if time.microsecond else ""
    return f"{time:%Y-%m-%d %H:%M:%S}{fraction}{zone}"


def parse_target_time(text: str, *, local: tzinfo | None = None, option: str = "--target-time") -> RecoveryTarget:
    """Parse a point in time in ISO 8601, with an offset, `Z` or the name of a zone; without one it is local time.

    local: the machine's zone; None asks the operating system; option: where it was given. Raises UsageError for what
    is no time, and for a local time that a change of the clocks makes ambiguous or skips.
    """
    stripped = text.strip()
    time, zone_name = _parse_iso(stripped), None
    if time is None:
        written, _, zone_name = stripped.rpartition(" ")
        time = _parse_iso(written)
        if time is None or time.tzinfo is not None:
            raise UsageError(f"{option} {text!r} is not a date and time in ISO 8601", hint=_TIME_EXAMPLE.format(option))
        zone = _zone(zone_name, f"{option} {text!r}")
        return RecoveryTarget(TargetKind.TIME, time=_in_zone(time, zone, zone_name, f"{option} {text!r}"))
    if time.tzinfo is not None:
        return RecoveryTarget(TargetKind.TIME, time=time)
    resolved = _in_zone(time, local, "the machine's local time", f"{option} {text!r}")
    name = resolved.tzname()
    numeric = resolved.strftime("%z")
    shown = f"UTC{numeric[:3]}:{numeric[3:5]}" + (f" ({name})" if name and name[0].isalpha() else "")
    return RecoveryTarget(TargetKind.TIME, time=resolved, assumed_zone=shown)


def _parse_iso(text: str) -> datetime | None:
    # A bare date would mean midnight, which nobody who gives a moment to recover to should have to guess.
    if ":" not in text and "T" not in text.upper():
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _zone(name: str, given: str) -> tzinfo:
    from zoneinfo import ZoneInfo

    if name.upper() in ("UTC", "GMT", "Z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UsageError(
            f"{given}: {name!r} is no time zone that this machine knows",
            hint="give an offset from UTC, or a name such as Europe/Berlin; " + _TIME_EXAMPLE.format(given.split()[0]),
        ) from None


def _in_zone(time: datetime, zone: tzinfo | None, zone_name: str, given: str) -> datetime:
    """Attach a zone; None is the machine's. Refuse a local time that does not exist or exists twice."""

    def attach(fold: int) -> datetime:
        naive = time.replace(fold=fold)
        return naive.astimezone() if zone is None else naive.replace(tzinfo=zone)

    first, second = attach(0), attach(1)
    if first.utcoffset() != second.utcoffset():
        exists = first.astimezone(UTC).astimezone(first.tzinfo).replace(tzinfo=None, fold=0) == time
        problem = "happens twice" if exists and first.utcoffset() > second.utcoffset() else "is skipped"  # type: ignore[operator]
        offsets = " or ".join(format_time(moment)[19:] for moment in (first, second))
        raise UsageError(
            f"{given} {problem} in {zone_name}, because the clocks change",
            hint=f"give the offset from UTC as well: {offsets}",
        )
    # A fixed offset: what is shown and written has to be one moment, whatever the zone's rules do later.
    return first.astimezone() if zone is None else first


def parse_target_xid(text: str, *, option: str = "--target-xid") -> RecoveryTarget:
    """Parse a transaction number; of a 64-bit one, as pg_current_xact_id() gives it, the low half counts."""
    try:
        number = int(text, 10)
    except ValueError:
        number = -1
    xid = number & 0xFFFFFFFF
    if not 0 <= number < 1 << 64 or xid < _FIRST_NORMAL_XID:
        raise UsageError(
            f"{option} {text!r} is no transaction number",
            hint="give what txid_current() or pg_current_xact_id() returned, a number from 3",
        )
    return RecoveryTarget(TargetKind.XID, xid=xid)


def parse_target_lsn(text: str, *, option: str = "--target-lsn") -> RecoveryTarget:
    """Parse an LSN."""
    try:
        lsn = Lsn.parse(text)
    except ValueError as problem:
        raise UsageError(f"{option}: {problem}", hint=f"for example: {option} 16/B374D848") from problem
    return RecoveryTarget(TargetKind.LSN, lsn=lsn)


def parse_accepted_end(text: str) -> Lsn:
    """Parse the LSN of --accept-end."""
    try:
        return Lsn.parse(text)
    except ValueError as problem:
        raise UsageError(
            f"--accept-end: {problem}", hint="give the LSN at which the plan says that the WAL ends: --plan"
        ) from problem


def parse_target_name(text: str) -> RecoveryTarget:
    """Check the name of a restore point."""
    # Any byte but zero may be in it; the server reads it from a configuration file, where each can be written.
    if not text or len(text.encode("utf-8", "surrogateescape")) > _MAX_NAME_BYTES:
        raise UsageError(
            f"--target-name {text!r} is no restore point's name: those have 1 to {_MAX_NAME_BYTES} bytes",
            hint="give the name that pg_create_restore_point() was called with",
        )
    return RecoveryTarget(TargetKind.NAME, name=text)


def parse_timeline(text: str) -> str | int:
    """Parse `latest`, `current` or the number of a timeline."""
    if text in (LATEST_TIMELINE, CURRENT_TIMELINE):
        return text
    if text.isascii() and text.isdigit() and 1 <= int(text) < 1 << 32:
        return int(text)
    raise UsageError(
        f"--target-timeline {text!r} is neither latest nor current nor a number from 1",
        hint="the first 8 digits of a WAL segment's name are its timeline, in hexadecimal; give it in decimal",
    )
