"""`polarvault snapshot`: snapshots of running servers. Parses, calls the use cases, renders."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polarvault.cli import signals
from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.options.configuration import config_option, configured_connection, load
from polarvault.cli.options.drop_in import connection_options, connection_settings
from polarvault.cli.options.kept import directory_of
from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.config.model import Configuration
    from polarvault.report.taking import TextReporter
    from polarvault.server.connection import Connector
    from polarvault.snapshotting.model import SnapshotRecord, SnapshotRequest
    from polarvault.snapshotting.shelf import Shelf

Function = TypeVar("Function", bound=Callable[..., Any])
_CONNECTION = ("dbname", "host", "port", "username", "no_password", "password")


def _at_option(function: Function) -> Function:
    return click.option(
        "--at", metavar="DIR",
        help="The directory of snapshots; default: `snapshots` in the directory for state. On the XFS or btrfs of the "
        "server's files, or where they lie on ZFS, a snapshot takes no room.",
    )(function)  # fmt: skip


@click.group("snapshot", context_settings={"help_option_names": ["-?", "--help"]})
def command() -> None:
    """Snapshots of running servers: each of them is a backup that can be cloned, drilled and restored."""


@command.command("create", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("cluster", required=False, metavar="[CLUSTER]")
@click.option("-D", "--pgdata", "data", metavar="DIR",
              help="Without a connection: the data directory. Only where all of it is of one moment.")  # fmt: skip
@click.option("--polardata", "shared", metavar="DIR",
              help="Without a connection: PolarDB's shared half; default: where the settings say.")  # fmt: skip
@click.option("--name", metavar="NAME", help="What the snapshot is called; default: its id.")
@click.option("--label", default="polarvault snapshot", show_default=True, metavar="TEXT", help="For backup_label.")
@click.option(
    "--checkpoint", type=click.Choice(["fast", "spread"]), default="fast", show_default=True,
    help="How the server makes the checkpoint with which it begins.",
)  # fmt: skip
@click.option(
    "--checkpoint-timeout", metavar="SECS", type=float, default=60.0, show_default=True,
    help="PolarDB: give up and name the slot when one holds the checkpoint up for so long.",
)  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Tell every step.")
@_at_option
@config_option
@connection_options
@json_option
def create(
    cluster: str | None, *, data: str | None, shared: str | None, name: str | None, label: str, checkpoint: str,
    checkpoint_timeout: float, verbose: bool, at: str | None, config: str | None, **connection: Any,
) -> None:  # fmt: skip
    """Take a snapshot of a running server, primary or standby, on its own host.

    CLUSTER is a cluster of the configuration, which says where the server is; or the connection options do. The server
    is told by pg_backup_start and pg_backup_stop, and the WAL between is kept, so that the snapshot is a backup.

    With -D nobody is told: of a server that runs or was shut down, where everything, WAL included, lies in one snapshot
    of one moment (ZFS, one subvolume of btrfs). It is consistent from the end of its WAL on, or from where a standby
    had got to.
    """
    from polarvault.report.snapshots import snapshot_json, snapshot_text
    from polarvault.report.taking import TextReporter
    from polarvault.server.connection import Connector
    from polarvault.snapshotting.model import SnapshotRequest

    if (data is not None) and (cluster is not None or any(connection[word] for word in _CONNECTION)):
        raise UsageError("-D takes a snapshot without a connection", hint="leave it out, or name no server")
    if data is None and shared is not None:
        raise UsageError("--polardata is for -D", hint="leave it out: the server says where its shared half is")
    configuration = load(config)
    _connect_to(cluster, configuration, connection)
    request = SnapshotRequest(
        at=shelf_at(at).path, name=name, label=label, checkpoint_fast=checkpoint == "fast",
        checkpoint_timeout_s=checkpoint_timeout, configured=tuple(configuration.snapshots.values()),
    )  # fmt: skip
    output = current_output()
    with ExitStack() as stack:
        reporter = stack.enter_context(TextReporter(verbose=verbose, progress=False))
        if output is not None:
            reporter.warnings, reporter.notes = output.warnings, output.notes
        settings = connection_settings(**{word: connection[word] for word in _CONNECTION})
        connector = Connector(settings, on_connected=signals.interrupt)
        record = _create(request, data, shared, connector, reporter)
    status = shelf_at(at).find(record.id).status()
    if output is not None:
        output.add(snapshot=snapshot_json(status, datetime.now(UTC)))
        return
    for line in snapshot_text(status):
        click.echo(line)


@command.command("follow", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("cluster", required=False, metavar="[CLUSTER]")
@click.option("-D", "--pgdata", "data", metavar="DIR",
              help="Without a connection: of this data directory; a server that is named is only asked.")  # fmt: skip
@click.option("--polardata", "shared", metavar="DIR", help="With -D: PolarDB's shared half.")
@click.option("--every", default="15min", show_default=True, metavar="TIME", help="How often, as 15min or 1h.")
@click.option("--keep", type=click.IntRange(1, 100_000), default=96, show_default=True, metavar="N",
              help="How many of the newest stay.")  # fmt: skip
@click.option("--daily", type=click.IntRange(0, 100_000), default=0, show_default=True, metavar="N",
              help="And the last one of each of so many days.")  # fmt: skip
@click.option(
    "--name", "series", metavar="NAME", help="What they are called, with the time behind it; default: CLUSTER."
)
@click.option("--once", is_flag=True, help="Take one and end, for a timer.")
@_at_option
@config_option
@connection_options
@json_option
def follow_source(
    cluster: str | None, *, data: str | None, shared: str | None, every: str, keep: int, daily: int, series: str | None,
    once: bool, at: str | None, config: str | None, **connection: Any,
) -> int:  # fmt: skip
    """Take a snapshot again and again, of a standby best; remove those that are over.

    Before each it is looked whether the standby replays and whether WAL is archived. A snapshot that fails is told and
    taken again at its next time. Those that were taken otherwise are never removed. SIGTERM ends it when the
    snapshot that is being taken is whole.

    Exit status: 0; 1, with --once, no snapshot was taken.
    """
    from polarvault.cli.options.durations import seconds_of
    from polarvault.report.taking import TextReporter
    from polarvault.server.connection import Connector
    from polarvault.snapshots.names import is_good_name
    from polarvault.snapshotting.follow import Following, follow
    from polarvault.snapshotting.model import SnapshotRequest

    if data is None and shared is not None:
        raise UsageError("--polardata is for -D", hint="leave it out: the server says where its shared half is")
    called = series or cluster or "follow"
    if not is_good_name(called):
        raise UsageError(f"{called!r} cannot be the name of snapshots", hint="choose one: --name NAME")
    every_s = seconds_of("--every", every)
    configuration = load(config)
    is_asked = cluster is not None or any(connection[word] for word in _CONNECTION)
    _connect_to(cluster, configuration, connection)
    connector = Connector(connection_settings(**{word: connection[word] for word in _CONNECTION}))
    shelf, output, stop = shelf_at(at), current_output(), threading.Event()
    signals.stop_by(stop.set)
    with ExitStack() as stack:
        reporter = stack.enter_context(TextReporter(verbose=False, progress=False))
        if output is not None:
            reporter.warnings, reporter.notes = output.warnings, output.notes

        def take() -> SnapshotRecord:
            now = datetime.now(UTC)
            request = SnapshotRequest(
                at=shelf.path, name=f"{called}-{now:%Y%m%dT%H%M%S}", series=called,
                configured=tuple(configuration.snapshots.values()),
            )  # fmt: skip
            return _create(request, data, shared, connector, reporter)

        following = Following(
            shelf, called, every_s, keep, daily, take,
            connector.sql if data is None or is_asked else None, stop.wait, lambda: datetime.now(UTC), once,
        )  # fmt: skip
        done = follow(following, reporter)
    if output is not None:
        output.add(taken=done.taken, removed=done.removed, failed=done.failed)
    return int(once and not done.taken)


def _connect_to(cluster: str | None, configuration: Configuration, connection: dict[str, Any]) -> None:
    """Take the connection of a cluster from the configuration, unless the options name a server."""
    if cluster is None or connection["dbname"] is not None:
        return
    if cluster not in configuration.clusters:
        raise UsageError(
            f'there is no cluster "{cluster}" in the configuration', hint="see polarvault config show; or name the "
            "server: -d CONNSTR",
        )  # fmt: skip
    connection["dbname"] = configured_connection(configuration.clusters[cluster])


def _create(
    request: SnapshotRequest, data: str | None, shared: str | None, connector: Connector, reporter: TextReporter
) -> SnapshotRecord:
    if data is not None:
        from polarvault.snapshotting.alone import create_snapshot_alone

        return create_snapshot_alone(request, data, shared, reporter, clock=lambda: datetime.now(UTC))
    from polarvault.snapshotting.create import create_snapshot

    return create_snapshot(request, connector, reporter, clock=lambda: datetime.now(UTC))


@command.command("list", context_settings={"help_option_names": ["-?", "--help"]})
@_at_option
@json_option
def list_snapshots(at: str | None) -> int:
    """List the snapshots, and see whether what they are made of is still there.

    Exit status: 0; 1, one is gone, removed by somebody else.
    """
    from polarvault.report.snapshots import list_text, snapshot_json
    from polarvault.snapshotting.model import SnapshotState

    shelf, now = shelf_at(at), datetime.now(UTC)
    shelf.sweep()
    statuses = [slot.status() for slot in shelf.slots()]
    output = current_output()
    if output is not None:
        output.add(directory=shelf.path, snapshots=[snapshot_json(one, now) for one in statuses])
    else:
        for line in list_text(statuses, now, shelf.path):
            click.echo(line)
    return int(any(one.state is SnapshotState.GONE for one in statuses))


@command.command("remove", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_at_option
@json_option
def remove(names: tuple[str, ...], at: str | None) -> None:
    """Remove snapshots; clones that were made of them by reflink stay whole, but cannot be reset any more."""
    from polarvault.snapshotting.create import remove_snapshot

    shelf = shelf_at(at)
    for name in names:
        click.echo(f"removed {remove_snapshot(shelf, name)}", err=True)
    output = current_output()
    if output is not None:
        output.add(removed=list(names))


def shelf_at(at: str | None) -> Shelf:
    """Return the directory of snapshots that --at names, or the default."""
    from polarvault.snapshotting.shelf import Shelf

    return Shelf(directory_of(at, "snapshots"))
