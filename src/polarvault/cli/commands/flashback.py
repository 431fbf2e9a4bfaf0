"""`polarvault flashback`: one table as it was, and which transactions changed it. Parses, calls, renders."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polarvault.cli.commands.clone import backup_of_snapshot, clone_request
from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.messages import say_warning
from polarvault.cli.options.repository import repository_options
from polarvault.cli.process import switch_threads_quickly
from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.flashback.names import TableName
    from polarvault.flashback.stages import Stages
    from polarvault.flashback.target import Target
    from polarvault.recovery.target import RecoveryTarget
    from polarvault.recovery.watch import Watch

Function = TypeVar("Function", bound=Callable[..., Any])
_DEFAULT_TIMEOUT_S = 3600.0
_SNAPSHOT = "snapshot:"
_PATHS = ("at", "snapshots", "shared_from", "bindir", "output")
_DEFAULT_TIMELINE = ("target_timeline", "latest")
_SPELLED = {"wal_directories": "--wal", "settings": "--set"}
# Of a clone, what is not asked here.
_CLONE = {
    "name": None, "port": None, "read_only": False, "ttl": None, "max_size": None, "target_time": None,
    "target_xid": None, "target_lsn": None, "target_name": None, "target_word": None, "target_inclusive": None,
    "accept_end": None,
}  # fmt: skip


def _source_options(function: Function) -> Function:
    """Add what a clone of SOURCE is made with."""
    options = [
        click.option("--target-timeline", default="latest", show_default=True, metavar="TIMELINE",
                     help="Timeline to follow: latest, current (the backup's) or a number."),
        click.option("--wal", "wal_directories", multiple=True, metavar="DIR",
                     help="Directory with archived or received WAL; can be given several times."),
        click.option("--at", metavar="DIR",
                     help="The directory of clones, for the work; best on XFS or btrfs, on the file system of the "
                     "backup. Default: `clones` in the directory for state."),
        click.option("--min-free", metavar="SIZE", help="What has to stay free on its file system."),
        click.option("--snapshots", metavar="DIR", help="The directory of snapshots, for a SOURCE snapshot:NAME."),
        click.option("--shared-from", metavar="DIR", help="Where the backup's shared half is, if it cannot be found."),
        click.option("--merge", is_flag=True, help="PolarDB: put both halves into one, without shared storage."),
        click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change a setting of the clone."),
        click.option("--timeout", type=float, default=_DEFAULT_TIMEOUT_S, show_default=True, metavar="SECONDS",
                     help="How long recovery may take."),
        click.option("--bindir", metavar="DIR", help="Directory of postgres and pg_dump; default: found by version."),
        click.option("-U", "--username", metavar="ROLE", help="A superuser of the source; default: the likely ones."),
        click.option("--owner", metavar="USER", help="When root: the user that runs the clone's server."),
        click.option("--force", is_flag=True, help="Use a backup that was never completed."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.group("flashback", context_settings={"help_option_names": ["-?", "--help"]})
def command() -> None:
    """One table as it was before a mistake, and which transactions changed it."""


@command.command("table", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("source", metavar="SOURCE")
@click.option("--to", "to_time", metavar="TIME",
              help="As it was just before a moment: '2026-11-22 14:03:00+01'.")  # fmt: skip
@click.option("--before-xid", metavar="XID", help="As it was just before a transaction committed.")
@click.option("--to-lsn", metavar="LSN", help="As it was just before a position in the WAL.")
@click.option("--table", "tables", multiple=True, required=True, metavar="SCHEMA.NAME",
              help="The table, with its partitions; can be given again. Capitals: in double quotes.")  # fmt: skip
@click.option("-d", "--database", metavar="NAME", help="Its database; default: the one that has the table.")
@click.option("-o", "--output", metavar="FILE", help="Write a dump for pg_restore; nothing is overwritten.")
@click.option("--into", metavar="CONNSTR", help="Restore it into a database of a live server; nothing is overwritten.")
@click.option("--as", "as_name", metavar="NAME",
              help="With --into: its name there; it comes without triggers and foreign keys.")  # fmt: skip
@click.option("--data-only", is_flag=True, help="With -o: the rows alone, without the table's definition.")
@_source_options
@repository_options
@json_option
def table(**options: Any) -> None:
    """Bring a table of SOURCE back as it was at a moment, into a file or into a live server.

    SOURCE is what `polarvault clone create` takes: a backup, a directory of backups, snapshot:NAME, a cluster of a
    repository or one of its backups. A clone of it is made and recovered to just before the moment, the tables are
    dumped with the pg_dump of its version, and the clone is removed. Neither SOURCE nor anything that is in the target
    is changed.
    """
    import secrets

    from polarvault.flashback.model import TableRequest
    from polarvault.flashback.names import parse_table
    from polarvault.flashback.table import bring_back, check
    from polarvault.instance.host import Host
    from polarvault.report.flashback import table_json, table_text

    target = _moment(options)
    names = tuple(parse_table(text, "--table") for text in options["tables"])
    as_name = None if options["as_name"] is None else parse_table(options["as_name"], "--as")
    _check_where(options, target)
    switch_threads_quickly()
    into = None if options["into"] is None else _target(options["into"], options["database"], names)
    stages = _stages()
    words = f"as it was just before {target.value if target.xid is None else f'transaction {target.xid}'}"
    clone_options = _clone_options(options)
    with clone_request(clone_options, target=target) as clone:
        request = TableRequest(
            clone=replace(clone, name=f"flashback-{secrets.token_hex(4)}"), tables=names, database=options["database"],
            output=options["output"], as_name=as_name, data_only=options["data_only"],
        )  # fmt: skip
        check(request)
        result = bring_back(
            request, into, Host(), stages, draw=secrets.randbelow(1 << 30), watching=_watching, words=words
        )
    output = current_output()
    for warning in result.warnings:
        say_warning(warning) if output is None else output.warn(warning)
    if output is not None:
        output.notes.extend(result.notes)
        output.add(**table_json(result))
        return
    for line in table_text(result):
        click.echo(line)


@command.command("find", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("source", metavar="SOURCE")
@click.option("--table", metavar="SCHEMA.NAME", required=True,
              help="The table, with its partitions. Capitals: in double quotes.")  # fmt: skip
@click.option("--since", metavar="TIME", required=True, help="From when on: '2026-11-22 14:00:00+01'.")
@click.option("--until", metavar="TIME", help="Up to when; default: as far as the WAL leads.")
@click.option("-d", "--database", metavar="NAME", help="Its database; default: the one that has the table.")
@_source_options
@repository_options
@json_option
def find(**options: Any) -> None:
    """Say which transactions changed a table: deleted, updated, inserted how many rows, truncated or dropped it.

    They are read from the WAL of SOURCE, see `polarvault flashback table`. Which files the table had is asked of a
    clone at --since and followed from there. What was rolled back is not shown; a subtransaction belongs to its
    transaction.
    """
    import secrets

    from polarvault.flashback.find import FindRequest, find_changes
    from polarvault.flashback.names import parse_table
    from polarvault.instance.host import Host
    from polarvault.recovery.target import parse_target_time
    from polarvault.report.flashback import find_json, find_text
    from polarvault.report.recovery import scan_printer

    name = parse_table(options["table"], "--table")
    since = replace(parse_target_time(options["since"], option="--since"), inclusive=False)
    until = None if options["until"] is None else parse_target_time(options["until"], option="--until")
    assert since.time is not None
    if until is not None and until.time is not None and until.time <= since.time:
        raise UsageError("--until is not behind --since", hint="exchange the two")
    switch_threads_quickly()
    command_line = _next_command(options)
    with clone_request(_clone_options({**options, "output": None}), target=since) as clone:
        request = FindRequest(
            clone=replace(clone, name=f"flashback-{secrets.token_hex(4)}"), table=name, database=options["database"],
            since=since, until=until,
        )  # fmt: skip
        with scan_printer(_say_raw, is_terminal=sys.stderr.isatty()) as progress:
            result = find_changes(
                request, Host(), _stages(), draw=secrets.randbelow(1 << 30), watching=_watching, progress=progress
            )
    output = current_output()
    if output is not None:
        output.notes.extend(result.notes)
        output.add(**find_json(result))
        return
    for line in find_text(result, command_line):
        click.echo(line)


def _next_command(options: dict[str, Any]) -> str:
    """Return the command that brings the table back, up to the moment: with what was said about SOURCE."""
    words = ["polarvault", "flashback", "table", options["source"]]
    for name, value in options.items():
        if name in ("source", "since", "until", "timeout") or not value or (name, value) == _DEFAULT_TIMELINE:
            continue
        option = _SPELLED.get(name, "--" + name.replace("_", "-"))
        for one in value if isinstance(value, tuple | list) else [value]:
            words += [option] if one is True else [option, str(one)]
    return " ".join(map(shlex.quote, words))


def _moment(options: dict[str, Any]) -> RecoveryTarget:
    """Return the end of recovery that was asked for: what it names is not replayed any more."""
    from polarvault.recovery import target as targets

    parsers: list[tuple[str, str | None, Callable[..., RecoveryTarget]]] = [
        ("--to", options["to_time"], targets.parse_target_time),
        ("--before-xid", options["before_xid"], targets.parse_target_xid),
        ("--to-lsn", options["to_lsn"], targets.parse_target_lsn),
    ]
    given = [(option, text, parse) for option, text, parse in parsers if text is not None]
    if len(given) != 1:
        problem = "no moment is given" if not given else f"{' and '.join(one[0] for one in given)} exclude one another"
        raise UsageError(
            problem,
            hint="--to TIME, --before-xid XID or --to-lsn LSN; which transaction it was, says: "
            f"polarvault flashback find {shlex.quote(options['source'])} --table {shlex.quote(options['tables'][0])} "
            "--since TIME",
        )
    [(option, text, parse)] = given
    return replace(parse(text, option=option), inclusive=False)


def _check_where(options: dict[str, Any], target: RecoveryTarget) -> None:
    """Raise UsageError unless it is said where the table is to go."""
    output, into = options["output"], options["into"]
    if output is not None and into is not None:
        raise UsageError("-o and --into exclude one another", hint="give one; a dump can be restored later: pg_restore")
    if output is None and into is None:
        line = _line_so_far()
        raise UsageError(
            "it is not said where the table is to go",
            hint=f"into a file:  {line} -o {shlex.quote(_file_name(options['tables'][0]))}\n"
            f"      or into a live server, under another name:  {line} --into 'host=... dbname=...' --as "
            f"{shlex.quote(_other_name(options['tables'][0]))}",
        )
    if options["as_name"] is not None and into is None:
        raise UsageError("--as is a name in the server of --into", hint="a dump has the names that the tables had: -o")
    if options["data_only"] and into is not None:
        raise UsageError(
            "--data-only would put the rows into a table that is there, and --into never does that",
            hint="bring it back under another name (--into ... --as NAME) and copy the rows that you want by SQL",
        )


def _line_so_far() -> str:
    return " ".join(["polarvault", *map(shlex.quote, sys.argv[1:])])


def _file_name(table: str) -> str:
    word = "".join(one if one.isalnum() or one in "._-" else "_" for one in table).strip("._") or "table"
    return f"{word}.dump"


def _other_name(table: str) -> str:
    return f'{table[:-1]}_then"' if table.endswith('"') else f"{table}_then"


def _target(conninfo: str, database: str | None, names: tuple[TableName, ...]) -> Target:
    from polarvault.cli.options.drop_in import connection_settings
    from polarvault.flashback.target import Target
    from polarvault.server.connection import Connector

    settings = connection_settings(
        dbname=conninfo, host=None, port=None, username=None, no_password=False, password=False
    )
    connector = Connector(settings)
    found = connector.standby_dbname
    if not found:
        raise UsageError(
            "--into names no database", hint=f"add it to the connection string: dbname={database or 'NAME'}"
        )
    return Target(connector, {**settings.parameters(), "dbname": found}, found)


def _clone_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as `clone create` knows them, with absolute paths."""
    for name in (*_PATHS, "source"):
        if options[name] is not None and (name != "source" or "/" in options[name]):
            options[name] = os.path.abspath(options[name])
    if options["source"].startswith(_SNAPSHOT):
        options["source"] = backup_of_snapshot(options["source"].removeprefix(_SNAPSHOT), options["snapshots"])
    return {**_CLONE, **options}


def _stages() -> Stages:
    from polarvault.flashback.stages import Stages

    return Stages(lambda line: _say_raw(f"polarvault: {line}"))


def _watching() -> AbstractContextManager[Watch]:
    from polarvault.report.recovery import replay_printer

    return replay_printer(_say_raw, zone=None, is_terminal=sys.stderr.isatty())


def _say_raw(line: str) -> None:
    click.echo(line, err=True)
