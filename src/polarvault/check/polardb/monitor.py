"""PolarDB's own questions: the functions of its extension polar_monitor, where the database has it."""

from __future__ import annotations

from polarvault.check.session import CheckSession

INSTALL = "CREATE EXTENSION polar_monitor;"


def monitor_schema(session: CheckSession) -> str | None:
    """Return the schema of polar_monitor, quoted for use in a query; None where the extension is missing.

    Every role may call the functions that are asked here; the extension exists per database and is not installed by
    default (facts 5).
    """
    return session.value(
        "SELECT extnamespace::pg_catalog.regnamespace::text FROM pg_catalog.pg_extension"
        " WHERE extname = 'polar_monitor'"
    )


def quote_literal(text: str) -> str:
    """Return text as an SQL string constant, whatever standard_conforming_strings says."""
    quoted = text.replace("'", "''")
    return "E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in text else f"'{quoted}'"
