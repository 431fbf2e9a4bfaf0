"""The missing pg_hba.conf line, ready to paste: who the server says came, and how that client can log in. Pure.

Source: manual, "The pg_hba.conf File".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_REFUSAL = re.compile(
    r"(?:no pg_hba\.conf entry for|pg_hba\.conf rejects) (?:(?P<replication>replication )?connection )?"
    r'(?:from |for )?host "(?P<host>[^"]*)", user "(?P<user>[^"]*)"(?:, database "(?P<database>[^"]*)")?'
    r"(?:, (?P<how>no encryption|SSL encryption|GSS encryption|SSL on|SSL off))?"
)
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_.-]+\Z")
# Words that pg_hba.conf takes for something else than a name unless they are quoted.
_KEYWORDS = frozenset({"all", "sameuser", "samerole", "samegroup", "replication"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """How the server sees us: address None for a local socket. method fits the password that the role has."""

    user: str
    address: str | None
    encrypted: bool
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A login that pg_hba.conf refuses, in the server's own words."""

    user: str
    address: str | None
    encrypted: bool
    is_rejection: bool


def parse_refusal(message: str) -> Refusal | None:
    """Find in a failed login who was refused; None when it was not pg_hba.conf, or the message is in another language.

    libpq tries with and without TLS and reports both: the attempt with TLS is the one to allow.
    """
    found = [
        Refusal(
            user=match["user"],
            address=None if match["host"] == "[local]" else match["host"],
            encrypted=(match["how"] or "") in ("SSL encryption", "SSL on", "GSS encryption"),
            is_rejection="rejects" in match[0],
        )
        for match in _REFUSAL.finditer(message)
    ]
    return max(found, key=lambda refusal: refusal.encrypted, default=None)


def hba_line(database: str, client: Client) -> str:
    """Return the line that lets this client in; database is `replication` for walsenders."""
    name = database if database == "replication" else quoted(database)
    if client.address is None:
        return f"local   {name}  {quoted(client.user)}  {client.method}"
    mask = 128 if ":" in client.address else 32
    kind = "hostssl" if client.encrypted else "host"
    return f"{kind:<7} {name}  {quoted(client.user)}  {client.address}/{mask}  {client.method}"


def quoted(name: str) -> str:
    """Return a name as pg_hba.conf takes it."""
    return name if _PLAIN_WORD.match(name) and name not in _KEYWORDS else '"' + name.replace('"', '""') + '"'


def login_method(*, system_user: str | None, used_password: bool, password_encryption: str, local: bool) -> str:
    """Choose the authentication method for a new line.

    system_user: SYSTEM_USER of PostgreSQL 16 and later, `method:name`, which tells how we did log in.
    password_encryption decides which methods fit the stored password: `scram-sha-256` fails with an md5 hash, while
    `md5` takes both.
    """
    if system_user and ":" in system_user:
        return system_user.split(":", 1)[0]
    if local and not used_password:
        return "peer"
    return "scram-sha-256" if password_encryption == "scram-sha-256" else "md5"
