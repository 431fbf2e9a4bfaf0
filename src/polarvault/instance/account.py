"""Whose rights a server on this machine has: the account that owns a restored one, or the one for servers of our own.

PostgreSQL refuses to run as root, so root hands server programs to an ordinary user.
"""

from __future__ import annotations

import functools
import os
import pwd
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from polarvault.instance.model import Account
from polarvault.storage.identity import working_as


class ProcessIdentity(TypedDict, total=False):
    """Keyword arguments of `subprocess` that say whose rights a program gets; none: the caller's."""

    user: int
    group: int
    extra_groups: list[int]


def working_as_account(account: Account) -> AbstractContextManager[None]:
    """Give the process the account's identity and groups, if root runs it; no program may be started meanwhile."""
    return working_as(account.uid, account.gid, _groups(account))


def process_identity(account: Account) -> ProcessIdentity:
    """Return what makes `subprocess` start a program as the account; only root has to change anything for that."""
    return {"user": account.uid, "group": account.gid, "extra_groups": []} if os.geteuid() == 0 else {}


@dataclass(frozen=True, slots=True)
class ServerAccount(Account):
    """The account for servers that we make ourselves, and how files and programs are handed to it."""

    @property
    def switches(self) -> bool:
        """Tell that it is another account than ours."""
        return bool(self.run_as)

    @property
    def run_as(self) -> ProcessIdentity:
        """The keyword arguments that make `subprocess` start a program as this user."""
        return process_identity(self)

    def environment(self, home: Path) -> dict[str, str]:
        """Our environment without what would point libpq elsewhere, and with a home that the user can read."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return kept | {"HOME": str(home), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    def own(self, path: Path) -> None:
        """Give a file or a whole tree to the user; symbolic links are not followed."""
        if not self.switches:
            return
        os.lchown(path, self.uid, self.gid)
        if path.is_dir() and not path.is_symlink():
            for directory, names, files in os.walk(path):
                for name in (*names, *files):
                    os.lchown(os.path.join(directory, name), self.uid, self.gid)

    def make_directory(self, path: Path, mode: int = 0o700) -> Path:
        """Create a directory that belongs to the user."""
        path.mkdir(mode=mode, parents=True)
        self.own(path)
        return path

    def can_run(self, program: Path | str, *arguments: str) -> bool:
        """Tell whether the user can reach and run a program; below root's home directory it often cannot."""
        try:
            finished = subprocess.run(
                [program, *arguments], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self.run_as
            )
        except OSError:
            return False
        return finished.returncode == 0

    def polarvault(self, *arguments: str) -> list[str]:
        """Return the words that run polarvault as this user: restored files and servers must belong to it."""
        words = [sys.executable, "-m", "polarvault", *arguments]
        if not self.switches:
            return words
        switch = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        if not _can_run_polarvault(self):
            # A virtual environment below root's home is closed to the other user; this lets it read all the same.
            switch += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        return [*switch, "--", *words]


@functools.cache
def server_account() -> ServerAccount:
    """Return the account for servers of our own: ours, or for root ``postgres`` if it exists, else ``nobody``."""
    uid = os.geteuid()
    if uid != 0:
        return ServerAccount(_name_of(uid), uid, os.getegid())
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return ServerAccount(name, entry.pw_uid, entry.pw_gid)
    # 65534 is the number that the kernel itself reserves for "nobody".
    return ServerAccount("nobody", 65534, 65534)


@functools.cache
def _can_run_polarvault(account: ServerAccount) -> bool:
    return account.can_run(sys.executable, "-c", "import polarvault.cli")


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _groups(account: Account) -> list[int]:
    try:
        return os.getgrouplist(account.name, account.gid)
    except (KeyError, OSError):
        return [account.gid]
