"""Where PolarDB's shared half lies, how it is read, and what follows for the tools that read it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from polarvault.check.polardb.monitor import quote_literal
from polarvault.check.session import CheckSession
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.model.units import format_bytes
from polarvault.polardb.settings import (
    BUFFERED_PROTOCOL,
    DATADIR,
    DIRECT_PROTOCOL,
    LOCALFS_MODE,
    is_true,
    split_protocol,
)

# A tar header has room for names of this many bytes; PolarDB's server gives up on longer ones.
_TAR_NAME_BYTES = 99
# With the WAL in the backup ("fetch") the server sends, for each segment, a member that is named by its whole path on
# the server: <polar_datadir>/pg_wal/archive_status/<24 digits>.done (facts 1.6).
_MARK_BYTES = len("/pg_wal/archive_status/") + 24 + len(".done")
_FULLPAGE_BYTES = 768 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageFacts:
    """datadir: polar_datadir, empty where it is not told. fullpage_bytes: size of polar_fullpage, None for unknown.

    target_inside: --target, if it lies within the storage on this machine. leftover_label: whether
    polar_non_exclusive_backup_label is there.
    """

    datadir: str
    localfs: bool | None
    fullpage_snapshot: bool | None = None
    fullpage_bytes: int | None = None
    leftover_label: bool | None = None
    target_inside: str | None = None

    @property
    def on_pfs(self) -> bool:
        """Tell whether the path is one of the PolarDB FileSystem, which ordinary programs cannot open."""
        return self.localfs is False or split_protocol(self.datadir)[0] not in (
            None,
            DIRECT_PROTOCOL,
            BUFFERED_PROTOCOL,
        )


def check_storage(session: CheckSession) -> list[Finding]:
    """Return the findings about shared storage."""
    return judge_storage(read_storage(session))


def read_storage(session: CheckSession) -> StorageFacts:
    """Ask for the storage. What only superusers may see, the directories themselves, is left unknown for others."""
    datadir = session.setting(DATADIR) or ""
    localfs = session.setting(LOCALFS_MODE)
    snapshot = session.setting("polar_enable_fullpage_snapshot")
    facts = StorageFacts(
        datadir=datadir,
        localfs=None if localfs is None else is_true(localfs),
        fullpage_snapshot=None if snapshot is None else is_true(snapshot),
    )
    if facts.on_pfs or not datadir:
        return facts
    path = split_protocol(datadir)[1]
    fullpage = session.value(
        "SELECT coalesce(sum((pg_catalog.pg_stat_file(d.path || '/' || f.name, true)).size), 0)"
        f" FROM (SELECT {quote_literal(path)} || '/polar_fullpage' AS path) AS d,"
        " LATERAL pg_catalog.pg_ls_dir(d.path, true, false) AS f (name)"
    )
    label = session.value(
        "SELECT (pg_catalog.pg_stat_file("
        f"{quote_literal(path + '/polar_non_exclusive_backup_label')}, true)).size IS NOT NULL"
    )
    return StorageFacts(
        datadir=datadir,
        localfs=facts.localfs,
        fullpage_snapshot=facts.fullpage_snapshot,
        fullpage_bytes=None if fullpage is None else int(fullpage),
        leftover_label=None if label is None else label == "t",
        target_inside=_inside(session.target, path),
    )


def _inside(target: str | None, storage: str) -> str | None:
    """Return the target if it lies within the storage and that is on this machine."""
    if target is None or not os.path.isabs(storage) or not os.path.isdir(os.path.join(storage, "global")):
        return None
    within = os.path.realpath(storage)
    return target if os.path.commonpath([within, os.path.realpath(target)]) == within else None


def judge_storage(facts: StorageFacts) -> list[Finding]:
    """Return the findings about shared storage."""
    findings = [_place(facts)]
    if facts.target_inside:
        findings.append(
            problem(
                "polardb-target",
                facts.target_inside,
                f'the target "{facts.target_inside}" lies within the shared storage of the server',
                meaning="the backup would copy itself, fill the storage of the live server and be lost with it",
                advice="choose another file system: polarvault check --target DIRECTORY",
            )
        )
    findings.append(_fetch(facts.datadir))
    if facts.fullpage_snapshot or facts.fullpage_bytes:
        findings.append(_fullpage(facts))
    if facts.leftover_label:
        findings.append(
            ok(
                "polardb-backup-label",
                "polar_non_exclusive_backup_label",
                "polar_non_exclusive_backup_label of an earlier backup is in the shared storage: harmless, never read",
            )
        )
    return findings


def _place(facts: StorageFacts) -> Finding:
    protocol, path = split_protocol(facts.datadir)
    check, subject = "polardb-storage", facts.datadir or DATADIR
    if not facts.datadir:
        return warning(
            check,
            DATADIR,
            "polar_datadir is empty or not told to this role",
            meaning="where the shared half lies cannot be checked",
            advice="as a superuser: SHOW polar_datadir;",
        )
    if facts.on_pfs:
        return ok(
            check,
            subject,
            f"shared half at {path} in PFS (PolarDB FileSystem); on the server's host --source pfs reads it there, and "
            "a restore goes to an ordinary directory or into PFS (--polardata pfsd:///DISK/DIR)",
        )
    where = f"{path} (relative to the data directory)" if not os.path.isabs(path) else path
    if protocol == DIRECT_PROTOCOL:
        return ok(
            check,
            subject,
            f"shared half at {where}, file-dio: read with O_DIRECT, measured at 170-280 MB/s (file:// 2-5 times that)",
        )
    how = "file:" if protocol == BUFFERED_PROTOCOL else "a path without protocol:"
    return ok(check, subject, f"shared half at {where}, {how} read through the page cache")


def fetch_member_bytes(datadir: str) -> int:
    """Return the length of the longest name that BASE_BACKUP with WAL gives to a member."""
    return len(os.fsencode(datadir)) + _MARK_BYTES


def _fetch(datadir: str) -> Finding:
    """Say what other tools meet. Never a warning: polarvault asks for no WAL in the backup, but streams it."""
    check, subject = "polardb-fetch", "-X fetch of other tools"
    excess = fetch_member_bytes(datadir) - _TAR_NAME_BYTES
    if datadir and excess > 0:
        return ok(
            check,
            subject,
            f"polarvault streams WAL; -X fetch of any other tool fails here: polar_datadir is {excess} bytes too long "
            f'("file name too long for tar format"; {len(os.fsencode(datadir))} bytes, '
            f"{_TAR_NAME_BYTES - _MARK_BYTES} at most)",
        )
    return ok(
        check,
        subject,
        "polarvault streams WAL, with -X fetch too; other tools' -X fetch loses the end-of-backup record on an idle "
        "server",
    )


def _fullpage(facts: StorageFacts) -> Finding:
    check, subject = "polardb-fullpage", "polar_fullpage"
    size = facts.fullpage_bytes
    # The server lays the files out a few seconds after its start.
    if size is None or (facts.fullpage_snapshot and size < _FULLPAGE_BYTES):
        said = f"polar_enable_fullpage_snapshot is on: about {format_bytes(_FULLPAGE_BYTES)} in polar_fullpage"
    else:
        said = f"{format_bytes(size)} in polar_fullpage"
    return ok(check, subject, f"{said} are sent by the server and left out of the backup")
