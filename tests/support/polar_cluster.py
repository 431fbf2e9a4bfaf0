"""One PolarDB primary on shared storage in "localfs" mode: a local data directory and a shared one on this machine.

POLARDB_BIN names the bin directory of a PolarDB 15. Usable by hand: ``cd tests && python -m support.polar_cluster``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Self

from polarvault.demo.reachable import reachable
from polarvault.demo.server import SUPERUSER
from polarvault.demo.shared_storage import create_on_shared_storage
from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from support.cluster import PASSWORD, QUICK, Cluster
from support.servers import POLARDB_VARIABLE, found_polardb, session_directory

MISSING = f"no PolarDB: set {POLARDB_VARIABLE} to the bin directory of a PolarDB for PostgreSQL 15"


class PolarCluster(Cluster):
    """A primary; `data` is the local half and `shared` the shared one."""

    shared: Path

    @classmethod
    def made_polar(
        cls,
        installation: Binaries,
        directory: Path,
        *,
        wal_segment_mb: int = 16,
        protocol: str = "file-dio://",
        settings: dict[str, str] | None = None,
        start: bool = True,
        fill: bool = True,
    ) -> Self:
        """Create a primary; protocol precedes the path in polar_datadir and may be empty."""
        cluster = cls(installation, directory)
        cluster.shared = directory / "shared"
        create_on_shared_storage(
            cluster,
            cluster.shared,
            options=[f"--wal-segsize={wal_segment_mb}"],
            settings=QUICK | {"shared_buffers": "128MB"} | (settings or {}),
            protocol=protocol,
        )
        cluster.set_hba()
        if start:
            cluster.start()
            cluster.query(f"ALTER USER {SUPERUSER} PASSWORD '{PASSWORD}'")
            if fill:
                cluster.fill()
        return cluster

    def add_replica(self, slot: str) -> PolarCluster:
        """Make and start a read-only node on the same shared storage, with a slot of its own on the primary."""
        replica = type(self)(self.installation, self.directory.parent / f"{self.directory.name}_{slot}")
        replica.shared = self.shared
        self.account.make_directory(replica.directory)
        self.account.make_directory(replica.data)
        # The program makes the skeleton of the local half and wants both paths with a slash at the end.
        replica.run("polar-initdb.sh", f"{replica.data}/", f"{self.shared}/", "replica", "localfs")
        for path in self.data.glob("*.conf"):
            shutil.copy(path, replica.data)
        replica.configure(
            {
                "port": str(replica.port),
                "unix_socket_directories": str(replica.directory),
                "primary_conninfo": f"{self.conninfo()} application_name={slot}",
                "primary_slot_name": slot,
            }
        )
        (replica.data / "replica.signal").touch()
        replica.account.own(replica.data)
        replica.data.chmod(0o700)
        self.query("SELECT pg_create_physical_replication_slot(%s)", [slot])
        replica.start()
        return replica


def main() -> None:
    """Start one and wait for Enter."""
    found = found_polardb()
    if found is None:
        sys.exit(MISSING)
    with session_directory() as directory:
        installation = reachable(found, server_account(), directory)
        segment_mb = int(sys.argv[1]) if len(sys.argv) > 1 else 16
        with PolarCluster.made_polar(installation, directory / "c", wal_segment_mb=segment_mb) as cluster:
            print(
                f"{cluster}; psql '{cluster.conninfo()}'\nshared half: {cluster.shared}\npress Enter to remove it",
                flush=True,
            )
            sys.stdin.readline()


if __name__ == "__main__":
    main()
