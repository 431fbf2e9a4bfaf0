"""`polarvault check`: what would keep a backup from being taken or restored, each with the line to type."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.options.backups import RepositoryChoice
from polarvault.cli.options.drop_in import connection_options, connection_settings
from polarvault.cli.options.hasty import hasty
from polarvault.cli.options.repository import repository_options
from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.check.repository.run import RepositoryCheck
    from polarvault.server.connection import ConnectionSettings

_CONNECTION = ("dbname", "host", "port", "username", "no_password", "password")
_EXIT_STATUS = {"ok": 0, "warning": 1, "problem": 2}


@click.command("check", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("cluster", metavar="[CLUSTER]", required=False)
@connection_options
@click.option("--target", metavar="DIR", help="Where the backup is to go: is it empty, and is there space?")
@click.option(
    "--switch-wal",
    is_flag=True,
    help="With CLUSTER: have the server begin a new WAL segment, and see that the old one arrives in the repository.",
)
@click.option(
    "--switch-timeout", type=click.FloatRange(1, 86_400), default=60.0, show_default=True, metavar="SECS",
    help="How long that may take.",
)  # fmt: skip
@repository_options
@json_option
def command(cluster: str | None, target: str | None, switch_wal: bool, switch_timeout: float, **options: Any) -> int:
    """Report what would keep a backup of a server from being taken, or from being restored.

    Connects with SQL and as a walsender, changes nothing, and gives for each finding what it means and the line to
    type. With CLUSTER its repositories are looked at as well: the rights there (a probe of some bytes is written and
    removed), the store's clock, room, whether WAL arrives, and what the next expire would remove; the server is that
    of the configuration. Exit status: 0 when all is well, 1 for warnings, 2 for problems.
    """
    from polarvault.check.run import run_checks
    from polarvault.report.check import check_json, check_text
    from polarvault.server.connection import Connector

    if target is not None and (not target or "\n" in target):
        raise UsageError(f"--target: {target!r} is not a directory name")
    connection = {name: options.pop(name) for name in _CONNECTION}
    repositories = _repositories(cluster, connection, switch_timeout if switch_wal else None, options)
    output = current_output()
    if output is not None:
        output.add(target=None if target is None else os.path.abspath(target))
    connector = Connector(hasty(connection_settings(**connection)))
    report = run_checks(
        connector,
        target=None if target is None else os.path.abspath(target),
        connection_words=_words(connection_settings(**connection)),
        repositories=repositories,
    )
    if output is not None:
        output.add(**check_json(report))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        colour = None if "NO_COLOR" not in os.environ else False
        for line in check_text(report, width=width):
            click.echo(line, color=colour)
    return _EXIT_STATUS[report.severity.value]


def _repositories(
    cluster: str | None, connection: dict[str, Any], switch_s: float | None, options: dict[str, Any]
) -> list[RepositoryCheck]:
    """Return what is to be looked at besides the server; the connection becomes the one of the configuration."""
    if cluster is None:
        given = [f"--{name.replace('_', '-')}" for name, value in (options | {"switch_wal": switch_s}).items() if value]
        if given:
            raise UsageError(f"{', '.join(given)}: no cluster is named", hint="polarvault check CLUSTER")
        return []
    from polarvault.check.repository.run import RepositoryCheck
    from polarvault.cli.options.configuration import configured_connection
    from polarvault.config.model import ClusterConfiguration
    from polarvault.repository.format.names import check_word

    check_word(cluster, "a cluster")
    choice = RepositoryChoice.of(**options)
    configured = choice.configuration.clusters.get(cluster, ClusterConfiguration(cluster))
    if connection["dbname"] is None:
        connection["dbname"] = configured_connection(configured)
    return [
        RepositoryCheck(cluster, one, configured.retention, switch_s) for one in choice.repositories(cluster)
    ]  # fmt: skip


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
