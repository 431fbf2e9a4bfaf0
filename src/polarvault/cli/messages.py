"""What the program says on standard error; imported by every start, also the quick one of `wal fetch`."""

from __future__ import annotations

import os

PROGRAM = "polarvault"


def say_error(message: str, *, detail: str | None = None, hint: str | None = None) -> None:
    """Write an error to standard error in PostgreSQL's form."""
    # Here: `wal fetch` starts once for every segment, and has an error to tell once a recovery.
    from polarvault.model.secrets import hide_secrets

    for kind, text in (("error", message), ("detail", detail), ("hint", hint)):
        if text:
            os.write(2, f"{PROGRAM}: {kind}: {hide_secrets(text)}\n".encode("utf-8", "surrogateescape"))


def say_warning(message: str) -> None:
    """Write a warning to standard error."""
    from polarvault.model.secrets import hide_secrets

    os.write(2, f"{PROGRAM}: warning: {hide_secrets(message)}\n".encode("utf-8", "surrogateescape"))
