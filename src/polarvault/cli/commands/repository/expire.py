"""`polarvault expire`: remove the backups of a cluster that its policy does not keep, and the WAL that nobody needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from polarvault.cli.hooks import told_to_hooks
from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.messages import say_error
from polarvault.cli.options.backups import RepositoryChoice
from polarvault.cli.options.durations import seconds_of
from polarvault.cli.options.repository import repository_options
from polarvault.errors import StorageFailed
from polarvault.report.json_document import error_json

if TYPE_CHECKING:
    from polarvault.config.model import Retention

_NUMBER = click.IntRange(1, 100_000)


@click.command("expire", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("cluster", metavar="CLUSTER")
@click.option("--window", metavar="TIME", help="Every moment of so long can be restored: 14d, 4w.")
@click.option("--keep", type=_NUMBER, metavar="N", help="Keep the last N good backups.")
@click.option("--daily", type=_NUMBER, metavar="N", help="Keep the last one of each of N days.")
@click.option("--weekly", type=_NUMBER, metavar="N", help="Keep the last one of each of N weeks.")
@click.option("--monthly", type=_NUMBER, metavar="N", help="Keep the last one of each of N months.")
@click.option("--yearly", type=_NUMBER, metavar="N", help="Keep the last one of each of N years.")
@click.option("--dry-run", is_flag=True, help="Say what is kept, what would go, and why; remove nothing.")
@click.option(
    "--safety-time", default="1d", show_default=True, metavar="TIME",
    help="Remove no pack and no WAL that is younger, by the clock of the store.",
)  # fmt: skip
@click.option(
    "--compact-below", type=click.IntRange(0, 100), default=50, show_default=True, metavar="PERCENT",
    help="Write anew what lives in packs of which less than so much lives, so that a later run removes them; 0: never.",
)  # fmt: skip
@repository_options
@json_option
def command(
    cluster: str, *, window: str | None, keep: int | None, daily: int | None, weekly: int | None, monthly: int | None,
    yearly: int | None, dry_run: bool, safety_time: str, compact_below: int, **options: Any,
) -> int:  # fmt: skip
    """Remove the backups of CLUSTER that its policy does not keep.

    The policy is that of the configuration; rules on the command line take the place of all of it. The last good backup
    and pinned ones are always kept. Of WAL everything is kept from the first backup of the window, or of those kept by
    number, on; for older backups what makes them consistent. What lives in packs that are mostly dead is written anew.
    With several repositories each is looked at by itself.
    """
    import os

    from polarvault.config.model import Retention
    from polarvault.report.repository.retention import expired_json, expired_text
    from polarvault.repository.catalogue.opening import open_repository
    from polarvault.retention.expire import ExpireRequest, expire

    choice = RepositoryChoice.of(**options)
    with told_to_hooks(choice.configuration, cluster, "expire") as told:
        given = Retention(
            None if window is None else seconds_of("--window", window), keep, daily, weekly, monthly, yearly
        )  # fmt: skip
        policy = given if given != Retention() else _configured(choice, cluster)
        request = ExpireRequest(
            cluster, policy, dry_run=dry_run, safety_s=seconds_of("--safety-time", safety_time),
            compact_below=compact_below / 100,
        )  # fmt: skip
        reports, failed = [], []
        for chosen in choice.repositories(cluster):
            try:
                opened = open_repository(chosen, os.environ)
            except StorageFailed as problem:
                # One of several that is away keeps nothing in the others.
                failed.append(problem)
                told.error = error_json(problem)
                say_error(problem.message, hint=problem.hint)
                continue
            try:
                reports.append((chosen.address, expire(opened.repository, request)))
            finally:
                opened.close()
        if not reports:
            raise failed[0]
        output = current_output()
        document = [{"repository": address, **expired_json(report)} for address, report in reports]
        told.add(repositories=document)
        if output is not None:
            output.add(repositories=document)
        else:
            for address, report in reports:
                click.echo(f"{cluster} in {address}")
                for line in expired_text(report):
                    click.echo(line)
        if failed or any(report.removed.refused or report.compacted.problem for _, report in reports):
            told.exit_status = 1
        return told.exit_status


def _configured(choice: RepositoryChoice, cluster: str) -> Retention:
    from polarvault.config.model import Retention

    configured = choice.configuration.clusters.get(cluster)
    return configured.retention if configured is not None else Retention()
