"""`polarvault wal stream`: receive WAL of a cluster into its repositories, until told to stop."""

from __future__ import annotations

import os
import shlex
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from polarvault.cli import signals
from polarvault.cli.hooks import told_to_hooks
from polarvault.cli.json_output import current_events, current_output, json_option, progress_option
from polarvault.cli.messages import say_error
from polarvault.cli.options.configuration import configured_connection
from polarvault.cli.options.drop_in import connection_options, connection_settings
from polarvault.cli.options.repository import repository_options
from polarvault.errors import PolarvaultError, UsageError
from polarvault.report.json_document import error_json

if TYPE_CHECKING:
    from polarvault.cli.json_output import JsonOutput
    from polarvault.cli.options.backups import RepositoryChoice
    from polarvault.config.model import ClusterConfiguration, Configuration
    from polarvault.server.connection import ConnectionSettings
    from polarvault.walarchive.receive.request import ReceiveRequest
    from polarvault.walarchive.streaming.run import StreamJob

_EXIT_STATUS = {"ok": 0, "warning": 1, "problem": 2}
_STATUS_UNKNOWN = 3
_CONNECTION = ("dbname", "host", "port", "username", "no_password", "password")
_CHOICE = ("config", "repo", "key_file", "passphrase_file", "passphrase_command")
_LEAST_SLICE, _MOST_SLICE = 64 << 10, 32 << 20


@click.command("stream", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("cluster", metavar="CLUSTER")
@click.option(
    "-S", "--slot", metavar="SLOTNAME",
    help="Replication slot to use; made on each server where it is missing. Default: that of the configuration.",
)  # fmt: skip
@click.option("--spool", metavar="DIR", help="Keep received WAL here until every repository has it.")
@click.option("--spool-max", metavar="SIZE", help="What may wait in the spool, as 20GB; then no more is received.")
@click.option(
    "--synchronous", is_flag=True, help="With --spool: WAL is durable there at once, for synchronous commits."
)
@click.option(
    "--slice-size", metavar="SIZE", default="16MB", show_default=True, help="How long a range gets at most, up to 32MB."
)
@click.option(
    "--slice-interval", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, metavar="SECS",
    help="How long WAL waits for its range to be written.",
)  # fmt: skip
@click.option("-s", "--status-interval", metavar="SECS", default="10", help="Time between status packets.")
@click.option("-E", "--endpos", metavar="LSN", help="Exit after receiving the specified LSN.")
@click.option("-n", "--no-loop", is_flag=True, help="Do not loop on connection lost.")
@click.option("-v", "--verbose", is_flag=True, help="Output verbose messages.")
@click.option(
    "--status", "show_status", is_flag=True, help="Say what the receiver does, and exit as a monitoring plugin."
)
@click.option("--flush-spool", is_flag=True, help="Upload what is in the spool, and end; no server is needed.")
@repository_options
@connection_options
@progress_option
@json_option
def command(cluster: str, **options: Any) -> int:
    """Receive WAL of a cluster into its repositories, until told to stop.

    Follows timeline switches and failovers (several hosts in the connection string), connects again when the connection
    is lost, and goes on at the very byte. What is acknowledged to the server is durable in every repository, or with
    --spool in the spool; while a repository is away, its WAL waits there.

    Exit status: 0, it was told to stop; 1, it cannot go on, for the reason that is said. With --status: 0 all is well,
    1 look at it soon, 2 act now, 3 unknown.
    """
    from polarvault.cli.options.backups import RepositoryChoice
    from polarvault.config.model import ClusterConfiguration
    from polarvault.repository.format.names import check_word
    from polarvault.walarchive.streaming.run import status_directory

    check_word(cluster, "a cluster")
    choice = RepositoryChoice.of(**{name: options[name] for name in _CHOICE})
    configured = choice.configuration.clusters.get(cluster, ClusterConfiguration(cluster))
    addresses = [one.address for one in choice.repositories(cluster)]
    state_path = status_directory(cluster, addresses, os.environ)
    output = current_output()
    if output is not None:
        output.add(cluster=cluster, repositories=addresses)
    if options["show_status"]:
        return _show_status(cluster, state_path, output)
    with told_to_hooks(choice.configuration, cluster, "wal stream", failures_only=True), ExitStack() as stack:
        job = _job(cluster, choice, configured, state_path, stack, options)
        if options["flush_spool"]:
            return _flush(job, output)
        given = {name: options[name] for name in _CONNECTION}
        if given["dbname"] is None:
            given["dbname"] = configured_connection(configured)
        settings = connection_settings(**given, application_name="polarvault")
        return _stream(
            job, _request(cluster, configured, options), settings, output, choice.configuration,
            verbose=options["verbose"],
        )  # fmt: skip


def _job(
    cluster: str,
    choice: RepositoryChoice,
    configured: ClusterConfiguration,
    state_path: str,
    stack: ExitStack,
    options: dict[str, Any],
) -> StreamJob:
    from functools import partial

    from polarvault.repository.catalogue.opening import open_repository
    from polarvault.walarchive.streaming.places import open_by
    from polarvault.walarchive.streaming.run import StreamJob
    from polarvault.walarchive.streaming.spool import Spool
    from polarvault.walarchive.streaming.store import StreamSettings

    spool = options["spool"] if options["spool"] is not None else configured.spool
    most_bytes = _size("--spool-max", options["spool_max"]) if options["spool_max"] else configured.spool_max
    if spool is None and options["spool_max"] is not None:
        raise UsageError("--spool-max means nothing without a spool", hint="name it: --spool DIR")
    if spool is not None and most_bytes is None:
        raise UsageError("how much may wait in the spool is not said", hint="as --spool-max 20GB")
    if options["synchronous"] and spool is None:
        raise UsageError(
            "--synchronous needs --spool: a commit would wait for a whole round to the repository",
            hint="add --spool DIR --spool-max SIZE, on a disk of this machine",
        )
    if options["flush_spool"] and spool is None:
        raise UsageError("--flush-spool needs --spool DIR and --spool-max SIZE")
    slice_bytes = _size("--slice-size", options["slice_size"])
    if not _LEAST_SLICE <= slice_bytes <= _MOST_SLICE:
        raise UsageError(f'--slice-size "{options["slice_size"]}" is out of range: 64kB to 32MB')
    openers = {
        one.address: (lambda one=one: open_repository(one, os.environ).repository)
        for one in choice.repositories(cluster)
    }
    return StreamJob(
        cluster=cluster,
        open_repositories=open_by(stack, openers),
        state_path=state_path,
        settings=StreamSettings(slice_bytes=slice_bytes, synchronous=options["synchronous"]),
        make_spool=None if spool is None else partial(Spool, spool, cluster, most_bytes or 0),
    )


def _request(cluster: str, configured: ClusterConfiguration, options: dict[str, Any]) -> ReceiveRequest:
    from polarvault.cli.commands.receivewal import end_lsn
    from polarvault.cli.options.drop_in import status_interval
    from polarvault.walarchive.receive.request import ReceiveRequest

    slot = options["slot"] if options["slot"] is not None else configured.slot
    return ReceiveRequest(
        slot=slot,
        end_lsn=end_lsn(options["endpos"]),
        loop=not options["no_loop"],
        synchronous=options["synchronous"],
        status_interval_s=status_interval(options["status_interval"]),
        sync_every_s=options["slice_interval"],
        create_slot=slot is not None,
        command=f"polarvault wal stream {shlex.quote(cluster)}",
    )


def _stream(
    job: StreamJob, request: ReceiveRequest, settings: ConnectionSettings, output: JsonOutput | None,
    configuration: Configuration, *, verbose: bool,
) -> int:  # fmt: skip
    from polarvault.cli.receiver_hooks import OutageHooks
    from polarvault.report.events import ReceiveEvents
    from polarvault.report.receivewal import TextReporter, received_json
    from polarvault.server.connection import Connector
    from polarvault.walarchive.receive.stop import StopRequest
    from polarvault.walarchive.streaming.run import stream_wal

    stop = StopRequest()
    connector = Connector(settings, on_connected=lambda: signals.stop_by(stop.request))
    events = current_events()
    reporter: ReceiveEvents | TextReporter = (
        TextReporter(verbose=verbose, status_line=output is None) if events is None else ReceiveEvents(events)
    )
    if request.slot is None:
        reporter.note("no slot is used: the server may remove WAL before it has been received (name one: --slot NAME)")
    try:
        told = OutageHooks(reporter, configuration, job.cluster, "wal stream")
        stream_wal(job, request, connector, told, stop)
    except KeyboardInterrupt:
        # Before it is connected a signal interrupts, for a server may never answer. It was told to stop, as later.
        if not signals.received():
            raise
    finally:
        reporter.close()
        if output is not None:
            output.warnings += reporter.warnings
            output.add(slot=request.slot, **received_json(reporter.last_state))
    return 128 + signal.SIGHUP if signals.received() == signal.SIGHUP else 0


def _flush(job: StreamJob, output: JsonOutput | None) -> int:
    from polarvault.report.receivewal import uploaded_json
    from polarvault.walarchive.streaming.run import flush_spool

    done = flush_spool(job)
    if output is not None:
        output.add(**uploaded_json(done))
    else:
        click.echo(f"uploaded {done} slices of WAL" if done else "nothing waits in the spool")
    return 0


def _show_status(cluster: str, state_path: str, output: JsonOutput | None) -> int:
    """Add what the receiver does to the result, or print it; return a status that monitoring plugins understand."""
    from polarvault.report.receivewal import status_json, status_text
    from polarvault.walarchive.judgement import look_at_receiver

    try:
        found = look_at_receiver(state_path, now=time.time(), command=f"polarvault wal stream {shlex.quote(cluster)}")
    except PolarvaultError as problem:
        say_error(problem.message, detail=problem.detail, hint=problem.hint)
        if output is not None:
            output.error = error_json(problem)
        return _STATUS_UNKNOWN
    if output is not None:
        output.add(**status_json(found))
    else:
        for line in status_text(found):
            click.echo(line)
    return _EXIT_STATUS[found.severity.value]


def _size(option: str, text: str) -> int:
    from polarvault.config.values import size_bytes

    try:
        return size_bytes(text)
    except ValueError as problem:
        raise UsageError(f"{option} {problem}") from None
