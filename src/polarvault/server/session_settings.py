"""What every SQL session of ours is begun with, so that no default of a server, database or role changes an answer.

`ALTER SYSTEM`, `ALTER DATABASE ... SET` and `ALTER ROLE ... SET` give each new session its defaults. Three kinds of
them get in our way: what a hot standby refuses (serializable transactions), what ends or forbids a question (time-outs,
read-only), and what changes the spelling of an answer or the meaning of a name. What a client sends when it connects
outranks all of them, and counts before the first statement (manual, 20.1.3 and 34.1.2 "options").

Only settings that every role may change are here, and that the oldest version knows; `later_settings` has the others.
"""

from __future__ import annotations

import re
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


# The server's levels that let a NOTICE and a WARNING through, and its "-c name=value" and "--name=value" in options.
_LETS_NOTICES_THROUGH = frozenset({"debug", "debug1", "debug2", "debug3", "debug4", "debug5", "log", "notice"})
_LEVEL = re.compile(r"(?:^|\s)(?:-c\s*|--)client[_-]min[_-]messages=(\S*)", re.IGNORECASE)


def replication_options(before: str | None = None) -> str:
    """Return libpq's `options` for a replication connection; `before` are the user's own.

    What a server leaves out of a backup it says in a WARNING alone, which client_min_messages = error in its
    configuration would keep from us. A lower level than notice, which the user has asked for, stays.
    """
    levels = _LEVEL.findall(before or "")
    if before is not None and levels and levels[-1].lower() in _LETS_NOTICES_THROUGH:
        return before
    return startup_options({"client_min_messages": "notice"}, before=before)


def later_settings(version_num: int) -> dict[str, str]:
    """Return those settings that not every server knows, for one whose version is known."""
    return dict(versions.of_server(version_num).session_settings)


def later_statement(version_num: int) -> str | None:
    """Return one statement that makes the settings of `later_settings`; None where there are none."""
    return "; ".join(f"SET {name} = '{value}'" for name, value in later_settings(version_num).items()) or None
