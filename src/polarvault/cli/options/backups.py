"""Words on the command line that name backups: a path, or a cluster of a repository and one of its backups."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from polarvault.cli.json_output import current_output
from polarvault.cli.messages import say_warning
from polarvault.cli.options.configuration import load
from polarvault.cli.options.repository import key_source
from polarvault.errors import PolarvaultError, RepositoryNotFound, StorageFailed, UsageError

if TYPE_CHECKING:
    from polarvault.config.model import Configuration, KeySource, RepositoryConfiguration
    from polarvault.config.words import BackupWord, PathWord
    from polarvault.recovery.target import RecoveryRequest
    from polarvault.repository.catalogue.opening import OpenedRepository
    from polarvault.repository.reading.shelf import RepositoryShelf


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
        """Open the first repository of a cluster that answers; of those before it a warning is given."""
        from polarvault.repository.catalogue.opening import open_repository

        waiting = self.repositories(cluster)
        while True:
            chosen = waiting.pop(0)
            try:
                opened = open_repository(chosen, os.environ)
                break
            except (StorageFailed, RepositoryNotFound) as problem:
                if not waiting:
                    raise
                say_warning(f"{problem.message}; the next repository is asked: {waiting[0].address}")
        try:
            yield opened, chosen
        finally:
            opened.close()

    @contextmanager
    def opened_behind(
        self, chosen: RepositoryConfiguration, cluster: str
    ) -> Iterator[list[tuple[OpenedRepository, RepositoryConfiguration]]]:
        """Open the repositories of a cluster behind one; of what does not open a warning is given.

        Those before it did not answer. A restored server that is told of one that is away would wait for it at the end
        of the WAL: what is away is never taken for the end.
        """
        from polarvault.repository.catalogue.opening import open_repository

        known = self.repositories(cluster)
        with ExitStack() as stack:
            found = []
            for one in known[known.index(chosen) + 1 :]:
                try:
                    opened = open_repository(one, os.environ)
                except PolarvaultError as problem:
                    say_warning(f"{problem.message}; no WAL is taken from there")
                    continue
                stack.callback(opened.close)
                found.append((opened, one))
            yield found


def backup_of_cluster(choice: RepositoryChoice, text: str) -> BackupWord:
    """Return what a word means that must name a cluster; a path is refused."""
    from polarvault.config.words import BackupWord

    word = choice.word(text)
    if not isinstance(word, BackupWord):
        raise UsageError(
            f'"{text}" is a path, and a backup in a repository is meant here',
            hint="write a cluster's name, or CLUSTER@LABEL; polarvault list shows them",
        )
    return word


def set_state(backup: str, kind: str, text: str, **options: Any) -> None:
    """Write a state of a backup, and say so."""
    from datetime import UTC, datetime

    from polarvault.repository.states.states import States

    choice = RepositoryChoice.of(**options)
    word = backup_of_cluster(choice, backup)
    with choice.opened(word.cluster) as (opened, chosen):
        label = opened.repository.find_label(word.cluster, word.label or "latest")
        States(opened.repository, word.cluster).add(label, kind, now=datetime.now(UTC), text=text)
    output = current_output()
    if output is not None:
        output.add(cluster=word.cluster, label=label, repository=chosen.address, state=kind, text=text or None)
        return
    click.echo(f"{word.cluster}@{label} in {chosen.address}: {kind}{f' {text}' if text else ''}")


@dataclass(frozen=True, slots=True)
class Shelved:
    """A backup of a repository that was named: the word for it, where it is found, and the recovery with its WAL."""

    backup: str
    shelf: RepositoryShelf
    recovery: RecoveryRequest


@contextmanager
def shelved(
    choice: RepositoryChoice, word: BackupWord, command: str, recovery: RecoveryRequest, *, goes_on: bool = False
) -> Iterator[Shelved]:
    """Open the repository of a backup, and keep what a command may read there from being expired meanwhile.

    goes_on: WAL behind the backup is wanted even without a target.
    """
    from polarvault.repository.catalogue.reading import reading
    from polarvault.repository.reading.shelf import RepositoryShelf

    with choice.opened(word.cluster) as (opened, chosen), choice.opened_behind(chosen, word.cluster) as others:
        shelf = RepositoryShelf(opened, chosen, word.cluster, config=choice.configuration.path, others=others)
        uses_archive = (recovery.is_wanted or goes_on) and not recovery.archive_is_unknown
        # A target chooses among all backups, unless one is named.
        several = recovery.is_wanted and word.label is None
        backup = word.cluster if several else shelf.whole_word(word.label)
        labels = [one.partition("@")[2] for one in (shelf.several(backup) or [backup])]
        with reading(opened.repository, command, word.cluster, *labels):
            yield Shelved(backup, shelf, replace(recovery, uses_archive=uses_archive))


def refuse_others(others: Sequence[str], cluster: str) -> None:
    """Raise UsageError for further backups beside one of a repository."""
    if others:
        raise UsageError("a backup in a repository needs no other one", hint=f"name it alone: {cluster}@LABEL")
