"""Which relation a file of a backup belongs to, by its path in the data directory."""

from __future__ import annotations

import os.path
import re

from polarvault.model.relation import FREE_SPACE_FORK, INIT_FORK, MAIN_FORK, VISIBILITY_FORK, RelationFile

_DEFAULT_TABLESPACE, _GLOBAL_TABLESPACE = 1663, 1664
_PATH = re.compile(r"(?:(base)/|(global)|pg_tblspc/(\d+)/[^/]+/)(\d*)/(\d+)(?:_(fsm|vm|init))?(?:\.\d+)?\Z")
_FORKS = {None: MAIN_FORK, "fsm": FREE_SPACE_FORK, "vm": VISIBILITY_FORK, "init": INIT_FORK}


def relation_of(path: str) -> tuple[RelationFile, int] | None:
    """Return relation and fork of a file, by its path in the data directory; None for what is no relation's file."""
    match = _PATH.match(path)
    if match is None:
        return None
    base, shared, tablespace, database, number, fork = match.groups()
    if bool(shared) == bool(database):
        return None
    oid = _DEFAULT_TABLESPACE if base else _GLOBAL_TABLESPACE if shared else int(tablespace)
    return RelationFile(oid, int(database or 0), int(number)), _FORKS[fork]


def unlogged_path(path: str) -> str | None:
    """Return the file that is there if the relation is unlogged: the server then makes it anew at its start."""
    found = relation_of(path)
    if found is None or found[1] == INIT_FORK:
        return None
    directory = os.path.dirname(path)
    return f"{directory}/{found[0].number}_init"
