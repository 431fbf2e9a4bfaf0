"""`polarvault backup`: take a backup of a cluster into its repository."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import click

from polarvault.cli import signals
from polarvault.cli.hooks import told_to_hooks
from polarvault.cli.json_output import current_events, current_output, json_option, progress_option
from polarvault.cli.options.configuration import configured_connection, load
from polarvault.cli.options.drop_in import connection_options, connection_settings
from polarvault.cli.options.repository import key_source, repository_options
from polarvault.cli.options.source import source_option
from polarvault.errors import PolarvaultError, UsageError

_CONNECTION = ("dbname", "host", "port", "username", "no_password", "password")
_KEYS = ("key_file", "passphrase_file", "passphrase_command")
_MIN_RATE, _MAX_RATE = 32 << 10, 1 << 30


@click.command("backup", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("cluster", metavar="CLUSTER")
@click.option("--full", is_flag=True, help="Compare with no earlier backup; everything is stored anew.")
@click.option("--note", metavar="TEXT", help="A word for people, which list and show print.")
@click.option(
    "--checkpoint", type=click.Choice(["fast", "spread"]), default="fast", show_default=True,
    help="How the server makes the checkpoint with which a backup begins.",
)  # fmt: skip
@click.option("--max-rate", metavar="RATE", help="Bytes a second from the server at most, with suffix k, M or G.")
@click.option(
    "--nice-to-server", is_flag=True,
    help="Slow down, to 1 MB a second at least, while a commit or the server's standbys take longer than the limits.",
)  # fmt: skip
@click.option(
    "--commit-limit", type=click.FloatRange(0.1, 60_000), default=50.0, show_default=True, metavar="MS",
    help="With --nice-to-server: how long a commit may take, in milliseconds.",
)  # fmt: skip
@click.option(
    "--lag-limit", type=click.FloatRange(0.1, 86_400), default=10.0, show_default=True, metavar="SECS",
    help="With --nice-to-server: how far standbys may be behind.",
)  # fmt: skip
@click.option(
    "-S", "--slot", metavar="SLOTNAME", help="Replication slot to use for the WAL, instead of a temporary one."
)
@click.option(
    "--checkpoint-timeout", metavar="SECS", type=float, default=60.0, show_default=True,
    help="PolarDB: give up and name the slot when one holds the checkpoint up for so long.",
)  # fmt: skip
@source_option("auto")
@click.option("-v", "--verbose", is_flag=True, help="Tell every step.")
@repository_options
@connection_options
@progress_option
@json_option
def command(
    cluster: str, *, full: bool, note: str | None, checkpoint: str, max_rate: str | None, nice_to_server: bool,
    commit_limit: float, lag_limit: float, slot: str | None, checkpoint_timeout: float, source: str, verbose: bool,
    config: str | None, repo: str | None, **options: Any,
) -> int:  # fmt: skip
    """Take a backup of a running cluster into its repository.

    Every backup is a full one to restore; of what the last one on the same timeline has, only changed pages are stored.
    The WAL that it needs is streamed along. CLUSTER is the name that the cluster has in the repository; where the
    server is says the configuration, or the connection options and PostgreSQL's environment variables.
    """
    from dataclasses import replace

    from polarvault.backup.request import BackupJob
    from polarvault.backup.take import take_backup
    from polarvault.config.choice import choose_repositories
    from polarvault.config.model import ClusterConfiguration
    from polarvault.report.events import BackupEvents
    from polarvault.report.repository.backup import taken_json, taken_text
    from polarvault.report.taking import TextReporter
    from polarvault.repository.catalogue.opening import open_repository
    from polarvault.repository.format.names import check_word
    from polarvault.server.connection import Connector
    from polarvault.taking.request import CourtesyLimits, SourceKind

    check_word(cluster, "a cluster")
    configuration = load(config)
    with told_to_hooks(configuration, cluster, "backup") as told:
        configured = configuration.clusters.get(cluster, ClusterConfiguration(cluster))
        chosen = choose_repositories(configuration, cluster, repo)
        key = key_source(**{name: options[name] for name in _KEYS})
        output, events = current_output(), current_events()
        job = BackupJob(
            cluster=cluster,
            full=full,
            note=note,
            checkpoint_fast=checkpoint == "fast",
            level=configured.compression,
            max_rate=configured.max_rate if max_rate is None else _rate(max_rate),
            courtesy=CourtesyLimits(commit_limit / 1000, lag_limit) if nice_to_server else None,
            estimate_size=True,
            slot=slot,
            checkpoint_timeout_s=checkpoint_timeout,
            source=SourceKind(source),
        )
        connection = {name: options[name] for name in _CONNECTION}
        if connection["dbname"] is None:
            connection["dbname"] = configured_connection(configured)
        connector = Connector(connection_settings(**connection), on_connected=signals.interrupt)
        with ExitStack() as stack:
            repositories, unopened = [], {}
            for one in chosen:
                try:
                    opened = open_repository(one if key is None else replace(one, key=key), os.environ)
                except PolarvaultError as problem:
                    # One of several that is away must not keep the backup from the others.
                    unopened[one.address] = problem
                    continue
                stack.callback(opened.close)
                repositories.append(opened.repository)
            if not repositories:
                raise next(iter(unopened.values()))
            reporter = (
                BackupEvents(events)
                if events is not None
                else stack.enter_context(TextReporter(verbose=verbose, progress=output is None and os.isatty(2)))
            )
            if output is not None:
                told.warnings, told.notes = output.warnings, output.notes
            reporter.warnings, reporter.notes = told.warnings, told.notes
            taken = take_backup(job, repositories, connector, reporter, unopened=unopened)
        told.add(**taken_json(taken))
        told.exit_status = taken.exit_status
        if output is not None:
            output.add(**taken_json(taken))
        else:
            for line in taken_text(taken):
                click.echo(line)
        return taken.exit_status


def _rate(text: str) -> int:
    number, unit = text.rstrip("kMG"), text[len(text.rstrip("kMG")) :]
    if not (number.isascii() and number.isdecimal() and len(number) < 12 and len(unit) < 2):
        raise UsageError(f'"{text}" is no rate', hint="write bytes a second, as 50M")
    rate = int(number) * {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}[unit]
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise UsageError(f'the rate "{text}" is out of range: 32k to 1G')
    return rate
