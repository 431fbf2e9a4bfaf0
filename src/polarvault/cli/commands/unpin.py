"""`polarvault unpin`: let the policy decide again."""

from __future__ import annotations

from typing import Any

import click

from polarvault.cli.json_output import json_option
from polarvault.cli.options.backups import set_state
from polarvault.cli.options.repository import repository_options


@click.command("unpin", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("backup", metavar="CLUSTER[@LABEL]")
@repository_options
@json_option
def command(backup: str, **options: Any) -> None:
    """Let the policy of `expire` decide about a backup again."""
    set_state(backup, "unpin", "", **options)
