"""WAL of a repository that is opened for one command: the source, and the words that open it again."""

from __future__ import annotations

import os

from polarvault.config.choice import choose_repository
from polarvault.model.dataclass import replace
from polarvault.repository.catalogue.opening import open_repository
from polarvault.repository.wal.source import RepositoryWalSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from polarvault.config.model import Configuration, KeySource, RepositoryConfiguration
    from polarvault.repository.catalogue.opening import OpenedRepository


def wal_source(
    opened: OpenedRepository,
    chosen: RepositoryConfiguration,
    cluster: str,
    *,
    system_identifier: int | None,
    config: str | None,
    others: Sequence[RepositoryConfiguration] = (),
) -> RepositoryWalSource:
    """Return the WAL of a cluster as a source whose fetch_options open the very same repository.

    config: the file in which the repository has its name; what is only there (endpoint, id) has to be found again.
    others: of the same file, those that a fetch asks where this one has not what is wanted.
    """
    return RepositoryWalSource(
        opened.repository.wal_of(cluster, system_identifier),
        place=f"the WAL of {cluster} in {chosen.address}",
        fetch_options=fetch_options(chosen, cluster, config=config, others=others),
    )


def fetch_options(
    chosen: RepositoryConfiguration, cluster: str, *, config: str | None, others: Sequence[RepositoryConfiguration] = ()
) -> list[str]:
    """Return options of `polarvault wal fetch`; paths are absolute: a server works in a directory of its own."""
    words = ["--repo", chosen.address]
    if chosen.name and config is not None:
        words = ["--config", os.path.abspath(config), "--repo", chosen.name]
        words += [word for one in others for word in ("--repo", one.name)]
    words += ["--cluster", cluster]
    if others and any(one.key != chosen.key for one in others):
        # Options of a key would be meant for all of them; the file says it for each.
        return words
    key = chosen.key
    for option, path in (("--key-file", key.key_file), ("--passphrase-file", key.passphrase_file)):
        if path is not None:
            words += [option, os.path.abspath(path)]
    if key.passphrase_command is not None:
        words += ["--passphrase-command", key.passphrase_command]
    return words


def open_wal(
    configuration: Configuration,
    word: str,
    cluster: str,
    key: KeySource | None,
    environment: Mapping[str, str],
    *,
    system_identifier: int | None,
) -> RepositoryWalSource:
    """Open the repository that a word names, for a command that ends with its process."""
    chosen = choose_repository(configuration, word)
    if key is not None:
        chosen = replace(chosen, key=key)
    opened = open_repository(chosen, environment)
    return wal_source(opened, chosen, cluster, system_identifier=system_identifier, config=configuration.path)
