"""Libraries that a throw-away copy is not to load: those that lie in the backup itself. Pure.

A value without a slash names a library of the server's own (`dynamic_library_path`, by default $libdir). With a slash
it is a path, relative to the data directory, so that a backup can bring a library along (server: utils/fmgr/dfmgr.c).
"""

from __future__ import annotations

import posixpath

LIBRARY_LISTS = ("shared_preload_libraries", "session_preload_libraries", "local_preload_libraries")
LIBRARY_PATH = "dynamic_library_path"
_OWN = "$libdir"


def without_brought_libraries(value: str, backup: str) -> tuple[str, list[str]]:
    """Return a list of libraries without those that lie in the backup, and these."""
    kept: list[str] = []
    dropped: list[str] = []
    for entry in (part.strip() for part in value.split(",")):
        if entry:
            (dropped if _is_brought(entry.strip('"'), backup) else kept).append(entry)
    return ", ".join(kept), dropped


def without_brought_directories(value: str, backup: str) -> tuple[str, list[str]]:
    """Return a search path for libraries without directories of the backup, and these; never an empty one."""
    kept: list[str] = []
    dropped: list[str] = []
    for entry in value.split(":"):
        (dropped if _is_brought(entry + "/", backup) else kept).append(entry)
    return ":".join(kept) or _OWN, dropped


def _is_brought(path: str, backup: str) -> bool:
    if "/" not in path:
        return False
    if path.startswith(_OWN + "/"):
        return ".." in path.split("/")
    if not posixpath.isabs(path):
        return True
    inside = posixpath.normpath(path) + "/"
    return inside.startswith(posixpath.normpath(backup) + "/") or ".." in path.split("/")
