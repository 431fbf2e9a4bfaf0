"""Where the program starts: `wal fetch` takes a short cut past everything that the other commands need.

A recovery starts `wal fetch` once for every segment, so its start-up is a good part of the recovery's time. Only it is
recognised here; its help, and all other commands, go through click.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the program on sys.argv and exit."""
    arguments = sys.argv[1:]
    if arguments[:2] == ["wal", "fetch"] and not {"--help", "-?"} & set(arguments):
        from polarvault.cli.wal_fetch import run as run_fetch

        sys.exit(run_fetch(arguments[2:]))
    from polarvault.cli.main import run

    sys.exit(run(arguments))
