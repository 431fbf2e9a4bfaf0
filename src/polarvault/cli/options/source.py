"""Where the bytes of a backup come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def source_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --source."""
    return click.option(
        "--source", type=click.Choice(["auto", "stream", "local", "pfs"]), default=default, show_default=True,
        help="Read the server's files on this host (local; pfs if the shared half has to lie in PFS), or have the "
        "server send them (stream); auto: whichever can be.",
    )  # fmt: skip
