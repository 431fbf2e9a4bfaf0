"""`polarvault receivewal`: drop-in for pg_receivewal 13-19."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import click

from polarvault.cli import signals
from polarvault.cli.json_output import JsonOutput, current_events, current_output, json_option, progress_option
from polarvault.cli.messages import say_error
from polarvault.cli.options.drop_in import (
    DropInCommand,
    connection_options,
    connection_settings,
    status_interval,
    version_option,
)
from polarvault.errors import PolarvaultError, StorageFailed, UsageError
from polarvault.model.c_numbers import scan_hex
from polarvault.report.json_document import error_json

if TYPE_CHECKING:
    from polarvault.model.lsn import Lsn
    from polarvault.server.connection import ConnectionSettings
    from polarvault.walarchive.receive.request import ReceiveRequest
    from polarvault.walarchive.store.directory import DirectoryStore

# Those of a monitoring plugin: all is well, look at it soon, act now, nobody knows.
_EXIT_STATUS = {"ok": 0, "warning": 1, "problem": 2}
_STATUS_UNKNOWN = 3
_CONNECTION = ("dbname", "host", "port", "username", "no_password", "password")


@click.command("receivewal", cls=DropInCommand, context_settings={"help_option_names": ["-?", "--help"]})
@click.option("-D", "--directory", metavar="DIR", help="Receive write-ahead log files into this directory.")
@click.option("-E", "--endpos", metavar="LSN", help="Exit after receiving the specified LSN.")
@click.option("--if-not-exists", is_flag=True, help="Do not error if slot already exists when creating a slot.")
@click.option("-n", "--no-loop", is_flag=True, help="Do not loop on connection lost.")
@click.option("--no-sync", is_flag=True, help="Do not wait for changes to be written safely to disk.")
@click.option("-s", "--status-interval", metavar="SECS", default="10", help="Time between status packets.")
@click.option("-S", "--slot", metavar="SLOTNAME", help="Replication slot to use.")
@click.option("--synchronous", is_flag=True, help="Flush write-ahead log immediately after writing.")
@click.option("-v", "--verbose", is_flag=True, help="Output verbose messages.")
@click.option("-Z", "--compress", metavar="METHOD[:DETAIL]", help="Compress with gzip, lz4 or zstd.")
@connection_options
@click.option("--create-slot", is_flag=True, help="Create a new replication slot, and exit.")
@click.option("--drop-slot", is_flag=True, help="Drop the replication slot, and exit.")
@click.option("--reserve-wal", is_flag=True, help="With --create-slot: hold WAL back from now on, not from first use.")
@click.option("--status", "show_status", is_flag=True, help="Print what the receiver of this directory does, as JSON.")
@json_option
@progress_option
@version_option
@click.argument("rest", nargs=-1, metavar="")
def command(rest: tuple[str, ...], **options: Any) -> int:
    """Stream write-ahead log from a PostgreSQL or PolarDB server into a directory.

    Every option of pg_receivewal 13 to 19, the same environment variables, the same files, the same exit status; either
    tool goes on in the other's directory. It follows timeline switches, reconnects, and stops cleanly on SIGTERM.
    """
    if rest:
        raise UsageError(f'too many command-line arguments (first is "{rest[0]}")')
    if options["show_status"]:
        return _show_status(options["directory"])
    asked = _request(options)
    given = {name: options[name] for name in _CONNECTION}
    settings = connection_settings(**given, application_name="pg_receivewal")
    output = current_output()
    if output is not None:
        output.add(directory=asked and asked[1].path, slot=options["slot"])
    if asked is None:
        return _change_slot(settings, options)
    return _receive(*asked, settings, output, verbose=options["verbose"])


def _check_actions(options: dict[str, Any]) -> None:
    if options["create_slot"] and options["drop_slot"]:
        raise UsageError("cannot use --create-slot together with --drop-slot")
    if options["reserve_wal"] and not options["create_slot"]:
        raise UsageError("--reserve-wal needs --create-slot", hint="a slot that is in use reserves WAL already")
    for name in ("create_slot", "drop_slot"):
        if options[name] and options["slot"] is None:
            raise UsageError(f"--{name.replace('_', '-')} needs a slot to be specified using --slot")
    if options["synchronous"] and options["no_sync"]:
        raise UsageError("cannot use --synchronous together with --no-sync")


def _change_slot(settings: ConnectionSettings, options: dict[str, Any]) -> int:
    from polarvault.server.connection import Connector
    from polarvault.walarchive.receive.slots import create_slot, drop_slot

    connector = Connector(settings)
    if options["drop_slot"]:
        drop_slot(connector, options["slot"])
    else:
        create_slot(
            connector, options["slot"], if_not_exists=options["if_not_exists"], reserve_wal=options["reserve_wal"]
        )
    if options["verbose"]:
        done = "dropped" if options["drop_slot"] else "created"
        click.echo(f'polarvault: {done} replication slot "{options["slot"]}"', err=True)
    return 0


def _request(options: dict[str, Any]) -> tuple[ReceiveRequest, DirectoryStore] | None:
    """Check the options in pg_receivewal's order; None when only a slot is to be made or dropped.

    Also then all of them: a mistake in the command line must not cost a slot.
    """
    from polarvault.model.compression import Compression
    from polarvault.walarchive.receive.request import ReceiveRequest, check_compression
    from polarvault.walarchive.store.directory import DirectoryStore

    last_lsn, interval_s = end_lsn(options["endpos"]), status_interval(options["status_interval"])
    _check_actions(options)
    changes_slot = options["create_slot"] or options["drop_slot"]
    if options["directory"] is None and not changes_slot:
        raise UsageError("no target directory specified", hint="give -D DIRECTORY")
    compression = Compression.parse(options["compress"]) if options["compress"] is not None else Compression()
    check_compression(compression)
    if changes_slot:
        return None
    synchronous = options["synchronous"]
    store = DirectoryStore(
        _directory(options["directory"]), compression=compression, sync=not options["no_sync"], synchronous=synchronous
    )
    request = ReceiveRequest(
        slot=options["slot"],
        end_lsn=last_lsn,
        loop=not options["no_loop"],
        synchronous=synchronous,
        status_interval_s=interval_s,
    )
    return request, store


def end_lsn(text: str | None) -> Lsn | None:
    """Read a position as pg_receivewal does, with scanf."""
    from polarvault.model.lsn import Lsn

    if text is None:
        return None
    high, rest = scan_hex(text)
    low = scan_hex(rest[1:])[0] if rest.startswith("/") else None
    if high is None or low is None:
        raise UsageError(f'could not parse end position "{text}"', hint="write it as 16/B374D848")
    # 0/0 is no position in the WAL, and means none to pg_receivewal.
    return Lsn(high << 32 | low) or None


def _directory(path: str | None) -> str:
    if path is None:
        raise UsageError("no target directory specified", hint="give -D DIRECTORY")
    # An empty name is most likely a shell variable without a value, and not the present directory.
    absolute = os.path.abspath(path) if path else ""
    try:
        os.scandir(absolute).close()
    except OSError as problem:
        raise StorageFailed(
            f'could not open directory "{path}": {problem.strerror}',
            hint=f"create it: mkdir -p {path}" if path and isinstance(problem, FileNotFoundError) else None,
        ) from problem
    return absolute


def _show_status(directory: str | None) -> int:
    """Add what the receiver does to the result; return a status that monitoring plugins understand."""
    from polarvault.report.receivewal import status_json
    from polarvault.walarchive.judgement import look_at_receiver

    output = current_output()
    try:
        found = look_at_receiver(_directory(directory), now=time.time())
    except PolarvaultError as problem:
        say_error(problem.message, detail=problem.detail, hint=problem.hint)
        if output is not None:
            output.error = error_json(problem)
        return _STATUS_UNKNOWN
    if output is not None:
        output.add(**status_json(found))
    return _EXIT_STATUS[found.severity.value]


def _receive(
    request: ReceiveRequest,
    store: DirectoryStore,
    settings: ConnectionSettings,
    output: JsonOutput | None,
    *,
    verbose: bool,
) -> int:
    from polarvault.report.events import ReceiveEvents
    from polarvault.report.receivewal import TextReporter, received_json
    from polarvault.server.connection import Connector
    from polarvault.walarchive.receive.run import receive_wal
    from polarvault.walarchive.receive.stop import StopRequest

    stop = StopRequest()
    connector = Connector(settings, on_connected=lambda: signals.stop_by(stop.request))
    events = current_events()
    reporter: ReceiveEvents | TextReporter = (
        TextReporter(verbose=verbose, status_line=output is None) if events is None else ReceiveEvents(events)
    )
    try:
        receive_wal(request, store, connector, reporter, stop)
    finally:
        reporter.close()
        if output is not None:
            output.warnings += reporter.warnings
            output.add(**received_json(reporter.last_state))
    if signals.received() and not stop.requested:
        # Before the first connection there is nothing to stop: the program that we stand in for dies by the signal.
        raise KeyboardInterrupt
    # A stop is not a failure: what was received is durable, and the exit status is 0, as pg_receivewal's. It knows only
    # two signals for a stop, and dies by the third.
    return 128 + signal.SIGHUP if signals.received() == signal.SIGHUP else 0
