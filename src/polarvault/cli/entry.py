"""Where the program starts: `wal fetch` takes a short cut past everything that the other commands need.

A recovery starts `wal fetch` once for every segment, so its start-up is a good part of the recovery's time. Only it is
recognised here; its help, and all other commands, go through click.
"""

from __future__ import annotations

import sys

# Exit statuses above are those of a signal, as a shell has them.
_SIGNALLED = 128
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the program on sys.argv and exit."""
    arguments = sys.argv[1:]
    if arguments[:2] == ["wal", "fetch"] and not {"--help", "-?"} & set(arguments):
        from polarvault.cli.wal_fetch import run as run_fetch

        sys.exit(run_fetch(arguments[2:]))
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Nothing has been done yet: no traceback from the middle of an import.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from polarvault.cli.main import ends_by_signal, run
    from polarvault.cli.signals import die_by

    status = run(arguments)
    if status > _SIGNALLED and ends_by_signal(arguments):
        die_by(status - _SIGNALLED)
    sys.exit(status)
