"""`polarvault pin`: keep a backup whatever the policy says."""

from __future__ import annotations

from typing import Any

import click

from polarvault.cli.json_output import json_option
from polarvault.cli.options.backups import set_state
from polarvault.cli.options.repository import repository_options


@click.command("pin", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("backup", metavar="CLUSTER[@LABEL]")
@repository_options
@json_option
def command(backup: str, **options: Any) -> None:
    """Keep a backup, whatever the policy of `expire` says, until it is unpinned."""
    set_state(backup, "pin", "", **options)
