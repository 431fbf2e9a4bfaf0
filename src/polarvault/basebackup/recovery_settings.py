"""-R: the lines for postgresql.auto.conf that make the backup a standby of the server it was taken from."""

from __future__ import annotations

import os
from collections.abc import Mapping

from polarvault.model import versions
from polarvault.pgconf.grammar import decode, encode, quote_value
from polarvault.server.connection import Connector
from polarvault.server.conninfo import format_conninfo

STANDBY_SIGNAL = "standby.signal"
AUTO_CONF = "postgresql.auto.conf"
# Meaningless for a standby's own connection (server: fe_utils/recovery_gen.c), or, like the name of a service, found in
# files that the standby's host need not have: what the service says is written instead.
_SKIPPED = {"replication", "fallback_application_name", "dbname", "service", "servicefile"}
# Written also where nobody named them: on the standby's host the defaults may be others.
_ALWAYS = {"host", "hostaddr", "port", "user"}


def recovery_settings(
    connector: Connector, server_version_num: int, *, slot: str | None, shared_data_directory: str | None
) -> bytes:
    """Return the lines to append; the server and libpq read back every byte of what was given.

    Lists of hosts, names and options are written as the user gave them; the standby has to find its primary after a
    failover too. Defaults of the libpq in use that nobody asked for are left out: another build's may differ (without
    Kerberos it says gssencmode=disable). dbname is for PostgreSQL 17 and later, which synchronises slots with it. On
    PolarDB the copy must not point at the live storage, which it would open as a second writer (facts 4.2).
    """
    version = versions.of_server(server_version_num)
    # The standby reads the lines with the libpq of its own version, which refuses a connection string with a keyword
    # that it does not know (manual of each version, "Parameter Key Words").
    too_new = versions.NEWEST.connection_keywords - version.connection_keywords
    words = {
        name: option.value
        for name, option in connector.options.items()
        if name not in _SKIPPED
        and name not in too_new
        and (name in _ALWAYS or name in connector.given or not option.is_default)
    }
    if connector.password is not None:
        words["password"] = connector.password
    dbname = connector.standby_dbname
    if dbname is not None and version.synchronises_slots:
        words["dbname"] = dbname
    lines = {"primary_conninfo": format_conninfo(words)}
    if slot is not None:
        lines["primary_slot_name"] = slot
    if shared_data_directory is not None:
        # A path comes in the locale's encoding.
        lines["polar_datadir"] = "file-dio://" + decode(os.fsencode(shared_data_directory))
    return encode_settings(lines)


def encode_settings(settings: Mapping[str, str]) -> bytes:
    """Return lines for a configuration file from which the server reads these very values, whatever bytes they hold."""
    return encode("".join(f"{name} = {quote_value(value)}\n" for name, value in settings.items()))
