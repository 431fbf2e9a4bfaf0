"""Words on the command line that name backups: a path, or a cluster of a repository and one of its backups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from polarvault.cli.options.configuration import load
from polarvault.cli.options.repository import key_source

if TYPE_CHECKING:
    from polarvault.config.model import Configuration, KeySource, RepositoryConfiguration
    from polarvault.config.words import BackupWord, PathWord
    from polarvault.repository.catalogue.opening import OpenedRepository


@dataclass(frozen=True, slots=True)
class RepositoryChoice:
    """What --repo, --config and the options of the key say; see `options.repository.repository_options`."""

    configuration: Configuration
    repo: str | None
    key: KeySource | None

    @classmethod
    def of(
        cls,
        *,
        config: str | None,
        repo: str | None,
        key_file: str | None,
        passphrase_file: str | None,
        passphrase_command: str | None,
    ) -> RepositoryChoice:
        """Take the values of the options."""
        key = key_source(key_file=key_file, passphrase_file=passphrase_file, passphrase_command=passphrase_command)
        return cls(load(config), repo, key)

    def word(self, text: str) -> PathWord | BackupWord:
        """Return what a word means; raise UsageError if that is not certain.

        A bare word is a cluster if the configuration names it, or if a repository is named; whether that has it shows
        when it is asked.
        """
        from polarvault.config.words import parse_word

        configuration = self.configuration

        def is_cluster(name: str) -> bool:
            has_repository = bool(configuration.repositories) and not os.path.exists(text)
            return name in configuration.clusters or self.repo is not None or has_repository

        return parse_word(text, is_cluster=is_cluster, is_path=os.path.exists)

    def repositories(self, cluster: str) -> list[RepositoryConfiguration]:
        """Return the repositories of a cluster, with the key that the options name."""
        from polarvault.config.choice import choose_repositories

        chosen = choose_repositories(self.configuration, cluster, self.repo)
        return [one if self.key is None else replace(one, key=self.key) for one in chosen]

    @contextmanager
    def opened(self, cluster: str) -> Iterator[tuple[OpenedRepository, RepositoryConfiguration]]:
        """Open the first repository of a cluster."""
        from polarvault.repository.catalogue.opening import open_repository

        chosen = self.repositories(cluster)[0]
        opened = open_repository(chosen, os.environ)
        try:
            yield opened, chosen
        finally:
            opened.close()
