"""What stands in a directory that somebody wants to use, told by names: a server's data, a tablespace, anything else.

A directory that is not empty may be the very one that has to be saved. So a refusal never says to empty it: it says
what is there, and how to use another place. Only looks, and believes names: where a server runs in a container or on
another machine, nothing here could find its process.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from enum import Enum

from polarvault.errors import TargetNotEmpty
from polarvault.model.tablespace_mapping import mapping_option

# The server's own directory inside of a tablespace: major version and catalogue version (relpath.h).
_TABLESPACE_VERSION = re.compile(r"PG_[0-9.]+_[0-9]+\Z")
# pg_control lies under this name until everything else of a restore is durable, so that half of one cannot be started.
CONTROL_WAITING_NAME = "global/pg_control.polarvault"
# The one of a cluster that is being brought to a backup in place: it proves whose files these are.
CONTROL_ASIDE_NAME = "global/pg_control.polarvault-before"
# In each directory that a restore fills, until it is nearly done.
RESTORE_MARK_NAME = "polarvault_restore_in_progress"
_OF_A_BACKUP = ("backup_manifest", "backup_label", "polarvault_backup.json")


class Occupancy(Enum):
    """What a directory is, told by the names in it."""

    SERVER = "the data directory of a server that runs, or has crashed (postmaster.pid is there)"
    CLUSTER = "the data directory of a server"
    SHARED_HALF = "a shared half of a PolarDB cluster"
    TABLESPACE = "a tablespace of a database cluster"
    BACKUP = "a backup"
    CUT_OFF_RESTORE = "a restore that was cut off, which no server starts from"
    OTHER = "not empty"

    @property
    def may_be_live(self) -> bool:
        """Tell whether a server may be using it, now or when it is started again."""
        return self not in (Occupancy.BACKUP, Occupancy.CUT_OFF_RESTORE, Occupancy.OTHER)


@dataclass(frozen=True, slots=True)
class Occupant:
    """A directory that holds something."""

    path: str
    occupancy: Occupancy


def occupant_of(path: str) -> Occupant | None:
    """Return what is in a directory; None when it is absent or empty. Raises OSError when it cannot be listed."""
    try:
        names = set(os.listdir(path))
    except FileNotFoundError:
        return None
    return Occupant(path, _judge(path, names)) if names else None


def enclosing_occupant(path: str) -> Occupant | None:
    """Return the nearest directory above a path that a database lives in, links resolved; None when there is none.

    A directory that cannot be listed is no reason: those that matter are checked by their owner as well.
    """
    parent = os.path.dirname(os.path.realpath(path))
    while parent != os.path.dirname(parent):
        try:
            names = set(os.listdir(parent))
        except OSError:
            names = set()
        found = _judge(parent, names)
        if found is not Occupancy.OTHER:
            return Occupant(parent, found)
        parent = os.path.dirname(parent)
    return None


def _judge(path: str, names: set[str]) -> Occupancy:
    if "postmaster.pid" in names:
        return Occupancy.SERVER
    control, waiting = (
        "global" in names and os.path.lexists(os.path.join(path, name))
        for name in ("global/pg_control", CONTROL_WAITING_NAME)
    )
    if (waiting or RESTORE_MARK_NAME in names) and not control:
        return Occupancy.CUT_OFF_RESTORE
    if names & set(_OF_A_BACKUP):
        return Occupancy.BACKUP
    if "PG_VERSION" in names:
        return Occupancy.CLUSTER
    if control:
        return Occupancy.SHARED_HALF
    if any(map(_TABLESPACE_VERSION.match, names)):
        return Occupancy.TABLESPACE
    return Occupancy.OTHER


def not_empty(occupant: Occupant, *, tablespace: str | None = None, replaceable: bool = False) -> TargetNotEmpty:
    """Return the refusal to use a directory; nothing in it makes anybody delete what is there.

    tablespace: where the source has the tablespace that it is wanted for. replaceable: the command brings a cluster
    back, so that somebody may want just this place for it.
    """
    path = occupant.path
    message = f'directory "{path}" exists but is not empty'
    if occupant.occupancy is not Occupancy.OTHER:
        message += f": it is {occupant.occupancy.value}"
    hint = "choose another directory"
    if tablespace is not None:
        hint = f"give the tablespace's copy another place: {mapping_option(tablespace, 'NEW_DIRECTORY')}"
    elif occupant.occupancy is Occupancy.OTHER:
        hint += f"; see what is there: ls -la {shlex.quote(path)}"
    elif replaceable and occupant.occupancy.may_be_live:
        move = shlex.join(["mv", path, path.rstrip("/") + ".old"])
        hint += f"; or, to have it in this place, stop the server and keep what is there: {move}"
    return TargetNotEmpty(message, hint=hint)
