"""Where the server's files lie: tablespaces, configuration (configuration.py), a leftover backup_label."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from polarvault.check.files.configuration import check_configuration
from polarvault.check.session import STAT_FILE, CheckSession
from polarvault.errors import PolarvaultError
from polarvault.model import versions
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.tablespace_mapping import mapping_option
from polarvault.model.units import format_bytes
from polarvault.wire.commands import quote_identifier

# pg_default and pg_global (pg_tablespace.dat): the data directory itself.
_BUILT_IN_TABLESPACES = "(1663, 1664)"
_PLAIN_NAME = re.compile(r"[\w.-]+\Z")


class Place(Enum):
    """What lies on this machine at the path of a tablespace."""

    FREE = "free"
    TAKEN = "taken"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class TablespaceFacts:
    """A user tablespace; size_bytes None is unknown. at_server: None when it is there, else what is wrong with it."""

    oid: int
    name: str
    location: str
    size_bytes: int | None
    at_server: str | None
    here: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """A backup_label in a running server's data directory, and the exclusive backup (13, 14) that it may belong to."""

    exclusive_since: str | None
    modified: str | None
    data_directory: str | None


def check_files(session: CheckSession) -> list[Finding]:
    """Return the findings about files."""
    findings = []
    if not session.shared_storage:
        # On shared storage tablespaces work in a way of their own: polardb.py.
        tablespaces = read_tablespaces(session)
        directory = session.setting("data_directory") if tablespaces else None
        findings += judge_tablespaces(tablespaces, data_directory=directory, target=session.target)
    findings += check_configuration(session)
    label = read_label(session)
    return [*findings, *judge_label(label)] if label else findings


def read_tablespaces(session: CheckSession) -> list[TablespaceFacts] | None:
    """Ask for the user tablespaces and look at their paths on this machine; None where SQL is refused."""
    rows = session.rows(
        "SELECT t.oid, t.spcname, pg_catalog.pg_tablespace_location(t.oid) AS location FROM pg_catalog.pg_tablespace t"
        f" WHERE t.oid NOT IN {_BUILT_IN_TABLESPACES} ORDER BY t.spcname",
        what="tablespaces",
    )
    if rows is None:
        return None
    found = []
    for row in rows:
        size = session.value(
            f"SELECT CASE WHEN pg_catalog.has_tablespace_privilege({row['oid']}, 'CREATE')"
            " OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')"
            f" THEN pg_catalog.pg_tablespace_size({row['oid']}) END"
        )
        location = row["location"] or ""
        found.append(
            TablespaceFacts(
                oid=int(row["oid"] or 0),
                name=row["spcname"] or "",
                location=location,
                size_bytes=int(size) if size else None,
                at_server=_wrong_at_server(session, int(row["oid"] or 0)),
                here=look_here(location),
            )
        )
    return found


def _wrong_at_server(session: CheckSession, oid: int) -> str | None:
    """Let the server look for its own directory inside the tablespace: a disk that is not mounted lacks it."""
    if not _may_stat(session, "directories of tablespaces") or session.sql is None:
        return None
    question = (
        f"SELECT (pg_catalog.pg_stat_file('pg_tblspc/{oid}/PG_' || current_setting('server_version_num')::int / 10000"
        " || '_' || catalog_version_no, true)).size FROM pg_catalog.pg_control_system()"
    )
    try:
        found = session.sql.query(question).rows
    except PolarvaultError as problem_:
        return problem_.message
    return None if found and found[0][0] is not None else "its directory is missing at the server"


def look_here(location: str) -> Place:
    """Tell whether a plain backup on this machine could use the path of a tablespace."""
    try:
        with os.scandir(location) as entries:
            return Place.TAKEN if any(entries) else Place.FREE
    except (FileNotFoundError, NotADirectoryError):
        return Place.TAKEN if os.path.lexists(location) else Place.FREE
    except OSError:
        return Place.UNREADABLE


def judge_tablespaces(
    tablespaces: Sequence[TablespaceFacts] | None, *, data_directory: str | None, target: str | None
) -> list[Finding]:
    """Return a finding for each tablespace, or one that there are none."""
    if tablespaces is None:
        return []
    if not tablespaces:
        return [ok("tablespaces", "pg_tblspc", "there are no tablespaces besides the data directory")]
    return [_judge_tablespace(space, data_directory, target) for space in tablespaces]


def _judge_tablespace(space: TablespaceFacts, data_directory: str | None, target: str | None) -> Finding:
    size = f", {format_bytes(space.size_bytes)}" if space.size_bytes is not None else ""
    name = f'tablespace "{space.name}" (oid {space.oid}{size}) at {space.location}'
    if space.at_server is not None:
        return problem(
            "tablespaces", space.name, f"{name}: {space.at_server}",
            meaning="a backup fails at its checkpoint, or ends without an error and lacks what is in this tablespace",
            advice=f"at the server: ls -ld {shlex.quote(space.location)}, mount its disk or give it back to the "
            f"server's user; if it is given up: DROP TABLESPACE {quote_identifier(space.name)};",
        )  # fmt: skip
    if not os.path.isabs(space.location):
        return ok("tablespaces", space.name, f"{name}, inside the data directory")
    # A name may hold a slash, or anything else that makes no file name.
    suffix = space.name if _PLAIN_NAME.match(space.name) else str(space.oid)
    mapping = mapping_option(space.location, f"{target or '/TARGET'}.{suffix}")
    if data_directory and (space.location + "/").startswith(data_directory.rstrip("/") + "/"):
        return warning(
            "tablespaces", space.name, f"{name} lies inside the data directory",
            meaning="a backup and a restored copy put it at the same absolute path: into the original's data directory",
            advice=f"give a plain backup another place for it: polarvault basebackup {mapping} ...",
        )  # fmt: skip
    if space.here is Place.FREE:
        return ok("tablespaces", space.name, f"{name}; a plain backup here writes to the same path, which is free")
    state = "is not empty" if space.here is Place.TAKEN else "cannot be read"
    return warning(
        "tablespaces", space.name, f"{name}; on this machine that path {state}",
        meaning="a plain backup writes each tablespace to its original path, and refuses one that is not empty",
        advice=f"polarvault basebackup {mapping} ...   (or a tar backup: -Ft)",
    )  # fmt: skip


def read_label(session: CheckSession) -> LabelFacts | None:
    """Ask for an exclusive backup and for the file; None when neither may be asked."""
    if session.sql is None:
        return None
    since = None
    may_be_exclusive = versions.of_server(session.version_num).has_exclusive_backups
    if may_be_exclusive and session.value("SELECT pg_catalog.pg_is_in_backup()") == "t":
        since = session.value("SELECT pg_catalog.pg_backup_start_time()") or "an unknown time"
    modified = None
    if _may_stat(session, "backup_label"):
        modified = session.value(
            "SELECT modification FROM pg_catalog.pg_stat_file('backup_label', true)", what="backup_label"
        )
    elif since is None:
        return None
    present = since is not None or modified is not None
    directory = session.setting("data_directory") if present else None
    return LabelFacts(exclusive_since=since, modified=modified, data_directory=directory)


def judge_label(facts: LabelFacts) -> list[Finding]:
    """Return the finding about an aborted backup's label."""
    path = f"{facts.data_directory or 'DATA_DIRECTORY'}/backup_label"
    if facts.exclusive_since is not None:
        return [
            warning(
                "backup-label", "backup_label", f"an exclusive backup runs since {facts.exclusive_since[:19]} UTC",
                meaning="if the server crashes before it is ended, backup_label keeps it from starting, or lets it "
                "start from the wrong place",
                advice="if no backup runs any more: SELECT pg_stop_backup();",
            )
        ]  # fmt: skip
    if facts.modified is not None:
        return [
            problem(
                "backup-label", "backup_label", f"a leftover backup_label of {facts.modified[:19]} UTC is in the data "
                "directory of the running server",
                meaning="after its next stop or crash the server recovers from the checkpoint that this old file "
                "names: it does not start, or starts with damaged data; base backups leave the file out",
                advice="if nobody copies the data directory just now, at the server: "
                + shlex.join(["mv", path, f"{path}.leftover"]),
            )
        ]  # fmt: skip
    return [ok("backup-label", "backup_label", "no leftover of an aborted backup")]


def _may_stat(session: CheckSession, what: str) -> bool:
    granted = session.value(
        "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_stat_file(text, boolean)', 'EXECUTE')"
    )
    if granted == "f":
        session.miss(what, "permission denied for function pg_stat_file", grant=STAT_FILE)
    return granted == "t"
