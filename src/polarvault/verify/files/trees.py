"""List what is on disk in a plain backup: links inside of it are followed, those that lead out of it are findings.

pg_verifybackup follows every link. A backup with a link out of it is not all there, and a stranger's link may lead
anywhere; so such a directory is a problem, and such a file is one too, unless the manifest tells what it must hold.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from polarvault.model.finding import Finding, Severity
from polarvault.storage.below import Below

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


@dataclass(slots=True)
class Listing:
    """What is below a directory, by path there.

    sizes: of the files. names: what to open instead of the path, where a link inside of the backup leads to another
    name. outside: files that are links out of the backup, and where they lead. refused: what cannot be looked at and
    was reported as that, with all below it.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)


def is_layout_link(name: str) -> bool:
    """Tell whether a data directory has a link of this name on purpose: pg_wal, and tablespaces."""
    if name == "pg_wal":
        return True
    top, _, oid = name.partition("/")
    return top == "pg_tblspc" and oid.isascii() and oid.isdigit()


def list_tree(
    tree: Below, ignored: IgnoreRules, name: Callable[[str], str], report: Callable[[Finding], None]
) -> Listing:
    """List every file below the root of a tree; report what cannot be read, is no file, or leads out of it.

    A link to something inside is followed, as pg_verifybackup does.
    """
    return _Lister(tree, ignored, name, report).run()


class _Lister:
    def __init__(
        self, tree: Below, ignored: IgnoreRules, name: Callable[[str], str], report: Callable[[Finding], None]
    ) -> None:
        self._tree = tree
        self._ignored = ignored
        self._name = name
        self._report = report
        self._real_root = os.path.realpath(tree.root)
        self._found = Listing()
        # Path, the name to open, and the directories above it.
        self._pending: list[tuple[str, str, tuple[_Identity, ...]]] = []

    def run(self) -> Listing:
        self._pending.append(("", "", (_identity(self._tree.status("")),)))
        while self._pending:
            path, opened, above = self._pending.pop()
            try:
                self._list_directory(path, opened, above)
            except OSError as problem:
                self._refuse(path, unreadable("open directory", self._name(path) or self._tree.root, problem))
        return self._found

    def _list_directory(self, path: str, opened: str, above: tuple[_Identity, ...]) -> None:
        prefix, opened_prefix = (path + "/" if path else ""), (opened + "/" if opened else "")
        descriptor = self._tree.open_directory(opened)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    below = prefix + entry.name
                    if not self._ignored.covers(below):
                        self._look_at(entry, below, opened_prefix + entry.name, above)
        finally:
            os.close(descriptor)

    def _look_at(self, entry: os.DirEntry[str], path: str, opened: str, above: tuple[_Identity, ...]) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                if is_layout_link(opened):
                    status = self._tree.status(opened)
                else:
                    # Only looked at; what is opened later is a name without links, below the root.
                    status = os.stat(self._tree.path(opened))
                    inside = self._inside(opened)
                    if inside is None:
                        self._leads_out(path, opened, status)
                        return
                    opened = inside
        except OSError as problem:
            self._refuse(path, unreadable("stat file or directory", self._name(path), problem))
            return
        if stat.S_ISDIR(status.st_mode):
            if _identity(status) in above:
                self._refuse(path, _loop(self._name(path)))
            else:
                self._pending.append((path, opened, (*above, _identity(status))))
        elif stat.S_ISREG(status.st_mode):
            self._found.sizes[path] = status.st_size
            if opened != path:
                self._found.names[path] = opened
        else:
            self._refuse(path, _special(self._name(path)))

    def _inside(self, opened: str) -> str | None:
        """Return the name, free of links, of what a link leads to; None when that lies outside of the backup."""
        target = os.path.realpath(self._tree.path(opened))
        if target == self._real_root:
            return ""
        return target[len(self._real_root) + 1 :] if target.startswith(self._real_root + os.sep) else None

    def _leads_out(self, path: str, opened: str, status: os.stat_result) -> None:
        target = os.path.realpath(self._tree.path(opened))
        if stat.S_ISREG(status.st_mode):
            self._found.sizes[path] = status.st_size
            self._found.outside[path] = target
        elif stat.S_ISDIR(status.st_mode):
            self._refuse(path, directory_outside(self._name(path), target))
        else:
            self._refuse(path, _special(self._name(path)))

    def _refuse(self, path: str, finding: Finding) -> None:
        self._found.refused.add(path)
        self._report(finding)


def directory_outside(subject: str, target: str) -> Finding:
    """Return the finding for a directory that is a link out of the backup."""
    return Finding(
        severity=Severity.PROBLEM,
        check="link-outside",
        subject=subject,
        message=f'"{subject}" is a link to a directory outside of the backup: "{target}"',
        meaning="what is there is no part of the backup, and may be a live server's; a restore would lack it",
        advice=f"put a copy of the directory in the place of the link: cp -a {shlex.quote(target)} COPY",
    )


def file_outside(subject: str, target: str, *, is_listed: bool) -> Finding:
    """Return the finding for a file that is a link out of the backup; is_listed: the manifest has it."""
    return Finding(
        severity=Severity.WARNING if is_listed else Severity.PROBLEM,
        check="link-outside",
        subject=subject,
        message=f'"{subject}" is a link to a file outside of the backup: "{target}"',
        meaning="polarvault restore refuses it: whoever makes such links would decide what is restored",
        advice=f"put a copy of the file in the place of the link: cp --remove-destination {shlex.quote(target)} LINK",
    )


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _loop(subject: str) -> Finding:
    return Finding(
        severity=Severity.PROBLEM,
        check="not-a-file",
        subject=subject,
        message=f'"{subject}" is a link to a directory that it lies in',
        meaning="what follows links never comes to an end there; no base backup has such a link",
        advice="move it out of the backup if nobody else uses it, or leave it out: -i PATH",
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
        advice="move it out of the backup if nobody else uses it, or leave it out: -i PATH",
    )
