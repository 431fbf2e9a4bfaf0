"""Debian's layout: configuration in /etc/postgresql/VERSION/NAME, data elsewhere, pg_ctlcluster to start and stop.

A server of such a cluster is started with the postgresql.conf in /etc and never reads one in its data directory; the
only file of settings there that it reads is postgresql.auto.conf. Which cluster a data directory belongs to is told
from `data_directory` in the file in /etc, as pg_lsclusters does (PgCommon.pm, cluster_data_directory).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from polarvault.pgconf.configuration import MAIN_FILE, ConfigReader, Configuration

CONFIGURATION_ROOT = "/etc/postgresql"
# Debian's own programs look here for another root.
ROOT_VARIABLE = "PG_CLUSTER_CONF_ROOT"
_LOG_DIRECTORY = "/var/log/postgresql"
_CONTROL_PROGRAM = "pg_ctlcluster"


@dataclass(frozen=True, slots=True)
class DebianCluster:
    """A cluster as pg_lsclusters lists it; `directory` holds its configuration."""

    version: str
    name: str
    directory: str

    def __str__(self) -> str:
        return f"{self.version}/{self.name}"

    @property
    def main_file(self) -> str:
        """The postgresql.conf that the cluster's server reads."""
        return os.path.join(self.directory, MAIN_FILE)

    @property
    def log_path(self) -> str:
        """Where the server's messages go unless its settings say otherwise."""
        link = os.path.join(self.directory, "log")
        if os.path.islink(link):
            return os.path.join(self.directory, os.readlink(link))
        return os.path.join(_LOG_DIRECTORY, f"postgresql-{self.version}-{self.name}.log")

    def command(self, action: str) -> list[str]:
        """Return the line that starts, stops or reloads the server of this cluster."""
        return [_CONTROL_PROGRAM, self.version, self.name, action]


class DirectoryReader(ConfigReader, Protocol):
    """Where the clusters are looked for; tests have one of their own."""

    def real_path(self, path: str) -> str:
        """Return the path with every link resolved."""


def configuration_root(environment: Mapping[str, str]) -> str:
    """Return the directory below which Debian's clusters have their configuration."""
    return environment.get(ROOT_VARIABLE) or CONFIGURATION_ROOT


def cluster_at(directory: str) -> DebianCluster | None:
    """Return the cluster whose configuration directory that is by its name, ROOT/VERSION/NAME; None for any other."""
    rest, name = os.path.split(os.path.normpath(directory))
    version = os.path.basename(rest)
    if not name or not version.replace(".", "").isdigit():
        return None
    return DebianCluster(version, name, os.path.join(rest, name))


def find_clusters(root: str, reader: DirectoryReader) -> Sequence[DebianCluster]:
    """Return every cluster that has a directory below the root."""
    found = []
    for version in sorted(reader.list_names(root) or []):
        for name in sorted(reader.list_names(os.path.join(root, version)) or []):
            cluster = cluster_at(os.path.join(root, version, name))
            if cluster is not None:
                found.append(cluster)
    return found


def cluster_of(data_directory: str, root: str, reader: DirectoryReader) -> DebianCluster | None:
    """Return the cluster whose configuration names a data directory; None when there is none."""
    wanted = reader.real_path(data_directory)
    for cluster in find_clusters(root, reader):
        named = Configuration(cluster.directory, reader).value("data_directory")
        if named and os.path.isabs(named) and reader.real_path(named) == wanted:
            return cluster
    return None
