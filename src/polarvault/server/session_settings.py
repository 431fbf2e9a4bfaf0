"""What every SQL session of ours is begun with, so that no default of a server, database or role changes an answer.

`ALTER SYSTEM`, `ALTER DATABASE ... SET` and `ALTER ROLE ... SET` give each new session its defaults. Three kinds of
them get in our way: what a hot standby refuses (serializable transactions), what ends or forbids a question (time-outs,
read-only), and what changes the spelling of an answer or the meaning of a name. What a client sends when it connects
outranks all of them, and counts before the first statement (manual, 20.1.3 and 34.1.2 "options").

Only settings that every role may change are here, and that the oldest version knows; `later_settings` has the others.
"""

from __future__ import annotations

from collections.abc import Mapping

from polarvault.model import versions

# How values are written, and how literals are read.
SPELLING_SETTINGS: Mapping[str, str] = {
    "DateStyle": "ISO,YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    # 13 gives fractions of seconds as floating point.
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
}
SESSION_SETTINGS: Mapping[str, str] = {
    **SPELLING_SETTINGS,
    # A hot standby refuses to run anything in a serializable transaction.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # Nobody's function or operator in front of the server's own.
    "search_path": "pg_catalog,pg_temp",
    # A commit of ours must not wait for a standby that is gone.
    "synchronous_commit": "local",
}


def startup_options(settings: Mapping[str, str] = SESSION_SETTINGS, *, before: str | None = None) -> str:
    """Return libpq's `options` for some settings; `before` are the user's own, which they outrank."""
    # A blank or backslash in a value needs a backslash there (manual, 34.1.2).
    escaped = {name: value.replace("\\", "\\\\").replace(" ", "\\ ") for name, value in settings.items()}
    words = [f"-c {name}={value}" for name, value in escaped.items()]
    return " ".join([before, *words] if before else words)


def later_settings(version_num: int) -> dict[str, str]:
    """Return those settings that not every server knows, for one whose version is known."""
    return dict(versions.of_server(version_num).session_settings)


def later_statement(version_num: int) -> str | None:
    """Return one statement that makes the settings of `later_settings`; None where there are none."""
    return "; ".join(f"SET {name} = '{value}'" for name, value in later_settings(version_num).items()) or None
