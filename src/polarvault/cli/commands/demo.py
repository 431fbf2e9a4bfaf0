"""`polarvault demo`: the whole story in two minutes on a throw-away server."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command("demo")
@click.option(
    "--polardb", is_flag=True, help="Use a PolarDB on shared storage, whose programs POLARDB_BIN or --bindir names."
)
@click.option(
    "--bindir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Use the server programs in DIR instead of the embedded PostgreSQL 18.",
)
@click.option("--keep", is_flag=True, help="Keep the directory with the backup and both servers' files.")
def command(*, polardb: bool, bindir: Path | None, keep: bool) -> None:
    """Start a throw-away server, back it up while it is written to, restore it, start the copy, compare the data."""
    from polarvault.demo.story import tell_story

    named = os.environ.get("POLARDB_BIN")
    if polardb and bindir is None and named:
        bindir = Path(named)
    tell_story(bindir=bindir, on_shared_storage=polardb, keep=keep)
