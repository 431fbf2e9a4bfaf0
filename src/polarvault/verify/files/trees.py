"""List what is on disk in a plain backup, as pg_verifybackup does: links are followed, ignored paths are left out."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable

from polarvault.model.finding import Finding, Severity

# What changes in, or is added to, a good backup: the manual of pg_verifybackup names them. WAL is checked by itself.
ALWAYS_IGNORED = ("backup_manifest", "pg_wal", "postgresql.auto.conf", "recovery.signal", "standby.signal")


class IgnoreRules:
    """Paths that are left out, with everything below them; relative to a half."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = frozenset(os.path.normpath(path) for path in (*ALWAYS_IGNORED, *paths))
        # Nearly every path of a backup is deeper than nearly every rule: one look at the first part settles it.
        self._tops = frozenset(path.partition("/")[0] for path in self._paths)

    def covers(self, path: str) -> bool:
        """Tell whether a path is left out."""
        if path.partition("/")[0] not in self._tops:
            return False
        while path:
            if path in self._paths:
                return True
            path = path.rpartition("/")[0]
        return False


# Device and inode: the same directory by whatever name.
_Identity = tuple[int, int]


def list_tree(
    root: str, ignored: IgnoreRules, name: Callable[[str], str], report: Callable[[Finding], None]
) -> dict[str, int]:
    """Return the size of every file below root by its path there; report what cannot be read or is no file."""
    found: dict[str, int] = {}
    pending: list[tuple[str, tuple[_Identity, ...]]] = [("", (_identity(os.stat(root)),))]
    while pending:
        prefix, above = pending.pop()
        try:
            entries = list(os.scandir(os.path.join(root, prefix)))
        except OSError as problem:
            report(unreadable("open directory", name(prefix.rstrip("/")) or root, problem))
            continue
        for entry in entries:
            path = prefix + entry.name
            if ignored.covers(path):
                continue
            try:
                status = entry.stat()
            except OSError as problem:
                report(unreadable("stat file or directory", name(path), problem))
                continue
            if stat.S_ISDIR(status.st_mode):
                if _identity(status) in above:
                    report(_loop(name(path)))
                else:
                    pending.append((path + "/", (*above, _identity(status))))
            elif stat.S_ISREG(status.st_mode):
                found[path] = status.st_size
            else:
                report(_special(name(path)))
    return found


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _loop(subject: str) -> Finding:
    return Finding(
        severity=Severity.PROBLEM,
        check="not-a-file",
        subject=subject,
        message=f'"{subject}" is a link to a directory that it lies in',
        meaning="what follows links never comes to an end there; no base backup has such a link",
        advice="remove it, or leave it out: -i PATH",
    )


def unreadable(action: str, subject: str, problem: OSError) -> Finding:
    """Return the finding for something that the system does not let us read."""
    return Finding(
        severity=Severity.PROBLEM,
        check="unreadable",
        subject=subject,
        message=f'could not {action} "{subject}": {problem.strerror or problem}',
        meaning="what is in it was not verified",
        advice="run this as the user who owns the backup; for an input/output error look into the kernel log: dmesg",
    )


def _special(subject: str) -> Finding:
    return Finding(
        severity=Severity.PROBLEM,
        check="not-a-file",
        subject=subject,
        message=f'"{subject}" is not a file or directory',
        meaning="a base backup holds neither sockets nor devices: somebody has put it there",
        advice="remove it, or leave it out: -i PATH",
    )
