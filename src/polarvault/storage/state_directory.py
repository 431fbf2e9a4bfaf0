"""A place on this machine for what the program remembers between two runs; it can always be made again.

$XDG_STATE_HOME/polarvault, or /var/lib/polarvault where its owner has made it, or ~/.local/state/polarvault. What is
in it is believed, so a directory that anybody else can write is not used. `wal push` and `wal fetch` import this for
every segment: nothing heavy may be imported at the top.
"""

from __future__ import annotations

import os
import stat

from polarvault.model.ownership import others_may_change

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SYSTEM_DIRECTORY = "/var/lib/polarvault"
_MODE = 0o700


def state_directory(
    environment: Mapping[str, str],
    *parts: str,
    outside: Sequence[str],
    make: bool = True,
    system: str = _SYSTEM_DIRECTORY,
) -> str | None:
    """Return a directory below the one for state; None if there can be none.

    make: make it if it is missing. outside: data directories of servers, in which it must not lie: it would be backed
    up and restored with it.
    """
    base = _base(environment, system)
    if base is None or any(_lies_in(base, directory) for directory in outside):
        return None
    path = base
    try:
        if make:
            os.makedirs(base, _MODE, exist_ok=True)
        for part in parts:
            path = os.path.join(path, part)
            if make and not os.path.lexists(path):
                # Who loses a race for it does without this time: contextlib would take longer to import.
                os.mkdir(path, _MODE)
            if not _is_ours(path):
                return None
    except OSError:
        return None
    return path


def data_directories(path: str) -> list[str]:
    """Return the data directories to which a file of pg_wal may belong."""
    # A server runs its commands in its data directory; pg_wal may be a link to elsewhere.
    candidates = os.path.dirname(os.path.dirname(os.path.abspath(path))), os.getcwd()
    return [one for one in candidates if os.path.exists(os.path.join(one, "global", "pg_control"))]


def _base(environment: Mapping[str, str], system: str) -> str | None:
    named = environment.get("XDG_STATE_HOME", "")
    # The XDG Base Directory Specification: a relative path there is to be ignored.
    if named.startswith("/"):
        return os.path.join(named, "polarvault")
    if os.access(system, os.W_OK | os.X_OK):
        return system
    home = environment.get("HOME") or os.path.expanduser("~")
    return os.path.join(home, ".local", "state", "polarvault") if home.startswith("/") else None


def _lies_in(path: str, directory: str) -> bool:
    real, outer = os.path.realpath(path), os.path.realpath(directory)
    return real == outer or real.startswith(outer.rstrip("/") + "/")


def _is_ours(path: str) -> bool:
    found = os.lstat(path)
    return stat.S_ISDIR(found.st_mode) and not others_may_change(found)
