"""`polarvault list`: which backups of a cluster there are."""

from __future__ import annotations

from typing import Any

import click

from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.options.backups import RepositoryChoice
from polarvault.cli.options.repository import repository_options


@click.command("list", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("cluster", metavar="[CLUSTER]", required=False)
@click.option("--expired", is_flag=True, help="Show backups as well that are expired and not removed yet.")
@repository_options
@json_option
def command(cluster: str | None, *, expired: bool, **options: Any) -> None:
    """List the backups of a cluster, or of all clusters of a repository.

    Sizes: SIZE of the files; NEW, what of them became data that is stored, before compression; STORED, what the backup
    takes in the repository. RESTORABLE UNTIL: up to which LSN the WAL behind the backup leads without a gap, and on
    which timeline.
    """
    from polarvault.report.repository.catalogue import listed_json, listed_text
    from polarvault.repository.catalogue.listing import Catalogue

    choice = RepositoryChoice.of(**options)
    with choice.opened(cluster or "") as (opened, chosen):
        names = [cluster] if cluster is not None else opened.repository.clusters()
        found = {name: Catalogue(opened.repository, name).backups() for name in names}
    shown = {
        name: [one for one in backups if expired or not one.standing.expired] for name, backups in found.items()
    }  # fmt: skip
    output = current_output()
    if output is not None:
        output.add(clusters=[listed_json(name, chosen.address, backups) for name, backups in shown.items()])
        return
    if not shown:
        click.echo(f"{chosen.address} holds no backups")
    for name, backups in shown.items():
        for line in listed_text(name, backups):
            click.echo(line)
