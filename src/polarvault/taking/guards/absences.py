"""What a server leaves out of a base backup without failing, and whether the backup is worth anything without it.

The server sends regular files and directories. Anything else that it meets (a link to a directory, a socket, a FIFO)
it skips with a warning and goes on (server: sendDir in basebackup.c); of a tablespace whose directory is not there it
sends nothing at all, without a word (sendTablespace). Neither ends a backup, and the manifest lists what was sent, so
that every check passes: a database whose directory is a link is found missing after the restore. Here such a backup
ends.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from enum import Enum

from polarvault.errors import BackupIncomplete, PolarvaultError, ServerError
from polarvault.model.limits import TABLESPACES
from polarvault.server.base_backup import Tablespace
from polarvault.server.connection import Connector

# The name of the server's function comes with each notice, in no language but C's.
_SKIPS = "sendDir"
_PERMISSION_DENIED = "42501"
# Quotation marks of the server's languages, from the first to the last: a path may hold some of its own.
_MARKS = "\"'`\u00ab\u00bb\u2018\u2019\u201c\u201d\u201e\u300c\u300d"
_QUOTED = re.compile(f"[{_MARKS}](.+)[{_MARKS}]")
_SCHEME = re.compile(r"[a-z][a-z-]*://")
_IN_TABLESPACE = re.compile(r"(?:^|/)PG_[0-9.]+_[0-9]+/(.+)")
# Directories without which there is no cluster; those whose contents a backup never holds are sent as empty ones even
# where they are links (excludeDirContents), and pg_wal is always made anew.
_NEEDED_DIRECTORIES = frozenset({"pg_xact", "pg_multixact", "pg_commit_ts", "pg_twophase", "pg_logical", "pg_tblspc"})
_RELATION = r"[0-9]+(?:_(?:fsm|vm|init))?(?:\.[0-9]+)?"
_IN_DATABASE = rf"[0-9]+(?:/(?:{_RELATION}|PG_VERSION|pg_filenode\.map))?"
_NEEDED = re.compile(
    rf"PG_VERSION|base(?:/{_IN_DATABASE})?|global(?:/(?:{_RELATION}|pg_control|pg_filenode\.map))?\Z", re.ASCII
)
_NEEDED_OF_TABLESPACE = re.compile(rf"{_IN_DATABASE}\Z", re.ASCII)
_DATABASE = re.compile(r"(?:base/)?([0-9]+)(?:/|\Z)")
_SHOWN = 5


def is_needed(path: str, *, in_tablespace: bool = False) -> bool:
    """Tell whether a copy lacks data without this; path is relative to the data directory, or to PG_15_... ."""
    if in_tablespace:
        return _NEEDED_OF_TABLESPACE.match(path) is not None
    return path.partition("/")[0] in _NEEDED_DIRECTORIES or _NEEDED.fullmatch(path) is not None


class _Place(Enum):
    """What a path that the server names lies in; the local half of PolarDB holds caches and empty directories."""

    DATA = "data directory, or PolarDB's shared half"
    LOCAL_HALF = "PolarDB's local half"
    TABLESPACE = "tablespace"


@dataclass(slots=True)
class Absences:
    """What was left out so far; notices arrive in the reader's thread, the verdict is asked for in the main one."""

    shared_data_directory: str | None = None
    """polar_datadir, as the server spells it."""
    needed: list[str] = field(default_factory=list)
    configuration: list[str] = field(default_factory=list)
    empty_tablespaces: list[Tablespace] = field(default_factory=list)

    def take_notice(self, notice: ServerError) -> None:
        """Remember what a notice says was skipped."""
        if notice.routine != _SKIPS or len(self.needed) >= TABLESPACES:
            return
        match = _QUOTED.search(notice.message)
        named = match[1].strip() if match else notice.message
        path, place = self._relative(named)
        if place is not _Place.LOCAL_HALF and is_needed(path, in_tablespace=place is _Place.TABLESPACE):
            shown = named.removeprefix("./")
            # The server walks twice when it is asked for the size.
            if shown not in self.needed:
                self.needed.append(shown)
        elif path.endswith(".conf") and path not in self.configuration:
            self.configuration.append(path)

    def _relative(self, named: str) -> tuple[str, _Place]:
        """Return the path below the data directory, or below the server's directory in a tablespace, and which."""
        if (match := _IN_TABLESPACE.search(named)) is not None:
            return match[1], _Place.TABLESPACE
        path, place = _SCHEME.sub("", named), _Place.DATA
        if self.shared_data_directory is not None:
            shared = _SCHEME.sub("", self.shared_data_directory).rstrip("/")
            place = _Place.DATA if path.startswith(shared + "/") else _Place.LOCAL_HALF
            path = path.removeprefix(shared)
        return os.path.normpath(path).lstrip("/"), place

    def raise_if_any(self, connector: Connector) -> None:
        """Raise BackupIncomplete when a copy would lack data; databases are named if the server tells their names."""
        if self.needed:
            raise self._links(connector)
        missing = [space for space in self.empty_tablespaces if _exists(connector, space) is not False]
        if missing:
            raise _nothing_sent(missing)

    def _links(self, connector: Connector) -> BackupIncomplete:
        oids = {path: match[1] for path in self.needed if (match := _DATABASE.match(self._relative(path)[0]))}
        names = _database_names(connector, set(oids.values()))
        shown = []
        for path in self.needed[:_SHOWN]:
            name = names.get(oids.get(path, ""))
            shown.append(f'{path} (of database "{name}")' if name is not None else path)
        more = f" and {len(self.needed) - _SHOWN} more" if len(self.needed) > _SHOWN else ""
        return BackupIncomplete(
            f"the server leaves data out of the backup: {', '.join(shown)}{more}: no regular file or directory, but a "
            "link or something else that a base backup never holds",
            hint="at the server, find what it is (ls -ld in the data directory); with the server stopped, put the real "
            "directory into the place of the link"
            + ("" if self.shared_data_directory else "; another disk is for CREATE TABLESPACE, which backups know of"),
        )


def _database_names(connector: Connector, oids: set[str]) -> dict[str, str]:
    if not oids:
        return {}
    listed = ", ".join(sorted(oids))
    try:
        connection = connector.without_prompt().sql()
    except PolarvaultError:
        return {}
    try:
        rows = connection.query(f"SELECT oid, datname FROM pg_catalog.pg_database WHERE oid IN ({listed})").rows
        return {oid: name for oid, name in rows if oid is not None and name is not None}
    except PolarvaultError:
        return {}
    finally:
        connection.close()


def _exists(connector: Connector, space: Tablespace) -> bool | None:
    """Tell whether a tablespace is still there: one that was dropped meanwhile is rightly empty. None: not told."""
    if space.oid is None or not space.oid.isdecimal():
        return None
    try:
        connection = connector.without_prompt().sql()
    except PolarvaultError:
        return None
    try:
        rows = connection.query(f"SELECT 1 FROM pg_catalog.pg_tablespace WHERE oid = {space.oid}").rows
        return bool(rows)
    except PolarvaultError:
        return None
    finally:
        connection.close()


def _nothing_sent(missing: list[Tablespace]) -> BackupIncomplete:
    shown = ", ".join(f'{space.oid} ("{space.location}")' for space in missing[:_SHOWN])
    return BackupIncomplete(
        f"the server sent nothing of tablespace {shown}: its directory is not there, most likely because its disk is "
        "not mounted",
        hint=f"at the server: ls -la {shlex.quote(missing[0].location or '')}, and mount its disk; if the tablespace "
        "was dropped while the backup ran, run the backup again",
    )


def explain_refusal(error: ServerError) -> ServerError:
    """Give the next step to the server's words about a file that it may not read; other errors are left as they are."""
    match = _QUOTED.search(error.message)
    if error.sqlstate != _PERMISSION_DENIED or error.hint is not None or match is None or "/" not in match[1]:
        return error
    path = match[1].removeprefix("./")
    look = f"at the server, in its data directory: ls -ld {shlex.quote(path)}"
    if path.partition("/")[0] == "lost+found":
        error.hint = (
            "lost+found is there because a file system is mounted at the data directory itself; base backups need "
            "a data directory one level deeper, or at the server, as root: chown postgres: lost+found"
        )
    elif is_needed(path) or os.path.isabs(path):
        error.hint = f"{look}; it belongs to the database: give it back to the user that the server runs as (chown)"
    else:
        error.hint = (
            f"{look}; the server's user must be able to read everything there: give it the file (chown), or, if "
            "it is not the server's, move it out of the data directory"
        )
    return error
