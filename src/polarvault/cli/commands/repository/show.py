"""`polarvault show`: everything about one backup of a repository."""

from __future__ import annotations

from typing import Any

import click

from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.options.backups import RepositoryChoice, backup_of_cluster
from polarvault.cli.options.repository import repository_options
from polarvault.errors import RepositoryNotFound


@click.command("show", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("backup", metavar="CLUSTER[@LABEL]")
@click.option("--files", is_flag=True, help="List all files, a line each; with --json an object a line, and no other.")
@repository_options
@json_option
def command(backup: str, *, files: bool, **options: Any) -> None:
    """Show everything about a backup: the last one of a cluster, or the one whose label begins so."""
    from polarvault.report.repository.catalogue import file_lines, shown_json, shown_text
    from polarvault.repository.catalogue.listing import Catalogue
    from polarvault.repository.format.names import ClusterNames
    from polarvault.repository.reading.refs import read_refs

    choice = RepositoryChoice.of(**options)
    word = backup_of_cluster(choice, backup)
    output = current_output()
    with choice.opened(word.cluster) as (opened, _):
        repository = opened.repository
        one = Catalogue(repository, word.cluster).find(word.label)
        if one.record is None:
            raise RepositoryNotFound(f"{word.cluster}@{one.label} cannot be read: {one.problem}")
        reader = repository.open_backup(word.cluster, one.label)
        if files:
            for line in file_lines(reader, as_json=output is not None):
                click.echo(line)
            return
        packs = read_refs(repository.store, repository.codec, ClusterNames.of(word.cluster), one.label).packs
        if output is not None:
            output.add(**shown_json(word.cluster, one, reader, packs))
            return
        for line in shown_text(word.cluster, one, reader, packs):
            click.echo(line)
