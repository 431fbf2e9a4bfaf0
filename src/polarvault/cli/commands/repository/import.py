"""`polarvault import`: a backup that lies in files becomes one in a repository."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import click

from polarvault.cli.json_output import current_events, current_output, json_option, progress_option
from polarvault.cli.options.backups import RepositoryChoice
from polarvault.cli.options.repository import repository_options
from polarvault.errors import UsageError


@click.command("import", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("cluster", metavar="CLUSTER")
@click.argument("path", metavar="BACKUP", type=click.Path())
@click.option("--shared-from", metavar="DIR", help="Where the backup's shared half is, if it cannot be found.")
@click.option("--wal", "wal_directories", multiple=True, metavar="DIR",
              help="A directory with the backup's WAL, if that does not come with it; may be repeated.")  # fmt: skip
@click.option("--stop-lsn", metavar="LSN", help="Where the backup ends, if it has no manifest that says it.")
@click.option("--note", metavar="TEXT", help="A word for people, which list and show print.")
@click.option("-v", "--verbose", is_flag=True, help="Tell every step.")
@repository_options
@progress_option
@json_option
def command(
    cluster: str, path: str, *, shared_from: str | None, wal_directories: tuple[str, ...], stop_lsn: str | None,
    note: str | None, verbose: bool, **options: Any,
) -> None:  # fmt: skip
    """Take BACKUP into the repository of CLUSTER: a directory or tar files of pg_basebackup, polarvault basebackup or
    polar_basebackup (both halves), or Barman's SERVER/base/ID with its WAL in SERVER/wals.

    Its label has the time at which the backup was taken. Every file is compared with the manifest, if there is one; the
    WAL up to the end of the backup has to be there. Import backups of a cluster oldest first: each is compared with
    those before it, and only what changed is stored. BACKUP itself is only read.
    """
    from polarvault.exchange.taking_in import ImportRequest, import_backup
    from polarvault.model.lsn import Lsn
    from polarvault.report.events import BackupEvents
    from polarvault.report.repository.exchange import imported_json, imported_text
    from polarvault.report.taking import TextReporter
    from polarvault.repository.format.names import check_word

    check_word(cluster, "a cluster")
    try:
        stop = None if stop_lsn is None else Lsn.parse(stop_lsn)
    except ValueError as problem:
        raise UsageError(f"--stop-lsn: {problem}", hint="--stop-lsn 0/3000100") from None
    for directory in wal_directories:
        if not os.path.isdir(directory):
            raise UsageError(f'--wal: "{directory}" is not a directory')
    request = ImportRequest(path, cluster, shared_from, tuple(map(os.path.abspath, wal_directories)), stop, note)
    choice = RepositoryChoice.of(**options)
    output, events = current_output(), current_events()
    with ExitStack() as stack:
        opened, _ = stack.enter_context(choice.opened(cluster))
        reporter = (
            BackupEvents(events)
            if events is not None
            else stack.enter_context(TextReporter(verbose=verbose, progress=output is None and os.isatty(2)))
        )
        if output is not None:
            reporter.warnings, reporter.notes = output.warnings, output.notes
        found = import_backup(request, opened.repository, reporter)
    if output is not None:
        output.add(**imported_json(found))
        return
    for line in imported_text(found):
        click.echo(line)
