"""-R: the lines for postgresql.auto.conf that make the backup a standby of the server it was taken from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from polarvault.model import versions
from polarvault.pgconf.grammar import decode, encode, quote_value
from polarvault.polardb.settings import DATADIR, LOCALFS_MODE, PFS_SETTINGS, is_true, shared_storage_settings
from polarvault.server.connection import Connector
from polarvault.server.conninfo import format_conninfo

STANDBY_SIGNAL = "standby.signal"
AUTO_CONF = "postgresql.auto.conf"
# Meaningless for a standby's own connection (server: fe_utils/recovery_gen.c), or, like the name of a service, found in
# files that the standby's host need not have: what the service says is written instead.
_SKIPPED = {"replication", "fallback_application_name", "dbname", "service", "servicefile"}
# Written also where nobody named them: on the standby's host the defaults may be others.
_ALWAYS = {"host", "hostaddr", "port", "user"}
_OF_STORAGE = {LOCALFS_MODE, *PFS_SETTINGS}


def recovery_settings(
    connector: Connector,
    server_version_num: int,
    *,
    slot: str | None,
    storage: Mapping[str, str],
) -> bytes:
    """Return the lines to append; the server and libpq read back every byte of what was given.

    Lists of hosts, names and options are written as the user gave them; the standby has to find its primary after a
    failover too. Defaults of the libpq in use that nobody asked for are left out: another build's may differ (without
    Kerberos it says gssencmode=disable). dbname is for PostgreSQL 17 and later, which synchronises slots with it.
    storage: what the copy is told of its own storage, see `storage_settings`.
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
    return encode_settings(lines | dict(storage))


def storage_settings(directory: str, value: Callable[[str], str | None]) -> dict[str, str]:
    """Return what keeps a PolarDB copy on its own shared half, an ordinary directory (an absolute path).

    It must not point at the live storage, which it would open as a second writer (facts 4.2). value: the server's
    settings by name. From a server on PFS everything that names PFS changes as well: with polar_datadir alone the copy
    does not start, and would mount the server's disk by force if it did (facts 4.3, 13).
    """
    # A path comes in the locale's encoding.
    shared = decode(os.fsencode(directory))
    wanted = shared_storage_settings(shared, value, direct_io=True)
    on_pfs = not is_true(value(LOCALFS_MODE))
    return {one.name: one.value for one in wanted if one.name == DATADIR or (on_pfs and one.name in _OF_STORAGE)}


def encode_settings(settings: Mapping[str, str]) -> bytes:
    """Return lines for a configuration file from which the server reads these very values, whatever bytes they hold."""
    return encode("".join(f"{name} = {quote_value(value)}\n" for name, value in settings.items()))
