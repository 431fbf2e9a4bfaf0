"""--copy-configuration: keep configuration that no base backup holds, in DIR.configuration beside the backup."""

from __future__ import annotations

import contextlib
import os

from polarvault.backupset.saved_configuration import SavedConfiguration, saved_beside, write_configuration
from polarvault.basebackup.configuration_files import (
    LIST_GRANT,
    READ_GRANT,
    ConfigurationFiles,
    ServerFiles,
    default_places,
    find_configuration,
    follow_configuration,
)
from polarvault.basebackup.output import BackupContext
from polarvault.errors import PolarvaultError, ServerRefused
from polarvault.instance.debian import DebianCluster, configuration_root, find_clusters
from polarvault.instance.host import Host
from polarvault.pgconf.configuration import Configuration
from polarvault.server.connection import Connection, Connector
from polarvault.wire.commands import quote_identifier


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


class ConfigurationCopy:
    """The copy of one backup: read before the backup begins, written when all of it has arrived."""

    def __init__(self, context: BackupContext) -> None:
        self._context = context
        self._saved: SavedConfiguration | None = None

    @property
    def directory(self) -> str:
        """Where the copy goes."""
        assert self._context.request.directory is not None
        return saved_beside(self._context.request.directory)

    def read(self, connector: Connector, *, port: str | None, is_here: bool) -> None:
        """Read everything; raise ServerRefused when not even postgresql.conf can be had, TargetNotEmpty."""
        found = read_server_configuration(connector, port=port, is_here=is_here)
        role = quote_identifier(connector.user or "ROLE")
        if found is None or found.files.get(found.places["config_file"]) is None:
            what = "know where the configuration files are"
            if found is not None:
                what = f"read {found.places['config_file']}"
            raise ServerRefused(
                f"--copy-configuration: the role may not {what}",
                hint=f"as a superuser: GRANT pg_read_all_settings, pg_read_server_files TO {role}; "
                f"GRANT {READ_GRANT} TO {role}; GRANT {LIST_GRANT} TO {role}; or run the backup on the server's host, "
                "as a user who can read the files",
            )
        missing = tuple(found.unreadable)
        self._context.created.claim(self.directory)
        self._saved = SavedConfiguration(
            data_directory=found.data_directory,
            places=found.places,
            files={path: content for path, content in found.files.items() if content is not None},
            directories=found.directories,
            missing=missing,
        )
        if missing:
            self._context.reporter.warning(
                f"these configuration files cannot be read and are not in the copy: {', '.join(missing)}"
            )

    def write(self) -> None:
        """Write what was read."""
        if self._saved is not None:
            write_configuration(self.directory, self._saved, sync=self._context.request.sync)
            self._context.reporter.step(f'{len(self._saved.files)} configuration files are kept in "{self.directory}"')


def say_outside(context: BackupContext, connector: Connector, *, port: str | None, is_here: bool) -> None:
    """Say that the backup holds no configuration, and where it is, if anybody tells."""
    found = read_server_configuration(connector, port=port, is_here=is_here)
    where = f": {', '.join(found.outside)}" if found is not None and found.outside else ""
    context.reporter.note(
        "the server's configuration files lie outside of its data directory and are not in the backup"
        f"{where}; add --copy-configuration to keep them beside it"
    )
