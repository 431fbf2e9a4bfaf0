"""`polarvault check`: what would keep a backup from being taken or restored, each with the line to type."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.options.drop_in import connection_options, connection_settings
from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.server.connection import ConnectionSettings

# A host that swallows packets would otherwise be waited for as long as the kernel likes.
_CONNECT_TIMEOUT_S = 10
_EXIT_STATUS = {"ok": 0, "warning": 1, "problem": 2}


@click.command("check", context_settings={"help_option_names": ["-?", "--help"]})
@connection_options
@click.option("--target", metavar="DIR", help="Where the backup is to go: is it empty, and is there space?")
@json_option
def command(target: str | None, **connection: Any) -> int:
    """Report what would keep a backup of a server from being taken, or from being restored.

    Connects with SQL and as a walsender, changes nothing, and gives for each finding what it means and the line to
    type. Exit status: 0 when all is well, 1 for warnings, 2 for problems.
    """
    from polarvault.check.run import run_checks
    from polarvault.report.check import check_json, check_text
    from polarvault.server.connection import Connector

    if target is not None and (not target or "\n" in target):
        raise UsageError(f"--target: {target!r} is not a directory name")
    output = current_output()
    if output is not None:
        output.add(target=None if target is None else os.path.abspath(target))
    connector = Connector(_hasty(connection_settings(**connection)))
    report = run_checks(
        connector,
        target=None if target is None else os.path.abspath(target),
        connection_words=_words(connection_settings(**connection)),
    )
    if output is not None:
        output.add(**check_json(report))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        colour = None if "NO_COLOR" not in os.environ else False
        for line in check_text(report, width=width):
            click.echo(line, color=colour)
    return _EXIT_STATUS[report.severity.value]


def _words(settings: ConnectionSettings) -> list[str]:
    """Return the connection options as they were given, without secrets: what is printed ends up in tickets."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    words = []
    if settings.conninfo:
        given = conninfo_to_dict(settings.conninfo)
        shown = {name: str(value) for name, value in given.items() if not _is_secret(name)}
        words = ["-d", settings.conninfo if len(shown) == len(given) else make_conninfo(**shown)]
    for option, value in (("-h", settings.host), ("-p", settings.port), ("-U", settings.user)):
        words += [option, value] if value is not None else []
    return words


def _is_secret(name: str) -> bool:
    return "password" in name or "secret" in name or name.startswith("scram_")


def _hasty(settings: ConnectionSettings) -> ConnectionSettings:
    """Limit how long a connection may take, unless the caller has."""
    from polarvault.server.conninfo import format_conninfo, parse_conninfo

    given = settings.parameters()
    words = parse_conninfo(settings.conninfo or "") | {"connect_timeout": str(_CONNECT_TIMEOUT_S)}
    # A service file may have a limit too, which a keyword would override.
    if {"connect_timeout", "service"} & given.keys() or {"PGCONNECT_TIMEOUT", "PGSERVICE"} & os.environ.keys():
        return settings
    return replace(settings, conninfo=format_conninfo(words))
