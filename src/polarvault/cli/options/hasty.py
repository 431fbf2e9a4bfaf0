"""A limit for how long a connection may take, for commands that only ask."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polarvault.server.connection import ConnectionSettings

# A host that swallows packets would otherwise be waited for as long as the kernel likes.
_CONNECT_TIMEOUT_S = 10


def hasty(settings: ConnectionSettings) -> ConnectionSettings:
    """Limit how long a connection may take, unless the caller has."""
    from polarvault.server.conninfo import format_conninfo, parse_conninfo

    given = settings.parameters()
    words = parse_conninfo(settings.conninfo or "") | {"connect_timeout": str(_CONNECT_TIMEOUT_S)}
    # A service file may have a limit too, which a keyword would override.
    if {"connect_timeout", "service"} & given.keys() or {"PGCONNECT_TIMEOUT", "PGSERVICE"} & os.environ.keys():
        return settings
    return replace(settings, conninfo=format_conninfo(words))
