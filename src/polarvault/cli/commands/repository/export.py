"""`polarvault export`: a backup of a repository as files that PostgreSQL's own tools read."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import click

from polarvault.cli.json_output import current_events, current_output, json_option, progress_option
from polarvault.cli.options.backups import RepositoryChoice, backup_of_cluster
from polarvault.cli.options.mappings import mapping
from polarvault.cli.options.repository import repository_options
from polarvault.errors import UsageError

_FORMATS = {"p": False, "plain": False, "t": True, "tar": True}


@click.command("export", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("backup", metavar="CLUSTER[@LABEL]")
@click.option("-D", "--pgdata", "directory", required=True, metavar="DIR", help="Where it goes: a new or empty one.")
@click.option(
    "-F", "--format", "form", metavar="p|t", default="p", show_default=True, help="A directory, or tar files."
)
@click.option("--polardata", metavar="DIR", help="Where the shared half of PolarDB goes; default: below -D.")
@click.option("-T", "--tablespace-mapping", "mappings", multiple=True, metavar="OLD=NEW",
              help="Put the tablespace at OLD into NEW.")  # fmt: skip
@click.option("-N", "--no-sync", is_flag=True, help="Do not wait for everything to be on disk.")
@click.option("-j", "--jobs", type=click.IntRange(1, 64), default=4, show_default=True, metavar="N",
              help="Blocks to fetch at a time.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Tell every step.")
@repository_options
@progress_option
@json_option
def command(
    backup: str, *, directory: str, form: str, polardata: str | None, mappings: tuple[str, ...], no_sync: bool,
    jobs: int, verbose: bool, **options: Any,
) -> None:  # fmt: skip
    """Write a backup of a repository into DIR as pg_basebackup would have: with the WAL that it needs, and a manifest
    that pg_verifybackup accepts.

    Every file is compared with the manifest as it is written. To get a server, use `polarvault restore`.
    """
    from polarvault.exchange.export import ExportRequest, export_backup
    from polarvault.report.events import BackupEvents
    from polarvault.report.repository.exchange import exported_json, exported_text
    from polarvault.report.taking import TextReporter
    from polarvault.repository.catalogue.intents import EXPORT
    from polarvault.repository.catalogue.reading import reading
    from polarvault.repository.reading.shelf import RepositoryShelf

    if form not in _FORMATS:
        raise UsageError(f'invalid format "{form}", must be "plain" or "tar"')
    if directory == "-":
        raise UsageError("a backup cannot be exported to standard output", hint="-D DIRECTORY")
    choice = RepositoryChoice.of(**options)
    word = backup_of_cluster(choice, backup)
    request = ExportRequest(
        os.path.abspath(directory),
        as_tar=_FORMATS[form],
        polardata=None if polardata is None else os.path.abspath(polardata),
        tablespace_mapping=dict(map(mapping, mappings)),
        sync=not no_sync,
        threads=jobs,
    )
    output, events = current_output(), current_events()
    with ExitStack() as stack:
        opened, chosen = stack.enter_context(choice.opened(word.cluster))
        shelf = RepositoryShelf(opened, chosen, word.cluster, config=choice.configuration.path)
        whole = shelf.whole_word(word.label)
        stack.enter_context(reading(opened.repository, EXPORT, word.cluster, whole.partition("@")[2]))
        reporter = (
            BackupEvents(events)
            if events is not None
            else stack.enter_context(TextReporter(verbose=verbose, progress=output is None and os.isatty(2)))
        )
        if output is not None:
            reporter.warnings, reporter.notes = output.warnings, output.notes
        found = export_backup(shelf.find(whole), opened.repository, request, reporter)
    if output is not None:
        output.add(**exported_json(whole, request, found))
        return
    for line in exported_text(whole, request, found):
        click.echo(line)
