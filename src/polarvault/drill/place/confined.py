"""The place of a copy that stays: a directory of ours, and in it `run`, which belongs to the account of its server.

PLACE/run/data, PLACE/run/pg_hba.conf, PLACE/run/socket, and tablespaces where restore lays them out. What root
believes lies beside `run`, where the account cannot write.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Generic, TypeVar

from polarvault.drill.place.isolation import fits_socket
from polarvault.errors import UsageError
from polarvault.instance.model import Account
from polarvault.snapshots.collection import Named, Thing
from polarvault.storage.files import storage_failed

Record = TypeVar("Record", bound=Named)


@dataclass(frozen=True, slots=True)
class ConfinedThing(Thing[Record], Generic[Record]):
    """One place, and what is where in it."""

    @property
    def run(self) -> str:
        """What belongs to the account."""
        return os.path.join(self.directory, "run")

    @property
    def data(self) -> str:
        """The data directory."""
        return os.path.join(self.run, "data")

    @property
    def hba_file(self) -> str:
        """The drill's own kind of pg_hba.conf, or the source's with a line in front."""
        return os.path.join(self.run, "pg_hba.conf")

    @property
    def ident_file(self) -> str:
        """An empty pg_ident.conf."""
        return os.path.join(self.run, "pg_ident.conf")

    @property
    def socket_directory(self) -> str:
        """Where its socket is; elsewhere if the path would be too long for the kernel."""
        inside = os.path.join(self.run, "socket")
        if fits_socket(inside):
            return inside
        outside = os.path.join(tempfile.gettempdir(), os.path.basename(self.directory))
        if not fits_socket(outside):
            raise UsageError(
                f'neither "{self.directory}" nor "{tempfile.gettempdir()}" is short enough for the path of a socket',
                hint="name a directory with a shorter path: --at DIR",
            )
        return outside

    def make(self, account: Account, source: str) -> None:
        """Make the directory, unfinished, with `run` for the account."""
        self.make_directory((source,))
        try:
            os.mkdir(self.run, 0o700)
            if os.geteuid() == 0:
                os.chown(self.run, account.uid, account.gid)
        except OSError as problem:
            raise storage_failed(problem, "create directory", self.run) from problem

    def finish(self, source: str) -> None:
        """Say that it is whole; on return that is durable."""
        self.complete((source,))
