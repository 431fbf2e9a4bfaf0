"""The one JSON object that a command prints with --json: what every command's has, around what each adds.

docs/json.md lists every field; a test compares the two.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from polarvault import __version__
from polarvault.errors import PolarvaultError, ServerError
from polarvault.model.secrets import hide_secrets

# Raised when a field changes its meaning or goes; fields may be added without that.
SCHEMA_VERSION = 1


def iso(moment: datetime | float | None) -> str | None:
    """Return a moment, aware or in seconds since 1970, as ISO 8601 in UTC: 2026-11-22T13:03:00.123456Z."""
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def error_json(problem: BaseException) -> dict[str, str | None]:
    """Return an error as `error` shows it; its id is explained in docs/errors.md."""
    if isinstance(problem, PolarvaultError):
        sqlstate = problem.sqlstate or None if isinstance(problem, ServerError) else None
        return error_fields(problem.id, problem.message, problem.detail, problem.hint, sqlstate)
    if isinstance(problem, OSError):
        name = f' "{problem.filename}"' if problem.filename else ""
        return error_fields(getattr(problem, "id", "system"), f"{problem.strerror or problem}{name}")
    return error_fields(
        "internal", f"{type(problem).__name__}: {problem}", detail="".join(traceback.format_tb(problem.__traceback__))
    )


def error_fields(
    error_id: str, message: str, detail: str | None = None, hint: str | None = None, sqlstate: str | None = None
) -> dict[str, str | None]:
    """Return the fields of `error`."""
    texts = {"message": message, "detail": detail, "hint": hint}
    shown = {name: None if text is None else hide_secrets(text) for name, text in texts.items()}
    return {"id": error_id, **shown, "sqlstate": sqlstate}


@dataclass(slots=True)
class JsonDocument:
    """What a command gathers for its JSON object while it runs."""

    command: str
    began: datetime
    fields: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: dict[str, str | None] | None = None
    """An error that the command has reported itself, and did not raise."""
    _began_s: float = field(default_factory=time.monotonic)

    def add(self, **fields: Any) -> None:
        """Add fields of the command's own; a later value of a field counts."""
        self.fields.update(fields)

    def warn(self, text: str) -> None:
        """Add a warning."""
        self.warnings.append(text)

    def ended(self, *, exit_status: int, error: Mapping[str, str | None] | None, now: datetime) -> dict[str, Any]:
        """Return the object."""
        return envelope(
            self.command, self.fields, began=self.began, ended=now, duration_s=time.monotonic() - self._began_s,
            exit_status=exit_status, warnings=self.warnings, notes=self.notes, error=error or self.error,
        )  # fmt: skip


def envelope(
    command: str,
    fields: Mapping[str, Any],
    *,
    began: datetime,
    ended: datetime,
    duration_s: float,
    exit_status: int,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
    error: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Put what every command's object has around what one command adds."""
    return {
        "schema": SCHEMA_VERSION,
        "command": command,
        "version": __version__,
        "began": iso(began),
        "ended": iso(ended),
        "duration_s": round(duration_s, 3),
        "exit_status": exit_status,
        "error": None if error is None else dict(error),
        "warnings": list(warnings),
        "notes": list(notes),
        "findings": [],
        **fields,
    }
