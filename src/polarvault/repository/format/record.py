"""The record of a backup: written last, it makes the backup valid. What needs no key is clear, the rest is sealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polarvault.errors import ObjectDamaged
from polarvault.model.dataclass import dataclass, field
from polarvault.model.lsn import Lsn
from polarvault.repository.format.documents import Fields, encode_json, parse_json
from polarvault.repository.format.names import check_label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

TIME = "%Y-%m-%dT%H:%M:%SZ"
IMPORTED_FROM = "imported_from"
"""The detail of a backup that was taken by another program, before it came here: the path where it was."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A page that was wrong on the server: file and block, and why."""

    part: int
    path: str
    block: int
    why: str


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """What a backup's command knows of it. reason: why it is a full one; details: what else is worth keeping."""

    started: datetime
    finished: datetime
    system_identifier: int
    timeline_id: int
    start_lsn: Lsn
    stop_lsn: Lsn
    stop_timeline_id: int
    server_version: int
    reason: str = ""
    damage: Sequence[Damage] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def record_document(
    identity: Mapping[str, str], facts: RecordFacts, root: bytes, parent: str | None, counts: Mapping[str, int]
) -> tuple[dict[str, Any], bytes]:
    """Return the clear and the sealed part of a record."""
    from dataclasses import asdict
    from datetime import UTC

    clear = {
        **identity,
        "started": facts.started.astimezone(UTC).strftime(TIME),
        "finished": facts.finished.astimezone(UTC).strftime(TIME),
        "system_identifier": str(facts.system_identifier),
        "timeline": facts.timeline_id,
        "start_lsn": str(facts.start_lsn),
        "stop_lsn": str(facts.stop_lsn),
        "stop_timeline": facts.stop_timeline_id,
        "parent": parent,
        "root_hash": root.hex(),
        "counts": dict(counts),
    }
    sealed = {
        "reason": facts.reason,
        "server_version": facts.server_version,
        "damage": [asdict(one) for one in facts.damage],
        "facts": dict(facts.details),
    }
    return clear, encode_json(sealed)


@dataclass(frozen=True, slots=True)
class BackupRecord:
    """A record as it was read."""

    cluster: str
    label: str
    parent: str | None
    root_hash: bytes
    counts: Mapping[str, int]
    facts: RecordFacts


def parse_record(clear: Mapping[str, Any], sealed: memoryview, what: str) -> BackupRecord:
    """Return what a record says; raise ObjectDamaged."""
    visible = Fields(clear, what)
    hidden = Fields(parse_json(sealed, f"the sealed part of {what}"), what)
    parent = visible.optional_text("parent")
    counted = visible.fields("counts")
    return BackupRecord(
        visible.text("cluster"),
        check_label(visible.text("label")),
        None if parent is None else check_label(parent),
        visible.hexadecimal("root_hash", 32),
        {name: counted.number(name) for name in visible.mapping("counts")},
        RecordFacts(
            _time(visible, "started", what),
            _time(visible, "finished", what),
            _whole(visible.text("system_identifier"), what),
            visible.number("timeline", most=0xFFFFFFFF),
            _lsn(visible, "start_lsn", what),
            _lsn(visible, "stop_lsn", what),
            visible.number("stop_timeline", most=0xFFFFFFFF),
            hidden.number("server_version"),
            hidden.text("reason"),
            [_damage(one, what) for one in hidden.items("damage")],
            hidden.mapping("facts"),
        ),
    )


def _time(fields: Fields, name: str, what: str) -> datetime:
    from datetime import UTC, datetime

    try:
        return datetime.strptime(fields.text(name), TIME).replace(tzinfo=UTC)
    except ValueError:
        raise ObjectDamaged(f'{what}: "{name}" is no time') from None


def _lsn(fields: Fields, name: str, what: str) -> Lsn:
    try:
        return Lsn.parse(fields.text(name))
    except ValueError:
        raise ObjectDamaged(f'{what}: "{name}" is no LSN') from None


def _whole(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise ObjectDamaged(f"{what} has a system identifier that is no number")
    return int(text)


def _damage(one: Any, what: str) -> Damage:
    if not isinstance(one, dict):
        raise ObjectDamaged(f"{what} lists a damage that is none")
    fields = Fields(one, f"a damage in {what}")
    return Damage(fields.number("part", most=0xFFFF), fields.text("path"), fields.number("block"), fields.text("why"))
