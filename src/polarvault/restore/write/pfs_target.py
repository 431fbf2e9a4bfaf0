"""The directory in PFS that a restore fills: claimed, and taken back when the restore fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from polarvault.errors import PolarvaultError, TargetNotEmpty
from polarvault.instance.host import Host
from polarvault.restore.model import RestorePlan
from polarvault.storage.files import storage_failed
from polarvault.storage.trees.pfs.tree import PfsWritableTree
from polarvault.storage.trees.small_files import remove_contents


class PfsTarget:
    """A claimed directory; `undo` removes what was made since, and nothing that was there before."""

    def __init__(self, tree: PfsWritableTree) -> None:
        self.tree = tree
        self._made: int | None = None

    def claim(self) -> None:
        """Make the directory, or take an empty one; raise TargetNotEmpty for any other."""
        tree = self.tree
        try:
            made = tree.make_root()
            # Between the plan and now somebody may have put something there.
            if tree.list(""):
                raise TargetNotEmpty(f'directory "{tree.address}" exists but is not empty', hint="it was not touched")
        except OSError as problem:
            raise storage_failed(problem, "create directory", tree.address) from problem
        self._made = made

    def undo(self) -> str | None:
        """Remove what was made; return why something of it is left, None if nothing is. Safe to call twice."""
        if self._made is None:
            return None
        made, self._made = self._made, None
        try:
            remove_contents(self.tree)
            self.tree.remove_root(made)
        except OSError as problem:
            return problem.strerror or os.strerror(problem.errno or 0)
        return None


@contextmanager
def opened_pfs(plan: RestorePlan, host: Host) -> Iterator[PfsTarget | None]:
    """Have the disk mounted for writing while files are laid out; None where the shared half is a directory here."""
    mount = plan.layout.pfs
    if mount is None or plan.layout.shared is None:
        yield None
        return
    try:
        tree = host.open_writable_pfs(mount)
    except OSError as problem:
        raise storage_failed(problem, "mount", str(mount.address)) from problem
    try:
        yield PfsTarget(tree)
    finally:
        tree.close()


def say_left(problem: BaseException, target: PfsTarget, why: str) -> None:
    """Add to a failure that its remains could not be removed: nothing starts from them, but they take room."""
    if isinstance(problem, PolarvaultError):
        left = f'what was restored so far is left in "{target.tree.address}" ({why}); no server starts from it'
        problem.detail = f"{problem.detail}\n{left}" if problem.detail else left
