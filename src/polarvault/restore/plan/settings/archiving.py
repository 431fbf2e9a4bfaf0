"""--archive: whether the restored server archives WAL, and where to. Pure.

A restored copy never writes into a WAL archive that the user did not name: the source's command is always switched
off, and archiving is only switched on together with a command of its own.
"""

from __future__ import annotations

from polarvault.errors import UsageError
from polarvault.polardb.settings import Wanted
from polarvault.restore.model import Archiving, RestoreRequest

_MODE_WHY = {
    Archiving.OFF: "a copy must not write into the source's WAL archive",
    Archiving.ON: "--archive on: archives once it is promoted",
    Archiving.ALWAYS: "--archive always: archives while it is a standby, too",
}


def check_archiving(request: RestoreRequest) -> None:
    """Raise UsageError for combinations that cannot work."""
    archiving, command = request.archiving, request.archive_command
    if archiving is Archiving.OFF and command is not None:
        raise UsageError("--archive-command does nothing by itself", hint="add --archive always, or --archive on")
    if archiving is not Archiving.OFF and not command:
        raise UsageError(
            f"--archive {archiving.value} needs a command: the source's own would write into the source's WAL archive",
            hint="add --archive-command 'cp %p DIRECTORY/%f', with a directory of this server's own",
        )


def archive_settings(request: RestoreRequest) -> list[Wanted]:
    """Return the settings for what was asked."""
    wanted = [Wanted("archive_mode", request.archiving.value, _MODE_WHY[request.archiving])]
    if request.archive_command is not None:
        wanted.append(Wanted("archive_command", request.archive_command, "--archive-command"))
    return wanted


def archive_warnings(request: RestoreRequest, sources_command: str | None) -> list[str]:
    """Say what is likely to be a mistake in the command; sources_command is the backup's own."""
    command = request.archive_command
    if command is None:
        return []
    warnings = []
    if sources_command and " ".join(command.split()) == " ".join(sources_command.split()):
        warnings.append(
            "--archive-command is the source's own: both servers write to one WAL archive, so the command must accept "
            "a file that is there already with the same content, and refuse one with another content"
        )
    if "%p" not in command or "%f" not in command:
        warnings.append("--archive-command lacks %p or %f: does it copy the file at %p under the name %f?")
    return warnings
