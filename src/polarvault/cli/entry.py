"""Where the program starts: `wal fetch` and `wal push` take a short cut past everything that the other commands need.

A recovery starts `wal fetch` once for every segment, and an archiver `wal push`, so that their start-up is a good part
of their time. Only they are recognised here; their help, and all other commands, go through click.
"""

from __future__ import annotations

# What `signal` is made of, which takes long to import itself, by way of enum: this has to come before anything else.
import _signal  # type: ignore[import-not-found]
import os
import sys

# Exit statuses above are those of a signal, as a shell has them.
_SIGNALLED = 128
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def _fill_standard_descriptors() -> None:
    """Give closed standard descriptors something harmless.

    The next file or socket that is opened would get the number, and what is meant for a person would be written into
    it. Standard output is opened for reading: writing to it fails, as it should where nobody can get the result.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one, because those below it are taken.
            os.set_inheritable(os.open(os.devnull, mode), True)
            if number == 1:
                sys.stdout = os.fdopen(1, "w", closefd=False)
            elif number == 2:
                sys.stderr = os.fdopen(2, "w", closefd=False)


def _leave(status: int) -> NoReturn:
    """Exit; what could not be written to standard output is a failure, said once."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        status = status or 1
    # Python would try again, say so in its own words, and choose a status of its own.
    sys.stdout = sys.__stdout__ = None  # type: ignore[misc]
    sys.exit(status)


def main() -> NoReturn:
    """Run the program on sys.argv and exit."""
    # First of all: nothing has been done yet, and an interrupt deserves no traceback from the middle of an import.
    answers_interrupts = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
    if answers_interrupts:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _fill_standard_descriptors()
    arguments = sys.argv[1:]
    if arguments[:2] == ["wal", "fetch"] and not {"--help", "-?"} & set(arguments):
        from polarvault.cli.wal_fetch import run as run_fetch

        if answers_interrupts:
            # It has files to remove.
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        # Everything is durable and said: taking the interpreter apart would take a tenth of what most calls take.
        os._exit(run_fetch(arguments[2:]))
    if arguments[:2] == ["wal", "push"] and not {"--help", "-?"} & set(arguments):
        from polarvault.cli.wal_push import run as run_push

        if answers_interrupts:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        os._exit(run_push(arguments[2:]))
    from polarvault.cli.process import collect_rarely, leave_cores_to_our_threads

    leave_cores_to_our_threads()
    collect_rarely()
    from polarvault.cli.main import ends_by_signal, run
    from polarvault.cli.signals import die_by

    status = run(arguments)
    if status > _SIGNALLED and ends_by_signal(arguments):
        die_by(status - _SIGNALLED)
    _leave(status)
