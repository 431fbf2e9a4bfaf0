"""`polarvault status`: how all clusters stand, for people and for monitoring."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.options.backups import RepositoryChoice
from polarvault.cli.options.repository import repository_options
from polarvault.errors import PolarvaultError

if TYPE_CHECKING:
    from polarvault.status.model import Target


@click.command("status", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("clusters", metavar="[CLUSTER...]", nargs=-1)
@click.option(
    "--format", "form", type=click.Choice(["text", "nagios", "prometheus", "json"]), default="text", show_default=True,
    help="What is printed: a screen; a line with perfdata; a textfile for node_exporter; the same as --json.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True, metavar="SECS",
    help="How long repositories are waited for, all together.",
)  # fmt: skip
@repository_options
@json_option
def command(clusters: tuple[str, ...], *, form: str, timeout: float, **options: Any) -> int:
    """Show how CLUSTERs stand, or all of the configuration: problems first, each with the line to type.

    The last good backup; up to which moment can be restored, and since when; what it takes, and what backups have
    added in a day and in seven; the last verification, the last drill. Limits come from the configuration. All
    repositories are asked at once.

    Exit status: 0, all is well; 1, a limit is passed; 2, twice the limit is passed, or something is wrong; 3, not
    known: a repository does not answer, or the command line or the configuration is wrong.
    """
    from polarvault.report.repository.monitoring import nagios_line, prometheus_text
    from polarvault.report.repository.status import status_json, status_text
    from polarvault.status.run import look_at_status

    try:
        choice = RepositoryChoice.of(**options)
        targets = _targets(choice, clusters)
        status = look_at_status(
            choice.configuration, targets, os.environ, now=datetime.now(UTC), timeout_s=timeout
        )  # fmt: skip
    except PolarvaultError as problem:
        if form == "nagios":
            # A plugin's word is on standard output.
            click.echo(f"POLARVAULT UNKNOWN - {' '.join(problem.message.split())}".replace("|", "/"))
        raise
    output = current_output()
    if output is not None:
        output.add(**status_json(status))
        return status.level.value
    if form == "nagios":
        lines = iter([nagios_line(status)])
    else:
        lines = prometheus_text(status) if form == "prometheus" else status_text(status)
    for line in lines:
        click.echo(line)
    return status.level.value


def _targets(choice: RepositoryChoice, clusters: tuple[str, ...]) -> list[Target]:
    from polarvault.repository.format.names import check_word
    from polarvault.status.model import Target

    known = choice.configuration.clusters
    if not clusters and (choice.repo is not None or not known):
        return [Target(None, one) for one in choice.repositories("")]
    return [
        Target(check_word(cluster, "a cluster"), repository, configured=cluster in known)
        for cluster in clusters or known
        for repository in choice.repositories(cluster)
    ]
