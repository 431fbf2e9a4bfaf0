"""The `polarvault` program: finds the command, renders errors, chooses the exit status.

Commands are loaded when they are called, so that each pays only for its own imports.
"""

from __future__ import annotations

import importlib
import signal
import traceback

import click

from polarvault import __version__
from polarvault.cli import signals
from polarvault.cli.json_output import Outputs, outputs_for
from polarvault.cli.messages import PROGRAM, say_error
from polarvault.errors import Interrupted, PolarvaultError, UsageError
from polarvault.report.json_document import error_json

_COMMANDS = {
    "basebackup": "Take a base backup: every option of pg_basebackup and polar_basebackup.",
    "receivewal": "Stream WAL into a directory: every option of pg_receivewal.",
    "verifybackup": "Check a backup: every option of pg_verifybackup, both halves, pages and WAL.",
    "wal": "WAL: stream or archive it into a repository, give it to a recovery.",
    "backup": "Take a backup into a repository.",
    "status": "Show how all clusters stand, for people and for monitoring.",
    "list": "List the backups in a repository.",
    "show": "Show everything about a backup in a repository.",
    "pin": "Keep a backup in a repository, whatever the policy says.",
    "unpin": "Let the policy decide about a backup again.",
    "note": "Put a note on a backup in a repository.",
    "verify": "Verify backups in a repository.",
    "expire": "Remove the backups in a repository that the policy does not keep.",
    "restore": "Lay a backup out so that it starts.",
    "export": "Write a backup of a repository into files that PostgreSQL's own tools read.",
    "import": "Take a backup of pg_basebackup, polar_basebackup or Barman into a repository.",
    "repo": "Make repositories of backups, and say who can open them.",
    "config": "Show the configuration, and where each value comes from.",
    "check": "Say what would keep a backup from being taken or restored.",
    "drill": "Prove that a backup restores, by restoring it.",
    "snapshot": "Snapshots of running servers, each of them a backup.",
    "image": "Restored copies that WAL is replayed into, each a full backup.",
    "clone": "Copies of a cluster that run within seconds, and can be written.",
    "flashback": "One table as it was before a mistake, and which transactions changed it.",
    "demo": "Show a backup and a restore on a throw-away server.",
}
# Modules in `commands/repository`; the marks share one.
_MARKS = ("pin", "unpin", "note")
_IN_REPOSITORY = frozenset({"backup", "status", "list", "show", "verify", "expire", "export", "import", "repo"})
# These promise the exit status of the tools that they replace: 1 for every failure.
DROP_IN = {"basebackup", "receivewal", "verifybackup"}
# Of a monitoring plugin 2 means that something is wrong: whatever keeps it from an answer is "unknown".
_PLUGIN, _UNKNOWN, _SIGNALLED = "status", 3, 128
# Ids of what has no class of ours: who must act, what it means, what to do.
OTHER_ERRORS = {
    "system": (
        "the administrator of this machine",
        "The operating system refused something that no other error foresees",
        "see the file that the message names; report it if the message does not help",
    ),
    "internal": ("us", "A fault of the program; the traceback is on standard error", "report it with the traceback"),
}


class LazyCommands(click.Group):
    """A group whose commands live in modules of the same name in `commands`, or `commands/repository`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in _COMMANDS:
            return None
        place, attribute = cmd_name, "command"
        if cmd_name in _MARKS:
            place, attribute = "repository.marks", cmd_name
        elif cmd_name in _IN_REPOSITORY:
            place = f"repository.{cmd_name}"
        found: click.Command = getattr(importlib.import_module(f"polarvault.cli.commands.{place}"), attribute)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-?", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name=PROGRAM)
def group() -> None:
    """Online backup and recovery for PolarDB on shared storage and for PostgreSQL 13 to 19."""


class _Never(click.UsageError):
    """What click before 8.2 never raises: it shows the help itself, and exits 0."""


_NoArguments: type[click.UsageError] = getattr(click.exceptions, "NoArgsIsHelpError", _Never)


def ends_by_signal(arguments: list[str]) -> bool:
    """Tell whether the command dies by a signal as the program that it stands in for, instead of exiting with 128+n."""
    return bool(arguments) and arguments[0] in ("basebackup", "receivewal")


def run(arguments: list[str]) -> int:
    """Run one command line and return the exit status."""
    outputs = outputs_for(group, arguments)
    output = outputs.document
    # The drop-in commands take care of signals once they are connected; with --json they have something to say before.
    signals.leave_alone() if ends_by_signal(arguments) and output is None else signals.interrupt()
    try:
        status = group.main(args=arguments, prog_name=PROGRAM, standalone_mode=False, obj=outputs)
    except click.exceptions.Exit as leaving:
        # Help or a version.
        return leaving.exit_code
    except _NoArguments as nothing:
        # Nobody made a mistake: the help alone, where click puts it, with click's status.
        click.echo(nothing.format_message(), err=True)
        return 2
    except (Exception, KeyboardInterrupt) as problem:
        return _fail(problem, arguments, outputs)
    status = status if isinstance(status, int) else 0
    return status if output is None else output.finish(status, None)


def _fail(problem: BaseException, arguments: list[str], outputs: Outputs) -> int:
    """Tell what went wrong, and return the exit status."""
    drop_in = bool(arguments) and arguments[0] in DROP_IN
    status = 1
    match problem:
        case click.UsageError():
            command = f"{PROGRAM} {arguments[0]}" if arguments and arguments[0] in _COMMANDS else PROGRAM
            problem = UsageError(problem.format_message(), hint=f'try "{command} --help" for more information')
            status = 1 if drop_in else problem.exit_code
        case click.ClickException():
            problem = PolarvaultError(problem.format_message())
        case Interrupted() | KeyboardInterrupt() | click.Abort():
            number = signal.Signals(signals.received() or signal.SIGINT)
            if not isinstance(problem, Interrupted):
                problem = Interrupted(f"interrupted by {number.name}")
            status = _SIGNALLED + number
        case PolarvaultError():
            status = 1 if drop_in else problem.exit_code
        case OSError():
            # Every expected one has been turned into our own error; this keeps an unforeseen one readable.
            pass
        case _ if outputs == Outputs():
            raise problem
        case _:
            # A fault of ours: whoever wants JSON gets it all the same.
            traceback.print_exception(problem)
    if arguments[:1] == [_PLUGIN] and not isinstance(problem, Interrupted) and status < _SIGNALLED:
        status = _UNKNOWN
    error = error_json(problem)
    if outputs.events is not None:
        outputs.events.error(error)
    else:
        detail = None if error["id"] == "internal" else error["detail"]
        say_error(error["message"] or "", detail=detail, hint=error["hint"])
    return status if outputs.document is None else outputs.document.finish(status, error)
