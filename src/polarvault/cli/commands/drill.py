"""`polarvault drill`: prove that a backup restores. Parses, calls the use case, writes the reports, renders."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from polarvault.cli.hooks import Told, told_to_hooks
from polarvault.cli.json_output import current_events, current_output, json_option, progress_option
from polarvault.cli.options.backups import RepositoryChoice, refuse_others, shelved
from polarvault.cli.options.recovery import drill_recovery_options, recovery_request
from polarvault.cli.options.repository import repository_options
from polarvault.cli.options.settings import assignment
from polarvault.cli.process import switch_threads_quickly
from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.drill.model import Assertion, DrillReport, DrillRequest
    from polarvault.repository.reading.shelf import RepositoryShelf

_DEFAULT_TIMEOUT_S = 3600.0
_MOST_JOBS = 4


@click.command("drill", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("backups", type=click.Path(), nargs=-1, required=True, metavar="BACKUP...")
@click.option("--shared-from", metavar="DIR", help="Where the backup's shared half is, if it cannot be found.")
@click.option("--merge", is_flag=True, help="PolarDB: restore both halves into one, without shared storage.")
@drill_recovery_options
@click.option("--sql", "sql_files", multiple=True, metavar="FILE",
              help="SQL whose last statement must return true; can be given several times.")  # fmt: skip
@click.option("-d", "--dbname", default="postgres", show_default=True, metavar="NAME", help="Database for --sql.")
@click.option("--amcheck", is_flag=True, help="Check indexes and tables with pg_amcheck, for 13 with the extension.")
@click.option("--read", "reading", type=click.Choice(["all", "sample", "none"]), default="all", show_default=True,
              help="How much of every table and index is read.")  # fmt: skip
@click.option("--sample-percent", type=click.FloatRange(0, 100, min_open=True), default=1.0, show_default=True,
              metavar="PERCENT", help="How much --read sample reads.")  # fmt: skip
@click.option("--scratch", metavar="DIR", help="Where the copy is made; default: the system's temporary directory.")
@click.option("--keep", is_flag=True, help="Leave the copy there, stopped, and tell how to start and remove it.")
@click.option("--report", "prefix", metavar="PREFIX",
              help="Write PREFIX.json, PREFIX.html and, if the drill fails, PREFIX.log; default: "
              "./polarvault-drill-BACKUP-TIME.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change a setting of the copy.")
@click.option("--timeout", type=float, default=_DEFAULT_TIMEOUT_S, show_default=True, metavar="SECONDS",
              help="How long recovery may take.")  # fmt: skip
@click.option("--bindir", metavar="DIR", help="Directory of postgres and pg_ctl; default: found by version.")
@click.option("-U", "--username", metavar="ROLE", help="A superuser of the backup's server; default: the likely ones.")
@click.option("--owner", metavar="USER", help="When root: the user that owns the copy and runs its server.")
@click.option("-j", "--jobs", type=click.IntRange(0, 64), default=0, metavar="N",
              help="Copies and connections at a time.")  # fmt: skip
@click.option("-N", "--no-sync", is_flag=True, help="Do not wait until the copy is on disk; the times then say less.")
@click.option("--force", is_flag=True, help="Drill a backup that was never completed.")
@repository_options
@json_option
@progress_option
def command(
    backups: tuple[str, ...],
    shared_from: str | None,
    merge: bool,
    sql_files: tuple[str, ...],
    dbname: str,
    amcheck: bool,
    reading: str,
    sample_percent: float,
    scratch: str | None,
    keep: bool,
    prefix: str | None,
    settings: tuple[str, ...],
    timeout: float,
    bindir: str | None,
    username: str | None,
    owner: str | None,
    jobs: int,
    no_sync: bool,
    force: bool,
    config: str | None,
    repo: str | None,
    key_file: str | None,
    passphrase_file: str | None,
    passphrase_command: str | None,
    **recovery: Any,
) -> int:
    """Prove that BACKUP restores, by restoring it; an incremental one with the others of its chain.

    BACKUP is a cluster of a repository (its last backup, or the one from which a target is reached), one of its backups
    (shop@20261125T22), or a path.

    The copy is made in a scratch directory, recovered, looked at and removed. Its server listens on a private socket
    only, archives nothing and connects to nobody. Ends with 0 if everything held, 1 if something did not, and with the
    error's own status if the drill came to no end.
    """
    from polarvault.config.words import BackupWord
    from polarvault.drill.model import DrillRequest, Reading

    began = datetime.now(UTC)
    choice = RepositoryChoice.of(
        config=config, repo=repo, key_file=key_file, passphrase_file=passphrase_file,
        passphrase_command=passphrase_command,
    )  # fmt: skip
    word = choice.word(backups[0])
    report_prefix = _report_prefix(prefix, backups[-1], began)
    request = DrillRequest(
        backup=os.path.abspath(backups[0]),
        older=tuple(map(os.path.abspath, backups[1:])),
        scratch=os.path.abspath(scratch or tempfile.gettempdir()),
        log_copy=f"{report_prefix}.log",
        shared_from=None if shared_from is None else os.path.abspath(shared_from),
        merge=merge,
        recovery=recovery_request(**recovery, keep_archiving=False, archive_is_unknown=False),
        settings=tuple(assignment(text) for text in settings),
        assertions=tuple(_assertion(path) for path in sql_files),
        dbname=dbname,
        amcheck=amcheck,
        reading=Reading(reading),
        sample_percent=sample_percent,
        keep=keep,
        jobs=jobs or min(_MOST_JOBS, os.cpu_count() or 1),
        copy_jobs=jobs,
        timeout_s=timeout,
        bindir=None if bindir is None else os.path.abspath(bindir),
        owner=owner,
        superuser=username,
        sync=not no_sync,
        force=force,
    )
    if not isinstance(word, BackupWord):
        with told_to_hooks(choice.configuration, None, "drill") as told:
            return _tell(_run(request, report_prefix), told)
    refuse_others(backups[1:], word.cluster)
    with (
        told_to_hooks(choice.configuration, word.cluster, "drill") as told,
        shelved(choice, word, "drill", request.recovery) as found,
    ):
        request = replace(request, backup=found.backup, shelf=found.shelf, recovery=found.recovery)
        report = _run(request, report_prefix)
        _remember(report, found.shelf)
        return _tell(report, told)


def _tell(report: DrillReport, told: Told) -> int:
    """Hand a drill to the hooks; return the exit status."""
    from polarvault.model.finding import Severity
    from polarvault.report.drill import report_json

    # The times of the drill are the report's own.
    told.add(**report_json(report))
    told.warnings += [one.message for one in report.findings if one.severity is Severity.WARNING]
    told.exit_status = report.exit_status
    return report.exit_status


def _remember(report: DrillReport, shelf: RepositoryShelf) -> None:
    """Write down in the repository how it ended: `status` tells."""
    from polarvault.report.drill import verdict

    path = report.facts.path if report.facts is not None else report.backup
    shelf.drill_log.note(
        path.partition("@")[2], held=report.held, verdict=verdict(report), restore_s=report.recovery_time_s
    )  # fmt: skip


def _run(request: DrillRequest, prefix: str) -> DrillReport:
    import secrets

    from polarvault.drill.run import run_drill
    from polarvault.instance.host import Host
    from polarvault.report.drill import DrillPrinter, drill_text, report_json
    from polarvault.report.events import DrillEvents

    output = current_output()
    if output is not None:
        output.add(backup=request.backup)
    switch_threads_quickly()
    events = current_events()
    reporter = DrillPrinter(_say) if events is None else DrillEvents(events)
    report = run_drill(request, Host(), reporter, clock=lambda: datetime.now(UTC), draw=secrets.randbelow(1 << 30))
    files = _write_reports(report, prefix)
    if output is not None:
        # The very object that the file holds, its times too.
        output.add(**report_json(report))
    else:
        for line in drill_text(report, files):
            click.echo(line)
    return report


def _write_reports(report: DrillReport, prefix: str) -> list[str]:
    from polarvault.report.drill import report_json
    from polarvault.report.drill_page import drill_page
    from polarvault.storage.files import write_durably

    made = []
    for ending, text in ((".json", _json_text(report_json(report)) + "\n"), (".html", drill_page(report))):
        # It holds names and errors out of the database; who wants others to read it can say so.
        write_durably(prefix + ending, text.encode("utf-8", "replace"), mode=0o600)
        made.append(prefix + ending)
    return made


def _json_text(document: dict[str, Any]) -> str:
    import json

    return json.dumps(document, indent=2)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _report_prefix(prefix: str | None, backup: str, began: datetime) -> str:
    """Return the absolute prefix of the report files; raise UsageError if nothing can be written there."""
    if prefix is None:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(os.path.abspath(backup)))
        prefix = f"polarvault-drill-{name}-{began:%Y%m%dT%H%M%SZ}"
    prefix = os.path.abspath(prefix)
    directory = os.path.dirname(prefix)
    # Found out now and not after hours, when there is something to say.
    if not os.path.isdir(directory) or not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(
            f'the report cannot be written to "{directory}"', hint="name another place: --report DIRECTORY/NAME"
        )
    return prefix


def _assertion(path: str) -> Assertion:
    from polarvault.drill.model import Assertion

    try:
        with open(path, "rb") as stream:
            return Assertion(path, stream.read())
    except OSError as problem:
        raise UsageError(f'--sql: "{path}" cannot be read: {problem.strerror}', hint="check the path") from problem
