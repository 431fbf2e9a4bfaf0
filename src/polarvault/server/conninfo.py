"""Connection strings: read, complete and write them without losing a byte (manual, "Connection Strings").

Values are UTF-8 with what is not as surrogates, whatever the locale: any bytes that libpq takes pass through unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import psycopg
from psycopg import pq

from polarvault.errors import UsageError
from polarvault.pgconf.grammar import decode, encode

# libpq completes all options before it looks at the value of this one, and at this one before it opens a socket.
_STOPS_LIBPQ = "channel_binding", "target_session_attrs"
_NO_SUCH_VALUE = "polarvault asks for the other values"


@dataclass(frozen=True, slots=True)
class ResolvedOption:
    """What libpq would use for a keyword; compiled is the default of this libpq, variable its environment variable."""

    value: str
    compiled: str | None
    variable: str | None

    @property
    def is_default(self) -> bool:
        """Tell whether nobody asked for this value, as far as one can know."""
        named = self.variable is not None and self.variable in os.environ
        return self.value == self.compiled and not named


def from_locale(argument: str | None) -> str | None:
    """Return an argument of the command line, which comes in the locale's encoding, as values are kept here."""
    return None if argument is None else decode(os.fsencode(argument))


def parse_conninfo(text: str) -> dict[str, str]:
    """Return the keywords of a connection string or URI that have a value; raise UsageError.

    An empty value counts as not given, as in PostgreSQL's own clients.
    """
    try:
        options = pq.Conninfo.parse(encode(text))
    except psycopg.Error as problem:
        raise UsageError(
            f"invalid connection string: {_without_quotations(str(problem).strip())}",
            hint="use keyword=value pairs or postgresql://user@host:port/, see the libpq manual",
        ) from None
    except ValueError:
        raise UsageError("invalid connection string: it holds a zero byte or what is no text") from None
    found = {option.keyword.decode(): decode(option.val) for option in options if option.val}
    if "://" in text:
        _refuse_misread_uri(found)
    return found


def _without_quotations(words: str) -> str:
    """Take what libpq quotes out of its complaint: it can be a password, or what is left of one."""
    if words.startswith('missing "=" after'):
        return 'missing "=" after a word in it (a value with blanks in it needs quotes)'
    # From the first quotation mark to the last: what is quoted may hold some.
    start, end = words.find('"'), words.rfind('"')
    return words if start == end else f'{words[:start]}"..."{words[end + 1 :]}'


def _refuse_misread_uri(parameters: Mapping[str, str]) -> None:
    """Refuse host and port that show that a password with @, : or / in it was taken apart; never quote them."""
    hosts, ports = parameters.get("host", ""), parameters.get("port", "")
    if "@" in hosts and not hosts.startswith("@") and not hosts.startswith("/"):
        wrong = "the host in it holds an @"
    elif any(port and not port.strip().isdecimal() for port in ports.split(",")):
        wrong = "the port in it is no number"
    else:
        return
    raise UsageError(
        f"invalid connection string: {wrong}",
        hint="in a URI, write @ in user name and password as %40, : as %3A, / as %2F and % as %25",
    )


def quote_conninfo_value(value: str) -> str:
    """Return a value as libpq reads it back: plain words bare, everything else in quotes."""
    if value and value.isascii() and value.replace("_", "").replace(".", "").replace("-", "").isalnum():
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def format_conninfo(options: Mapping[str, str]) -> str:
    """Return the connection string for keywords and values; the inverse of `parse_conninfo`."""
    return " ".join(f"{name}={quote_conninfo_value(value)}" for name, value in options.items())


def resolved_options(given: Mapping[str, str]) -> dict[str, ResolvedOption]:
    """Return every option that libpq would use: given, of the service file, of the environment, and defaults.

    Nothing is connected to: libpq, which alone knows all the rules, is stopped by a value that it refuses. A second
    attempt is stopped by another one, for the value that the first has displaced.
    """
    first, second = (_until_refused(given, keyword) for keyword in _STOPS_LIBPQ)
    displaced = _STOPS_LIBPQ[0]
    first.pop(displaced, None)
    return first | ({displaced: second[displaced]} if displaced in second else {})


def _until_refused(given: Mapping[str, str], keyword: str) -> dict[str, ResolvedOption]:
    refused = pq.PGconn.connect_start(encode(format_conninfo({**given, keyword: _NO_SUCH_VALUE})))
    try:
        return {
            found.keyword.decode(): ResolvedOption(
                decode(found.val),
                decode(found.compiled) if found.compiled else None,
                decode(found.envvar) if found.envvar else None,
            )
            for found in refused.info
            if found.val
        }
    finally:
        refused.finish()


def default_options() -> dict[str, str]:
    """Return what the environment, with the service that it names, and libpq itself decide."""
    return {found.keyword.decode(): decode(found.val) for found in pq.Conninfo.get_defaults() if found.val}
