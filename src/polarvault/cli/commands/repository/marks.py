"""`polarvault pin`, `unpin` and `note`: marks on a backup of a repository."""

from __future__ import annotations

from typing import Any

import click

from polarvault.cli.json_output import json_option
from polarvault.cli.options.backups import set_state
from polarvault.cli.options.repository import repository_options

_HELP = {"help_option_names": ["-?", "--help"]}


@click.command("pin", context_settings=_HELP)
@click.argument("backup", metavar="CLUSTER[@LABEL]")
@repository_options
@json_option
def pin(backup: str, **options: Any) -> None:
    """Keep a backup, whatever the policy of `expire` says, until it is unpinned."""
    set_state(backup, "pin", "", **options)


@click.command("unpin", context_settings=_HELP)
@click.argument("backup", metavar="CLUSTER[@LABEL]")
@repository_options
@json_option
def unpin(backup: str, **options: Any) -> None:
    """Let the policy of `expire` decide about a backup again."""
    set_state(backup, "unpin", "", **options)


@click.command("note", context_settings=_HELP)
@click.argument("backup", metavar="CLUSTER[@LABEL]")
@click.argument("text", metavar="TEXT")
@repository_options
@json_option
def note(backup: str, text: str, **options: Any) -> None:
    """Put a note on a backup, which list and show print; an empty text takes it away."""
    set_state(backup, "note", text, **options)
