"""What stands in a directory of PFS that somebody wants to fill, told by names, as `storage.occupants` does it here."""

from __future__ import annotations

from polarvault.storage.occupants import CONTROL_WAITING_NAME, RESTORE_MARK_NAME, Occupancy
from polarvault.storage.trees.model import Tree
from polarvault.storage.trees.small_files import exists

_CONTROL_NAME = "global/pg_control"
_OF_A_BACKUP = frozenset({"backup_manifest", "backup_manifest.tmp"})


def occupancy_of(tree: Tree, name: str) -> Occupancy | None:
    """Return what is in a directory; None when it is absent or empty. Raises OSError when it cannot be listed."""
    try:
        found = {entry.name for entry in tree.list(name)}
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return Occupancy.OTHER
    if not found:
        return None
    prefix = f"{name}/" if name else ""
    if found & _OF_A_BACKUP:
        return Occupancy.BACKUP
    if exists(tree, prefix + _CONTROL_NAME):
        return Occupancy.SHARED_HALF
    if RESTORE_MARK_NAME in found or exists(tree, prefix + CONTROL_WAITING_NAME):
        return Occupancy.CUT_OFF_RESTORE
    return Occupancy.OTHER


def enclosing_database(tree: Tree, name: str) -> str | None:
    """Return what messages call the nearest directory above a name in which a database lives; None without one."""
    found = None
    components = name.split("/") if name else []
    for depth in range(len(components)):
        outer = "/".join(components[:depth])
        if exists(tree, f"{outer}/{_CONTROL_NAME}" if outer else _CONTROL_NAME):
            found = tree.path(outer)
    return found
