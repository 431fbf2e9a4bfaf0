"""Which repository a command means: the word of its --repo, by name or by address. No I/O."""

from __future__ import annotations

from polarvault.config.checks import did_you_mean
from polarvault.config.model import Configuration, RepositoryConfiguration
from polarvault.config.values import is_name
from polarvault.errors import UsageError
from polarvault.storage.objects.address import parse_address


def choose_repository(configuration: Configuration, word: str | None) -> RepositoryConfiguration:
    """Return the repository that is meant; raise UsageError if that is not certain.

    A bare word is a name of the configuration; what has a slash or a colon is an address. An address that the
    configuration knows has the settings there, too: a pinned id and the key must not depend on how it was written.
    None means the only one that is configured.
    """
    known = configuration.repositories
    if word is None:
        if len(known) == 1:
            return next(iter(known.values()))
        listed = (
            f"write --repo NAME: {', '.join(sorted(known))}" if known else "write --repo ADDRESS, as --repo /backup"
        )
        raise UsageError("which repository is not said", hint=listed)
    if word in known:
        return known[word]
    if "/" not in word and ":" not in word:
        named = f"repositories: {', '.join(sorted(known))}" if known else "the configuration names no repository"
        raise UsageError(
            f'there is no repository "{word}"{did_you_mean(word, known) if is_name(word) else ""}',
            hint=f"{named}; a directory is written ./{word}",
        )
    address = str(parse_address(word))
    same = [one for one in known.values() if one.address == address]
    return same[0] if same else RepositoryConfiguration("", address)


def choose_repositories(configuration: Configuration, cluster: str, word: str | None) -> list[RepositoryConfiguration]:
    """Return the repositories of a cluster: the one that --repo names, else those of the configuration."""
    configured = configuration.clusters.get(cluster)
    if word is None and configured is not None and configured.repositories:
        return [configuration.repositories[name] for name in configured.repositories]
    return [choose_repository(configuration, word)]
