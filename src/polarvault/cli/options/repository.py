"""Options that say which repository is meant, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polarvault.cli.options.configuration import config_option, load
from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.config.model import KeySource, RepositoryConfiguration

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--repo", metavar="NAME|ADDRESS",
        help="The repository: a name of the configuration, a path, s3://, gs:// or az://BUCKET/FOLDER.",
    ),
    click.option("--key-file", metavar="FILE", help="A key file that opens it."),
    click.option("--passphrase-file", metavar="FILE", help="A file whose first line is the passphrase that opens it."),
    click.option("--passphrase-command", metavar="COMMAND", help="A shell command that prints the passphrase."),
)  # fmt: skip


def repository_options(function: Function) -> Function:
    """Add --repo, --config and where the key comes from; `chosen_repository` takes their values."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return config_option(function)


def chosen_repository(
    *,
    config: str | None,
    repo: str | None,
    key_file: str | None,
    passphrase_file: str | None,
    passphrase_command: str | None,
) -> RepositoryConfiguration:
    """Return the repository that the options and the configuration name."""
    from polarvault.config.choice import choose_repository

    chosen = choose_repository(load(config), repo)
    given = key_source(key_file=key_file, passphrase_file=passphrase_file, passphrase_command=passphrase_command)
    return chosen if given is None else replace(chosen, key=given)


def key_source(
    *, key_file: str | None, passphrase_file: str | None, passphrase_command: str | None, prefix: str = "--"
) -> KeySource | None:
    """Return where a key comes from if an option says so; prefix is how the options begin."""
    from polarvault.config.model import KeySource

    given = {
        "key-file": key_file, "passphrase-file": passphrase_file, "passphrase-command": passphrase_command
    }  # fmt: skip
    named = [f"{prefix}{name}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{', '.join(named)}: only one of them can be meant")
    if not named:
        return None
    return KeySource(passphrase_file, passphrase_command, key_file)
