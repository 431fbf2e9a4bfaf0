"""`polarvault verifybackup`: drop-in for pg_verifybackup 13-19."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from polarvault.cli.json_output import current_events, current_output, json_option
from polarvault.cli.options.drop_in import DropInCommand, progress_json_option, version_option
from polarvault.cli.process import switch_threads_quickly
from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.verify.request import VerifyRequest

_FORMATS = {"p": "plain", "plain": "plain", "t": "tar", "tar": "tar"}


@click.command("verifybackup", cls=DropInCommand, context_settings={"help_option_names": ["-?", "--help"]})
@click.option("-e", "--exit-on-error", is_flag=True, help="Exit immediately on error.")
@click.option("-F", "--format", "form", metavar="p|t", help="Backup format (plain, tar).")
@click.option("-i", "--ignore", multiple=True, metavar="RELATIVE_PATH", help="Ignore indicated path.")
@click.option("-m", "--manifest-path", metavar="PATH", help="Use specified path for manifest.")
@click.option("-n", "--no-parse-wal", is_flag=True, help="Do not read WAL.")
@click.option(
    "-P", "--progress", is_flag=True, help="Show progress information; --progress=json: as JSON (docs/json.md)."
)
@progress_json_option
@click.option("-q", "--quiet", is_flag=True, help="Do not print any output, except for errors.")
@click.option("-s", "--skip-checksums", is_flag=True, help="Skip checksum verification.")
@click.option(
    "-w",
    "--wal-path",
    "--wal-directory",
    metavar="PATH",
    help="Use specified path for WAL files, a directory or a tar.",
)
@click.option("--polardata", metavar="DIR", help="The shared half of a PolarDB backup, if it cannot be found.")
@click.option("--pages/--no-pages", default=None, help="Verify the checksum of every page; default: if there are any.")
@click.option("-j", "--jobs", type=click.IntRange(1, 64), metavar="N", help="Files to read at a time.")
@click.option("--summary", is_flag=True, help="Say what was checked and what was not, also of a good backup.")
@json_option
@version_option
@click.argument("rest", nargs=-1, metavar="BACKUP")
def command(rest: tuple[str, ...], **options: Any) -> int:
    """Verify BACKUP (a directory, one tar file, or - for a tar from a pipe) against its manifest, and beyond it.

    Every option of pg_verifybackup 13 to 19, with the same verdict and the same exit status. Beyond it: both halves of
    a PolarDB backup, tar files compressed in any way, page checksums, pg_control, backup_label, tablespaces, and every
    WAL record that the restore will need. Nothing is written.
    """
    if not rest:
        raise UsageError("no backup directory specified", hint="polarvault verifybackup DIRECTORY")
    if len(rest) > 1:
        raise UsageError(f'too many command-line arguments (first is "{rest[1]}")')
    if options["progress"] and options["quiet"]:
        raise UsageError("cannot specify both -P/--progress and -q/--quiet")
    form = options["form"]
    if form is not None and form not in _FORMATS:
        raise UsageError(f'invalid backup format "{form}", must be "plain" or "tar"')
    from polarvault.verify.request import VerifyRequest

    request = VerifyRequest(
        backup=rest[0],
        shared_half=options["polardata"],
        format=None if form is None else _FORMATS[form],
        manifest_path=options["manifest_path"],
        ignored=options["ignore"],
        wal_path=options["wal_path"],
        check_checksums=not options["skip_checksums"],
        check_wal=not options["no_parse_wal"],
        pages=options["pages"],
        exit_on_error=options["exit_on_error"],
        jobs=options["jobs"] or 0,
    )
    wants_summary = options["summary"] or options["progress"]
    return _run(request, quiet=options["quiet"], progress=options["progress"], summary=wants_summary)


def _run(request: VerifyRequest, *, quiet: bool, progress: bool, summary: bool) -> int:
    from polarvault.report.events import VerifyEvents
    from polarvault.report.verify import TextReporter, result_json, result_lines
    from polarvault.verify.run import verify_backup

    switch_threads_quickly()
    output = current_output()
    if output is not None:
        output.add(backup=request.backup)
    events = current_events()
    with TextReporter(progress=progress and output is None, silent=output is not None) as reporter:
        result = verify_backup(request, reporter if events is None else VerifyEvents(events))
    if output is not None:
        output.add(**result_json(result))
    elif result.is_good and not quiet:
        click.echo("backup successfully verified")
    # A good backup is one line, as pg_verifybackup's: cron mails whatever else a nightly job prints.
    if not (quiet or output is not None or events is not None) and (summary or not result.is_good):
        for line in result_lines(result):
            click.echo(f"polarvault: {line}", err=True)
    # A drop-in: pg_verifybackup knows no more than "good" and "not good".
    return 0 if result.is_good else 1
