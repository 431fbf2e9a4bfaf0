"""What verifying a backup of a repository, or checking all of one, has found: as text or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from polarvault.report.findings import findings_json
from polarvault.report.units import format_bytes, printable
from polarvault.repository.catalogue.rebuild import Rebuilt
from polarvault.verify.stored.backup import VerifiedBackup
from polarvault.verify.stored.check import RepositoryCheck

_SHOWN = 20


def verified_text(found: VerifiedBackup) -> Iterator[str]:
    """Yield the verdict about a backup, and what is wrong with it."""
    how = "everything was read" if found.sampled >= 1 else f"about {found.sampled:.0%} of the content was read"
    verdict = "good" if found.is_good else "DAMAGED"
    yield f"{found.cluster}@{found.label}: {verdict}; {how}"
    for one in found.damage[:_SHOWN]:
        where = f"{one.path} block {one.block}: " if one.path else ""
        yield printable(f"  {where}{one.message}")
    if len(found.damage) > _SHOWN:
        yield f"  and {len(found.damage) - _SHOWN} more"
    for finding in found.wal:
        yield printable(f"  {finding.severity.value}: {finding.subject}: {finding.message}")
    if found.concerned:
        yield f"  the same chunks are in: {', '.join(found.concerned)}"


def verified_json(found: VerifiedBackup) -> dict[str, Any]:
    """Return the same as --json prints it."""
    return {
        "cluster": found.cluster,
        "label": found.label,
        "good": found.is_good,
        "sampled": found.sampled,
        "damage": [
            {
                "path": one.path or None, "block": one.block if one.path else None, "message": one.message,
                "chunk": None if one.chunk is None else [one.chunk.label, one.chunk.pack, one.chunk.number],
            }
            for one in found.damage
        ],
        "wal": findings_json(found.wal),
        "concerned": list(found.concerned),
    }  # fmt: skip


def checked_text(found: RepositoryCheck, *, read_data: bool) -> Iterator[str]:
    """Yield what is wrong in a repository."""
    for one in found.problems:
        needed = f" (needed by {', '.join(one.backups)})" if one.backups else ""
        yield printable(f"{one.name}: {one.message}{needed}")
    for name in found.unknown[:_SHOWN]:
        yield printable(f"{name}: not known to this program; left alone")
    for intent in found.intents:
        yield printable(
            f"intent {intent.id}: `{intent.command}` on {intent.host}, process {intent.pid}, since {intent.started}; "
            f"if it is gone: polarvault repo abort {intent.id}"
        )
    if found.unused:
        yield f"{found.unused} packs belong to no backup; the next one goes on with them, or expire removes them"
    count = len(found.problems)
    verdict = f"{count} problem{'s' * (count != 1)}" if count else "nothing is wrong"
    how = "" if read_data else "; packs and WAL were only looked for, --read-data reads them"
    yield f"{verdict}: {found.objects} objects, {format_bytes(found.read_bytes)} read{how}"


def checked_json(found: RepositoryCheck) -> dict[str, Any]:
    """Return the same as --json prints it."""
    return {
        "objects": found.objects,
        "read_bytes": found.read_bytes,
        "problems": [
            {"name": one.name, "message": one.message, "backups": list(one.backups)} for one in found.problems
        ],
        "unused_packs": found.unused,
        "unknown": list(found.unknown),
        "open_intents": [intent.id for intent in found.intents],
    }  # fmt: skip


def rebuilt_text(made: Sequence[Rebuilt]) -> Iterator[str]:
    """Yield what was made again, and what could not be."""
    for one in made:
        yield printable(
            f"cannot be made again: {one.name}: {one.problem}" if one.problem else f"made again: {one.name}"
        )
    if not made:
        yield "nothing had to be made again"


def rebuilt_json(made: Sequence[Rebuilt]) -> dict[str, Any]:
    """Return the same as --json prints it."""
    return {
        "rebuilt": [one.name for one in made if not one.problem],
        "not_rebuilt": [{"name": one.name, "message": one.problem} for one in made if one.problem],
    }
