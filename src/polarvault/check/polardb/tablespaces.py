"""User tablespaces on PolarDB with shared storage: unusable, or left out of backups (facts 1.5)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from polarvault.check.polardb.monitor import quote_literal
from polarvault.check.session import CheckSession
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.polardb.settings import DATADIR, LOCALFS_MODE, is_true, split_protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTablespace:
    """A tablespace, or an entry of pg_tblspc that belongs to none (name None).

    location: as pg_tablespace_location() tells, None for unknown. in_storage: whether the shared half's pg_tblspc has
    an entry for it, which only hands can have made; None for unknown.
    """

    oid: str
    name: str | None
    location: str | None
    in_storage: bool | None


def check_tablespaces(session: CheckSession) -> list[Finding]:
    """Return the findings about user tablespaces."""
    tablespaces = read_tablespaces(session)
    if tablespaces is None:
        return []
    protocol, path = split_protocol(session.setting(DATADIR) or "")
    return judge_tablespaces(tablespaces, has_protocol=protocol is not None, storage=path)


def read_tablespaces(session: CheckSession) -> list[SharedTablespace] | None:
    """Ask for tablespaces and for what is in the shared pg_tblspc; None where SQL is refused."""
    rows = session.rows(
        "SELECT oid, spcname FROM pg_catalog.pg_tablespace WHERE oid >= 16384 ORDER BY spcname", what="tablespaces"
    )
    if rows is None:
        return None
    linked = _read_entries(session)
    found = [
        SharedTablespace(
            oid=row["oid"] or "",
            name=row["spcname"],
            # Fails where the link has been removed by hand, and then only for this one.
            location=session.value(f"SELECT pg_catalog.pg_tablespace_location({row['oid']})"),
            in_storage=None if linked is None else row["oid"] in linked,
        )
        for row in rows
    ]
    known = {tablespace.oid for tablespace in found}
    strays = sorted(oid for oid in linked or () if oid not in known)
    return found + [SharedTablespace(oid=oid, name=None, location=None, in_storage=True) for oid in strays]


def _read_entries(session: CheckSession) -> set[str] | None:
    """Return the numbers in the storage's pg_tblspc; None for those who may not look, and on PFS."""
    path = split_protocol(session.setting(DATADIR) or "")[1]
    if not path or not is_true(session.setting(LOCALFS_MODE)):
        return None
    rows = session.rows(f"SELECT pg_catalog.pg_ls_dir({quote_literal(path + '/pg_tblspc')}) AS name")
    return None if rows is None else {name for row in rows if (name := row["name"] or "").isdigit()}


def judge_tablespaces(
    tablespaces: Sequence[SharedTablespace], *, has_protocol: bool, storage: str
) -> list[Finding]:  # fmt: skip
    """Return the findings about user tablespaces. has_protocol: polar_datadir begins with file-dio:// or the like."""
    if not tablespaces:
        return [
            ok("polardb-tablespace", "tablespaces", "there are no user tablespaces, which shared storage cannot use")
        ]
    return [_judge(tablespace, has_protocol=has_protocol, storage=storage) for tablespace in tablespaces]


def _judge(tablespace: SharedTablespace, *, has_protocol: bool, storage: str) -> Finding:
    check = "polardb-tablespace"
    entry = f"{storage}/pg_tblspc/{tablespace.oid}"
    name = tablespace.name or entry
    drop = f'DROP TABLESPACE "{name}";'
    move = f'move its tables: ALTER TABLE ALL IN TABLESPACE "{name}" SET TABLESPACE pg_default;'
    in_place = tablespace.location is not None and not tablespace.location.startswith("/")
    if tablespace.in_storage and tablespace.name and in_place:
        return warning(
            check,
            name,
            f'tablespace "{name}" is a directory made by hand in the shared storage ({entry})',
            meaning="polarvault backs it up with the shared half; tools that ask for TABLESPACE_MAP "
            "(pg_basebackup -Ft) leave its contents out without a word",
            advice=f"{move}\nand then: {drop}",
        )
    if tablespace.in_storage and has_protocol:
        return problem(
            check,
            name,
            f'"{entry}" was linked by hand, and polar_datadir has a protocol in front of its path',
            meaning="BASE_BACKUP fails to read the link (58P01 could not read symbolic link), or leaves the tablespace "
            "out when it is asked for TABLESPACE_MAP without PROGRESS",
            advice="move its tables to pg_default, and then, on the server: "
            + (f"{drop} and rm {shlex.quote(entry)}" if tablespace.name else f"rm {shlex.quote(entry)}"),
        )
    if tablespace.in_storage:
        return problem(
            check,
            name,
            f'"{entry}" was linked by hand',
            meaning="the server sends it as an archive of its own, which has no place in either half: polarvault "
            "basebackup ends with an error, and so does polar_basebackup in plain format",
            advice=f"{move}\nand then, on the server: {drop} and rm {shlex.quote(entry)}",
        )
    unknown = (
        "" if tablespace.in_storage is False else f"; if somebody linked it by hand in {entry}, backups fail or lack it"
    )
    return warning(
        check,
        name,
        f'tablespace "{name}" exists, but shared storage cannot use it',
        meaning="CREATE TABLE in it fails (could not create directory), so that there is nothing to back up; the link "
        f"to {tablespace.location or 'its place'} goes into the backup{unknown}",
        advice=drop,
    )
