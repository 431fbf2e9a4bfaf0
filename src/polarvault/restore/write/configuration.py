"""Write configuration that goes back into /etc, and take back exactly what was made."""

from __future__ import annotations

import os

from polarvault.instance.account import working_as_account
from polarvault.instance.model import Account
from polarvault.restore.plan.configuration import PutBack
from polarvault.storage.below import Below
from polarvault.storage.files import fsync_parent, make_directories, storage_failed

# As pg_createcluster makes them: everybody may read the settings, and only the server who may log in.
_MODE = 0o644
_SECRET_MODE = 0o640
_SECRET_NAMES = ("pg_hba.conf", "pg_ident.conf")
_DIRECTORY_MODE = 0o755


class PutConfiguration:
    """The files that one restore puts into a directory outside of its targets."""

    def __init__(self, put: PutBack, account: Account, *, sync: bool) -> None:
        self._put = put
        self._account = account
        self._sync = sync
        self._made: list[str] = []
        self._made_root = False

    def write(self) -> None:
        """Make what is missing; files that are there have the wanted content already. Raises StorageFailed."""
        root = self._put.root
        version_directory = os.path.dirname(root)
        try:
            if os.geteuid() == 0 and not os.path.isdir(version_directory):
                # Only root may make this one; it belongs to the server's user, as pg_createcluster leaves it.
                make_directories(version_directory, _DIRECTORY_MODE, sync=self._sync)
                os.chown(version_directory, self._account.uid, self._account.gid)
            with working_as_account(self._account):
                if not os.path.isdir(root):
                    os.mkdir(root, _DIRECTORY_MODE)
                    self._made_root = True
                    if self._sync:
                        fsync_parent(root)
                self._write_below(root)
        except OSError as problem:
            raise storage_failed(problem, "put the configuration into", root) from problem

    def _write_below(self, root: str) -> None:
        with Below(root) as below:
            for directory in self._put.directories:
                below.make_directories(os.path.relpath(directory, root), _DIRECTORY_MODE, sync=self._sync)
            for path, content in self._put.files.items():
                name = os.path.relpath(path, root)
                if below.exists(name):
                    continue
                below.make_parents(name, _DIRECTORY_MODE, sync=self._sync)
                secret = os.path.basename(name) in _SECRET_NAMES
                below.write(name, content, _SECRET_MODE if secret else _MODE, sync=self._sync)
                self._made.append(name)
                if self._sync:
                    below.sync_parent(name)

    def undo(self) -> None:
        """Remove the files that were made; safe to call twice, and where nothing was."""
        made, self._made = self._made, []
        if not made and not self._made_root:
            return
        try:
            with Below(self._put.root) as below:
                for name in made:
                    below.unlink(name, missing_ok=True)
            if self._made_root:
                # Empty directories of include_dir stay: nobody takes them for a cluster.
                os.rmdir(self._put.root)
        except OSError:
            pass  # What made the restore fail is the one to report.
