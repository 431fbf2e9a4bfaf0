"""`polarvault note`: a word about a backup."""

from __future__ import annotations

from typing import Any

import click

from polarvault.cli.json_output import json_option
from polarvault.cli.options.backups import set_state
from polarvault.cli.options.repository import repository_options


@click.command("note", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("backup", metavar="CLUSTER[@LABEL]")
@click.argument("text", metavar="TEXT")
@repository_options
@json_option
def command(backup: str, text: str, **options: Any) -> None:
    """Put a note on a backup, which list and show print; an empty text takes it away."""
    set_state(backup, "note", text, **options)
