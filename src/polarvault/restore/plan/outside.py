"""The configuration that a backup brings, and what of it lies elsewhere: what this machine has to be asked.

What lies in the restored directories is told from the backup; everything else is asked once, by name, before the
settings are decided.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from polarvault.backupset.model import Area
from polarvault.instance.debian import DebianCluster
from polarvault.instance.host import Host
from polarvault.instance.model import Account
from polarvault.pgconf.configuration import ConfigReader, Configuration, MemoryReader
from polarvault.pgconf.hba import references
from polarvault.restore.facts import BackupFacts, HostFacts, Outside
from polarvault.restore.model import Layout
from polarvault.restore.plan.configuration import PutBack
from polarvault.restore.plan.places import is_within

HBA_FILE = "pg_hba.conf"
# Files of encryption, and what the server takes where nothing is set.
SSL_FILES = (
    ("ssl_cert_file", "server.crt"),
    ("ssl_key_file", "server.key"),
    ("ssl_ca_file", ""),
    ("ssl_crl_file", ""),
    ("ssl_crl_dir", ""),
    ("ssl_dh_params_file", ""),
)
# The default of Debian's programs.
DEBIANS_SOCKETS = "/var/run/postgresql"


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """The configuration in the restored directories: contents by path, and every path that will be there.

    cluster_file: PolarDB's polar_settings.conf of the shared half, if it is known. put_root: where kept configuration
    is put back.
    """

    layout: Layout
    files: Mapping[str, bytes]
    known: frozenset[str]
    cluster_file: str | None
    put_root: str | None

    def hold(self, path: str) -> bool:
        """Tell whether a path lies in what is restored, so that this machine is not asked for it."""
        is_put = self.put_root is not None and is_within(path, self.put_root)
        return is_within(path, self.layout.local) or path == self.cluster_file or is_put


def own_files(backup: BackupFacts, layout: Layout, put_back: PutBack | None) -> OwnFiles:
    """Return what the backup and kept configuration bring."""
    inventory = backup.inventory
    files = {
        os.path.join(layout.local, name): content
        for (area, name), content in inventory.files.items()
        if area is Area.LOCAL
    }
    cluster_file = None
    cluster_settings = inventory.file("global/polar_settings.conf", Area.SHARED)
    if cluster_settings is not None:
        cluster_file = os.path.join(layout.data, "global/polar_settings.conf")
        files[cluster_file] = cluster_settings
    known = {os.path.join(layout.local, name) for area, name in inventory.names if area is Area.LOCAL}
    if put_back is not None:
        files |= put_back.files
        known |= {*put_back.files, *put_back.directories}
    return OwnFiles(layout, files, frozenset(known), cluster_file, put_back.root if put_back is not None else None)


class ConfigurationView:
    """The configuration as the restored server would find it, and which paths that it names exist. Asks nobody."""

    def __init__(self, backup: BackupFacts, host: HostFacts) -> None:
        own, outside = own_files(backup, host.layout, host.put_back), host.outside
        self._present = own.known | outside.present
        # What stands in the restored directories is known from the backup alone.
        others = {path: content for path, content in outside.files.items() if not own.hold(path)}
        reader = MemoryReader({**others, **own.files}, directories=own.known | outside.directories)
        self.configuration = _configuration(own, reader, host.cluster)

    def exists(self, path: str) -> bool:
        """Tell whether a path exists, or will."""
        return path in self._present


def look_outside(
    backup: BackupFacts,
    layout: Layout,
    put_back: PutBack | None,
    cluster: DebianCluster | None,
    host: Host,
    account: Account,
    *,
    is_confined: bool,
) -> tuple[Outside, Configuration]:
    """Ask the host for what the configuration names outside; return that, and the configuration as it is.

    is_confined: no file outside is read for settings.
    """
    own = own_files(backup, layout, put_back)
    remembering = _Remembering(host)
    fallback = None if is_confined else remembering
    reader = MemoryReader(dict(own.files), fallback=fallback, is_ours=own.hold, directories=own.known)
    configuration = _configuration(own, reader, cluster)
    paths = {*_ssl_paths(configuration, layout), *_hba_paths(own), DEBIANS_SOCKETS}
    sockets = {*socket_paths(configuration, layout), DEBIANS_SOCKETS}
    return Outside(
        files=remembering.files,
        directories=frozenset(remembering.directories),
        present=frozenset(path for path in paths if not own.hold(path) and host.exists(path)),
        sockets=frozenset(path for path in sockets if host.is_writable_directory(path, account)),
    ), configuration


def absolute(layout: Layout, value: str, *, base: str = "") -> str:
    """Return the path that a setting means, however it is spelled: `../x` leaves the directory as `/x` does."""
    # A Kerberos key can be named with its kind in front.
    return posixpath.normpath(posixpath.join(layout.local, base, value.removeprefix("FILE:")))


def socket_directories(configuration: Configuration) -> list[str] | None:
    """Return the directories of sockets that are set; None where nothing is."""
    value = configuration.value("unix_socket_directories")
    return None if value is None else [part.strip().strip('"') for part in value.split(",") if part.strip()]


def socket_paths(configuration: Configuration, layout: Layout) -> Iterator[str]:
    """Yield the paths of the directories of sockets; an abstract one has none."""
    for part in socket_directories(configuration) or []:
        if not part.startswith("@"):
            yield absolute(layout, part)


def _configuration(own: OwnFiles, reader: ConfigReader, cluster: DebianCluster | None) -> Configuration:
    main_file = cluster.main_file if cluster is not None else None
    return Configuration(own.layout.local, reader, cluster_file=own.cluster_file, main_file=main_file)


def _ssl_paths(configuration: Configuration, layout: Layout) -> Iterator[str]:
    for name, default in SSL_FILES:
        if value := configuration.value(name) or default:
            yield absolute(layout, value)


def _hba_paths(own: OwnFiles) -> Iterator[str]:
    path = os.path.join(own.layout.local, HBA_FILE)
    for reference in references(own.files.get(path, b"")):
        yield reference.path_from(path)


class _Remembering:
    """Asks a host for files, and remembers what was there."""

    def __init__(self, host: ConfigReader) -> None:
        self._host = host
        self.files: dict[str, bytes] = {}
        self.directories: set[str] = set()

    def read(self, path: str) -> bytes | None:
        content = self._host.read(path)
        if content is not None:
            self.files[path] = content
        return content

    def list_names(self, directory: str) -> list[str] | None:
        names = self._host.list_names(directory)
        if names is not None:
            self.directories.add(directory)
        return names
