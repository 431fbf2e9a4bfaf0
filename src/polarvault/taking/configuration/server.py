"""Find the configuration of a running server, by SQL or on this host."""

from __future__ import annotations

import contextlib
import os

from polarvault.errors import PolarvaultError
from polarvault.instance.debian import DebianCluster, configuration_root, find_clusters
from polarvault.instance.host import Host
from polarvault.pgconf.configuration import Configuration
from polarvault.server.connection import Connection, Connector
from polarvault.taking.configuration.files import (
    ConfigurationFiles,
    ServerFiles,
    default_places,
    find_configuration,
    follow_configuration,
)


def read_server_configuration(connector: Connector, *, port: str | None, is_here: bool) -> ConfigurationFiles | None:
    """Return the server's configuration as far as SQL or this host tells; None when neither says where it is.

    port: of the server; where the role may not know its files, Debian's cluster with that port tells.
    """
    sql: Connection | None = None
    # A role that may only stream: what this host tells is left.
    with contextlib.suppress(PolarvaultError):
        sql = connector.without_prompt().sql()
    try:
        files = ServerFiles(sql, is_here)
        found = find_configuration(sql, files) if sql is not None else None
        cluster = debian_cluster_on(port) if found is None and is_here else None
        if cluster is None:
            return found
        host = Host()
        value = Configuration(cluster.directory, host).value
        places = default_places(cluster.directory)
        places |= {name: path for name in places if (path := value(name)) is not None and os.path.isabs(path)}
        return follow_configuration(value("data_directory") or cluster.directory, places, files)
    finally:
        if sql is not None:
            sql.close()


def debian_cluster_on(port: str | None) -> DebianCluster | None:
    """Return the only cluster of Debian's tools on this host that is configured for a port."""
    host = Host()
    clusters = find_clusters(configuration_root(os.environ), host)
    found = [cluster for cluster in clusters if _port_of(cluster, host) == port]
    return found[0] if len(found) == 1 else None


def _port_of(cluster: DebianCluster, host: Host) -> str:
    data_directory = Configuration(cluster.directory, host).value("data_directory") or cluster.directory
    return Configuration(data_directory, host, main_file=cluster.main_file).value("port") or "5432"
