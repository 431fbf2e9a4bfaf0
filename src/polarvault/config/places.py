"""Where the configuration file may lie. `wal push` imports this for every segment: nothing heavy may be imported."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SYSTEM_FILE = "/etc/polarvault/polarvault.toml"


def candidate_files(named: str | None, environment: Mapping[str, str], *, system_file: str = SYSTEM_FILE) -> list[str]:
    """Return the files to look for: the one that is named; or one's own, then the system's. The first one counts."""
    return [named] if named is not None else [*_own_file(environment), system_file]


def _own_file(environment: Mapping[str, str]) -> Iterator[str]:
    # The XDG Base Directory Specification: a relative path there is to be ignored.
    directory = environment.get("XDG_CONFIG_HOME", "")
    if not directory.startswith("/") and environment.get("HOME", "").startswith("/"):
        directory = os.path.join(environment["HOME"], ".config")
    if directory.startswith("/"):
        yield os.path.join(directory, "polarvault", "polarvault.toml")
