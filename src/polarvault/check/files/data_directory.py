"""What in the data directory keeps a base backup from being whole, or from being taken at all.

The server leaves links out of a base backup, with nothing but a warning, and gives a backup up at the first file that
its user cannot read. SQL does not tell a link from a directory, so the directory itself is looked at where it lies on
this machine and we may; what cannot be read is found by SQL too, where the role may read the server's files.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from polarvault.check.session import INSUFFICIENT_PRIVILEGE, CheckSession
from polarvault.errors import PolarvaultError, ServerError
from polarvault.model.finding import Finding, ok, problem
from polarvault.server.connection import is_on_this_machine
from polarvault.taking.guards.absences import explain_refusal, is_needed

# Contents of these are not in a base backup, and links are sent as empty directories (server: excludeDirContents).
_NOT_READ = frozenset(
    {"pg_wal", "pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"}
)
_NOT_SENT = frozenset({"postmaster.pid", "postmaster.opts", "pg_internal.init", "current_logfiles.tmp"})
_OF_THE_SERVER = ("PG_VERSION", "base", "global", "pg_", "postmaster.", "postgresql.", "current_logfiles", "polar_")
_MOST_ENTRIES = 2_000_000
_MOST_ASKED = 100
_SHOWN = 5


@dataclass(slots=True)
class DirectoryFacts:
    """What was found; paths are relative to `directory`. looked_into: whether the directory itself could be seen."""

    directory: str
    looked_into: bool = False
    links: dict[str, str] = field(default_factory=dict)
    """What a copy needs, and is no regular file or directory: where it leads."""
    other_links: dict[str, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def check_data_directory(session: CheckSession) -> list[Finding]:
    """Return the findings about links and unreadable files; none where neither can be seen."""
    findings = []
    for directory in _directories(session):
        facts = DirectoryFacts(directory)
        if _is_here(session):
            look_into(facts)
        if not facts.looked_into and not session.shared_storage:
            facts.unreadable += _unreadable_by_sql(session)
        findings += judge_directory(facts, _database_names(session, facts.links))
    return findings


def links_here(session: CheckSession, directory: str, paths: Sequence[str]) -> dict[str, str] | None:
    """Return which of the paths below the server's data directory are links, and where to; None if that is not told."""
    if not _is_here(session) or not os.access(directory, os.R_OK | os.X_OK):
        return None
    return {path: target for path in paths if (target := _leads_out(directory, path)) is not None}


def _leads_out(directory: str, path: str) -> str | None:
    real, inside = os.path.realpath(path), os.path.realpath(directory)
    is_out = not real.startswith(inside + os.sep)
    # A link to another file inside is left out as well.
    return real if is_out or os.path.islink(path) else None


def _is_here(session: CheckSession) -> bool:
    connection = session.sql or session.replication
    return connection is not None and is_on_this_machine(connection)


def _directories(session: CheckSession) -> Iterator[str]:
    local = session.setting("data_directory")
    if local is None:
        return
    yield local
    shared = session.setting("polar_datadir") if session.shared_storage else None
    path = (shared or "").partition("://")[2] or shared
    if path:
        yield os.path.normpath(os.path.join(local, path))


def look_into(facts: DirectoryFacts) -> None:
    """Walk a data directory; what cannot be listed by us is left out."""
    try:
        top = os.stat(facts.directory)
        with os.scandir(facts.directory) as entries:
            names = list(entries)
    except OSError:
        return
    facts.looked_into = True
    seen = 0
    waiting = [(entry, entry.name) for entry in names]
    while waiting and seen < _MOST_ENTRIES:
        entry, path = waiting.pop()
        seen += 1
        if path in _NOT_SENT or path == "pg_tblspc" or path.startswith("pg_tblspc/"):
            continue
        if not (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)):
            _note_link(facts, path)
            continue
        # Millions of relation files are the server's own; to ask for the mode of each would take minutes.
        if not path.startswith("base/") and not _is_readable(entry.stat(follow_symlinks=False), top):
            facts.unreadable.append(path)
            continue
        if entry.is_dir(follow_symlinks=False) and path not in _NOT_READ:
            waiting += [(below, f"{path}/{below.name}") for below in _below(entry.path)]


def _below(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []


def _note_link(facts: DirectoryFacts, path: str) -> None:
    if path in _NOT_READ:
        return
    full = os.path.join(facts.directory, path)
    target = os.readlink(full) if os.path.islink(full) else "no regular file"
    (facts.links if is_needed(path) else facts.other_links)[path] = target


def _is_readable(status: os.stat_result, top: os.stat_result) -> bool:
    """Tell from owner and mode whether the server's user, who owns the data directory, can read a file in it."""
    wanted = 5 if stat.S_ISDIR(status.st_mode) else 4
    if status.st_uid == top.st_uid:
        return status.st_mode >> 6 & wanted == wanted
    if status.st_gid == top.st_gid:
        return status.st_mode >> 3 & wanted == wanted
    return status.st_mode & wanted == wanted


def _unreadable_by_sql(session: CheckSession) -> list[str]:
    """Let the server try what is not its own in its data directory; empty where the role may not."""
    may = session.value(
        "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_read_binary_file(text, bigint, bigint)', 'EXECUTE')"
        " AND pg_catalog.has_function_privilege('pg_catalog.pg_ls_dir(text)', 'EXECUTE')"
        " AND pg_catalog.has_function_privilege('pg_catalog.pg_stat_file(text)', 'EXECUTE')"
    )
    rows = session.rows("SELECT name FROM pg_catalog.pg_ls_dir('.') AS name ORDER BY 1") if may == "t" else None
    names = [row["name"] or "" for row in rows or []]
    strangers = [name for name in names if not name.startswith(_OF_THE_SERVER)]
    return [name for name in strangers[:_MOST_ASKED] if session.sql is not None and _is_refused(session, name)]


def _is_refused(session: CheckSession, name: str) -> bool:
    literal = "'" + name.replace("'", "''") + "'"
    is_directory = session.value(f"SELECT isdir FROM pg_catalog.pg_stat_file({literal})")
    if is_directory is None or session.sql is None:
        return False
    question = f"SELECT count(*) FROM pg_catalog.pg_ls_dir({literal})"
    if is_directory == "f":
        question = f"SELECT length(pg_catalog.pg_read_binary_file({literal}, 0, 1))"
    try:
        session.sql.query(question)
    except ServerError as refused:
        return refused.sqlstate == INSUFFICIENT_PRIVILEGE
    except PolarvaultError:
        return False
    return False


def _database_names(session: CheckSession, links: dict[str, str]) -> dict[str, str]:
    oids = {path.split("/")[1] for path in links if path.startswith("base/")}
    if not oids:
        return {}
    listed = ", ".join(sorted(oids))
    rows = session.rows(f"SELECT oid, datname FROM pg_catalog.pg_database WHERE oid IN ({listed})") or []
    return {row["oid"] or "": row["datname"] or "" for row in rows}


def judge_directory(facts: DirectoryFacts, databases: dict[str, str]) -> list[Finding]:
    """Return the findings about one directory; databases: names by oid."""
    findings = []
    if facts.links:
        shown = [_said(path, target, databases) for path, target in list(facts.links.items())[:_SHOWN]]
        first = next(iter(facts.links))
        findings.append(
            problem(
                "data-links", first,
                f"no regular file or directory in {facts.directory}: {', '.join(shown)}{_more(facts.links)}",
                meaning="no base backup contains what a link leads to: polarvault basebackup refuses, pg_basebackup "
                "ends without an error, and the restored server lacks it",
                advice="with the server stopped, put the real one in the place of the link; find it with: "
                f"ls -ld {shlex.quote(os.path.join(facts.directory, first))}",
            )
        )  # fmt: skip
    elif facts.looked_into:
        findings.append(ok("data-links", facts.directory, f"nothing that a copy needs is a link in {facts.directory}"))
    if facts.unreadable:
        first = facts.unreadable[0]
        refusal = explain_refusal(
            ServerError(f'could not open file "./{first}": Permission denied', sqlstate=INSUFFICIENT_PRIVILEGE)
        )
        findings.append(
            problem(
                "unreadable-files", first,
                f"the server's user cannot read in its data directory {facts.directory}: "
                f"{', '.join(facts.unreadable[:_SHOWN])}{_more(facts.unreadable)}",
                meaning="every base backup ends with an error there",
                advice=refusal.hint or "give the file back to the server's user",
            )
        )  # fmt: skip
    return findings


def _said(path: str, target: str, databases: dict[str, str]) -> str:
    parts = path.split("/")
    name = databases.get(parts[1]) if parts[0] == "base" and len(parts) > 1 else None
    of = f', database "{name}"' if name is not None else ""
    return f"{path} ({target}{of})"


def _more(found: Sequence[str] | dict[str, str]) -> str:
    return f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
