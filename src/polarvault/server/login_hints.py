"""What to do about a login that failed, told from the words of libpq and of the server."""

from __future__ import annotations

import re
from collections.abc import Mapping

from polarvault.errors import ConnectionFailed
from polarvault.model.names import shown_text

# Only a superuser may keep such triggers (17 and later) from firing, and a server that does not know the setting
# refuses it, so that no session of ours can ask for it unasked.
LOGIN_TRIGGER_ADVICE = (
    "as a superuser PGOPTIONS='-c event_triggers=off' goes in without event triggers on login "
    "(SELECT evtname FROM pg_event_trigger WHERE evtevent = 'login')"
)
_HBA = re.compile(
    r"(?:no pg_hba\.conf entry for|pg_hba\.conf rejects) replication connection (?:from|for) "
    r'host "([^"]*)", user "([^"]*)"'
)


def connection_failed(words: str, parameters: Mapping[str, str]) -> ConnectionFailed:
    """Explain a failed login: libpq's message and the line to type."""
    message = shown_text(words.strip())
    role = parameters.get("user", "ROLE")
    hint: str | None = None
    if match := _HBA.search(message):
        host = match[1]
        address = "" if host == "[local]" else f" {host}/{128 if ':' in host else 32}"
        kind = "local" if host == "[local]" else "host"
        hint = (
            f"add to the server's pg_hba.conf:  {kind} replication {match[2]}{address} scram-sha-256"
            "  and reload it: SELECT pg_reload_conf()"
        )
    elif "unsupported startup parameter" in message or "no such database: replication" in message:
        # pgbouncer's words; a pooler hands out sessions of its own and passes no replication on.
        hint = (
            "what answers there is a connection pooler such as pgbouncer: give the server's own address and port, "
            "-h and -p (psql through the pooler tells them: SELECT inet_server_addr(), inet_server_port())"
        )
    elif "CONTEXT:" in message:
        # Code has run before we were let in; physical replication connections run none.
        hint = f"{LOGIN_TRIGGER_ADVICE}; or look into the server's log for what refuses the session"
    elif "timeout expired" in message:
        hint = (
            "check address, port and firewall; where only SQL connections end like this, an event trigger on login may "
            f"hang: {LOGIN_TRIGGER_ADVICE}"
        )
    elif "password authentication failed" in message or "no password supplied" in message:
        hint = "check ~/.pgpass (mode 0600; its database field must be replication or *) or PGPASSWORD, or use -W"
    elif "must be superuser or replication role" in message or "permission denied to start WAL sender" in message:
        hint = f"on the server: ALTER ROLE {role} REPLICATION"
    elif "max_wal_senders" in message:
        hint = (
            "a backup with -X stream needs two WAL senders; see who uses them (SELECT * FROM pg_stat_replication)"
            " or raise max_wal_senders and restart the server"
        )
    elif "failed to resolve host" in message or "could not translate host name" in message:
        hint = "correct the name, or give an address, or the absolute path of the socket's directory: -h"
    elif "Connection refused" in message or "No such file or directory" in message:
        hint = "check that the server runs and -h and -p (or PGHOST and PGPORT) name its address"
    elif "could not translate host name" in message:
        hint = "give a host name, an address, or the absolute path of the socket's directory: -h"
    elif "certificate" in message or "SSL" in message:
        hint = "check sslmode and sslrootcert (or ~/.postgresql/root.crt) and that the certificate names this host"
    return ConnectionFailed(message, hint=hint)
