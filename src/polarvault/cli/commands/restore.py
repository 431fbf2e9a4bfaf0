"""`polarvault restore`: from a backup to a server that starts. Parses, calls the use case, renders."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from polarvault.cli.json_output import current_events, current_output, json_option, progress_option
from polarvault.cli.messages import say_warning
from polarvault.cli.options.backups import RepositoryChoice
from polarvault.cli.options.mappings import mapping
from polarvault.cli.options.pfs import check_pfs_options, pfs_options
from polarvault.cli.options.recovery import recovery_options, recovery_request
from polarvault.cli.options.repository import repository_options
from polarvault.cli.options.settings import assignment
from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.config.words import BackupWord
    from polarvault.instance.host import Host
    from polarvault.recovery.watch import ReplayState
    from polarvault.report.bars import CopyBar
    from polarvault.report.events import CopyEvents
    from polarvault.restore.model import RestorePlan, RestoreRequest
    from polarvault.restore.standby.follow import FollowState
    from polarvault.restore.write.targets import Targets

_DEFAULT_TIMEOUT_S = 3600.0


@click.command("restore", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("backups", type=click.Path(), nargs=-1, required=True, metavar="BACKUP...")
@click.option("-D", "--pgdata", "target", required=True, metavar="DIR", help="Directory of the restored server.")
@click.option("--polardata", metavar="DIR", help="Directory of the shared half (PolarDB), or pfsd:///DISK/DIR; "
              "default: inside -D. With --as replica: the primary's storage.")  # fmt: skip
@click.option("--shared-from", metavar="DIR", help="Where the backup's shared half is, if it cannot be found.")
@click.option("-p", "--port", type=int, metavar="N", help="Port of the restored server.")
@click.option("--as", "role", type=click.Choice(["primary", "standby", "replica"]), default="primary",
              show_default=True, help="A writable server on a new timeline, one that stays in recovery, or (PolarDB) a "
              "read-only node on the primary's storage.")  # fmt: skip
@click.option("--primary-conninfo", metavar="CONNSTR", help="Which primary a standby or replica follows.")
@click.option("--slot", metavar="NAME", help="Replication slot on that primary.")
@click.option("--create-slot", is_flag=True, help="Make the slot; it goes again if the restore fails.")
@click.option("--archive", "archiving", type=click.Choice(["off", "on", "always"]), default="off", show_default=True,
              help="Archive WAL: never, once promoted, or also as a standby.")  # fmt: skip
@click.option("--archive-command", metavar="COMMAND", help="What archives a segment: %p is its path, %f its name.")
@pfs_options
@click.option("--hostid", "--polar_host_id", "host_id", type=int, metavar="N",
              help="PolarDB: polar_hostid, unique among the servers that mount one PFS.")  # fmt: skip
@click.option("-T", "--tablespace-mapping", "mappings", multiple=True, metavar="OLD=NEW",
              help="Put the tablespace at OLD into NEW.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change a setting; wins over all others.")
@recovery_options
@click.option("--only", metavar="DATABASE[,DATABASE]", help="Out of a repository: only these databases, with postgres "
              "and the templates; the others become empty files, which can be dropped.")  # fmt: skip
@click.option("--merge", is_flag=True, help="PolarDB: both halves into -D, an instance without shared storage.")
@click.option("--plan", "plan_only", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--delta", is_flag=True, help="Bring a stopped cluster in -D to the backup: only what differs is fetched "
              "and written, and what does not belong is removed.")  # fmt: skip
@click.option("--yes-shared", is_flag=True, help="PolarDB, with --delta: change the shared half too; all nodes are "
              "stopped.")  # fmt: skip
@click.option("--start", is_flag=True, help="Start the server and wait until it answers.")
@click.option("--timeout", type=float, default=_DEFAULT_TIMEOUT_S, show_default=True, metavar="SECONDS",
              help="How long to wait for the started server; recovery takes its time.")  # fmt: skip
@click.option("--configuration", metavar="data|DIR",
              help="Put the files that basebackup --copy-configuration kept into -D (data), or into Debian's DIR, "
              "/etc/postgresql/VERSION/NAME.")  # fmt: skip
@click.option("--bindir", metavar="DIR", help="Directory of postgres and pg_ctl; default: found by version.")
@click.option("--owner", metavar="USER", help="When root: the user that owns the files and runs the server.")
@click.option("-j", "--jobs", type=click.IntRange(0, 64), default=0, metavar="N", help="Copies at a time.")
@click.option("-N", "--no-sync", is_flag=True, help="Do not wait until the files are on disk.")
@click.option("--no-verify-checksums", is_flag=True,
              help="Do not compare the content of files with the manifest; names and sizes always are.")  # fmt: skip
@click.option("--force", is_flag=True,
              help="Restore a backup that was never completed, or is not what its manifest says.")  # fmt: skip
@repository_options
@json_option
@progress_option
def command(
    backups: tuple[str, ...],
    target: str,
    polardata: str | None,
    shared_from: str | None,
    port: int | None,
    role: str,
    primary_conninfo: str | None,
    slot: str | None,
    create_slot: bool,
    archiving: str,
    archive_command: str | None,
    host_id: int | None,
    polar_disk_name: str | None,
    polar_storage_cluster_name: str | None,
    pfs_force: bool,
    mappings: tuple[str, ...],
    settings: tuple[str, ...],
    only: str | None,
    merge: bool,
    plan_only: bool,
    delta: bool,
    yes_shared: bool,
    start: bool,
    timeout: float,
    configuration: str | None,
    bindir: str | None,
    owner: str | None,
    jobs: int,
    no_sync: bool,
    no_verify_checksums: bool,
    force: bool,
    config: str | None,
    repo: str | None,
    key_file: str | None,
    passphrase_file: str | None,
    passphrase_command: str | None,
    **recovery: Any,
) -> None:
    """Lay BACKUP out in a directory so that it starts.

    BACKUP is a cluster of a repository (shop: its last backup, or the one from which a target is reached), one of its
    backups (shop@20261125T22), a directory in plain format, a directory of tar files (compressed or not), a tar file,
    or - for one tar from a pipe. Of an incremental backup in directories the others of its chain are found beside it,
    or named as well. The backup itself is never changed, and without --delta a target that is not empty is never
    touched.
    """
    from polarvault.config.words import BackupWord
    from polarvault.instance.model import Role
    from polarvault.restore.model import Archiving, RestoreRequest
    from polarvault.storage.pfs_paths import pfs_place

    choice = RepositoryChoice.of(
        config=config, repo=repo, key_file=key_file, passphrase_file=passphrase_file,
        passphrase_command=passphrase_command,
    )  # fmt: skip
    word = choice.word(backups[0])
    from_pipe = "-" in backups
    if from_pipe and (len(backups) > 1 or plan_only):
        raise UsageError(
            "a tar from a pipe is read once, for a restore of its own: - goes with no other backup, nor with --plan",
            hint="keep the tar in a file, and name that",
        )
    assignments = tuple(assignment(text) for text in settings)
    in_pfs = pfs_place("--polardata", polardata, polar_disk_name) if polardata is not None else None
    check_pfs_options(in_pfs, disk=polar_disk_name, cluster=polar_storage_cluster_name, force=pfs_force)
    request = RestoreRequest(
        backup=backups[0] if from_pipe else os.path.abspath(backups[0]),
        older=tuple(map(os.path.abspath, backups[1:])),
        target=_directory("-D", target),
        shared_target=None if polardata is None or in_pfs is not None else _directory("--polardata", polardata),
        pfs=in_pfs,
        pfs_cluster=polar_storage_cluster_name,
        pfs_force=pfs_force,
        shared_from=None if shared_from is None else os.path.abspath(shared_from),
        port=port,
        role=Role(role),
        primary_conninfo=primary_conninfo,
        slot=slot,
        create_slot=create_slot,
        archiving=Archiving(archiving),
        archive_command=archive_command,
        host_id=host_id,
        tablespace_mapping=dict(mapping(text) for text in mappings),
        settings=assignments,
        only=() if only is None else _databases(only),
        merge=merge,
        delta=delta,
        yes_shared=yes_shared,
        start=start,
        timeout_s=timeout,
        configuration=configuration
        if configuration in (None, "data")
        else _directory("--configuration", configuration),
        bindir=None if bindir is None else os.path.abspath(bindir),
        owner=owner,
        sync=not no_sync,
        force=force,
        verify_checksums=not no_verify_checksums,
        jobs=jobs,
        recovery=recovery_request(
            **recovery, archive_is_unknown=any(name.lower() == "restore_command" for name, _ in assignments)
        ),
    )
    if isinstance(word, BackupWord):
        _run_of_repository(request, choice, word, plan_only=plan_only)
    else:
        _run(request, plan_only=plan_only)


def _databases(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if "" in names:
        raise UsageError(f'--only "{text}" names no database', hint="write names with commas between: --only shop,app")
    return names


def _run_of_repository(request: RestoreRequest, choice: RepositoryChoice, word: BackupWord, *, plan_only: bool) -> None:
    from polarvault.cli.options.backups import refuse_others, shelved
    from polarvault.instance.model import Role

    refuse_others(request.older, word.cluster)
    # A standby goes on with archived WAL where its primary has none any more; a replica must have no restore_command.
    goes_on = request.role is Role.STANDBY
    with shelved(choice, word, "restore", request.recovery, goes_on=goes_on) as found:
        request = replace(request, backup=found.backup, shelf=found.shelf, recovery=found.recovery)
        _run(request, plan_only=plan_only)


def _run(request: RestoreRequest, *, plan_only: bool) -> None:
    from polarvault.backupset.model import STANDARD_INPUT
    from polarvault.instance.host import Host

    output = current_output()
    if output is not None:
        output.add(backup=request.backup, data_directory=request.target, planned_only=plan_only)

    host = Host()
    if request.backup != STANDARD_INPUT:
        _restore(request, host, None, plan_only=plan_only)
        return
    from polarvault.report.bars import received_printer
    from polarvault.report.events import CopyEvents
    from polarvault.restore.stream import receive

    with ExitStack() as stack:
        # Of our own: sys.stdin is None where standard input was closed.
        pipe = stack.enter_context(open(0, "rb", buffering=0, closefd=False))
        events = current_events()
        with received_printer(_say, is_terminal=_shows_bars()) as printer:
            progress = printer if events is None else CopyEvents(events, "receive", None)
            received = stack.enter_context(receive(request, host, pipe, progress))
        _restore(received.request, host, received.targets, plan_only=False)


def _restore(request: RestoreRequest, host: Host, targets: Targets | None, *, plan_only: bool) -> None:
    from polarvault.report.recovery import replay_printer, scan_printer
    from polarvault.report.restore import plan_json, plan_text, result_json, result_text
    from polarvault.report.standby import FollowPrinter, show_first_segment
    from polarvault.restore.plan.places import check_space
    from polarvault.restore.run import prepare, restore_backup

    output, events = current_output(), current_events()
    with scan_printer(_say, is_terminal=_shows_bars()) as scan_progress:
        if events is not None:
            scan_progress = partial(events.progress, "plan")
        plan = prepare(request, host, scan_progress)
    if plan_only and plan.facts.host.existing is not None:
        from polarvault.restore.delta.run import compare

        with _progress(plan, "comparing {} with {}", "") as progress:
            plan = compare(plan, progress)
    for warning in plan.warnings:
        _warn(warning)
    if output is not None:
        output.add(**plan_json(plan), planned_only=plan_only)
    elif plan_only:
        _print(plan_text(plan))
    check_space(plan)
    if plan_only:
        return
    zone, is_terminal = plan.recovery.zone if plan.recovery else None, _shows_bars()
    show = FollowPrinter(_say) if events is None else events.followed
    with _progress(plan) as progress, replay_printer(_say, zone=zone, is_terminal=is_terminal) as replay:
        watch = replay if events is None else events.replayed

        def following(state: FollowState) -> None:
            progress.stop()
            show(state)

        def recovering(state: ReplayState) -> None:
            # One bar at a time: they would write over one another.
            progress.stop()
            watch(state)

        def making(done: int, whole: int) -> None:
            progress.stop()
            show_first_segment(_say, done, whole)

        result = restore_backup(plan, host, progress, following, recovering, targets=targets, first_segment=making)
    for warning in result.warnings[len(plan.warnings) :]:
        _warn(warning)
    if output is not None:
        output.add(**result_json(result))
        return
    _print(result_text(result, plan.account, is_root=os.geteuid() == 0))


def _say(line: str) -> None:
    if current_events() is None:
        click.echo(line, err=True)


def _warn(text: str) -> None:
    events = current_events()
    if events is None:
        say_warning(text)
    else:
        events.emit("warning", message=text)
    output = current_output()
    if output is not None:
        output.warn(text)


def _shows_bars() -> bool:
    return sys.stderr.isatty() and current_output() is None and current_events() is None


def _print(result: Iterator[str]) -> None:
    from polarvault.report.bars import fitted

    columns = shutil.get_terminal_size().columns
    for line in fitted(result, columns) if sys.stdout.isatty() else result:
        click.echo(line)


@contextmanager
def _progress(
    plan: RestorePlan, begins: str = "restoring {} to {}", ends: str = "files are in place"
) -> Iterator[CopyBar | CopyEvents]:
    """Show a bar on a terminal and two plain lines elsewhere, always on stderr; or events."""
    events = current_events()
    if events is not None:
        from polarvault.report.events import CopyEvents

        yield CopyEvents(events, "copy", plan.inventory.total_bytes)
        return
    from polarvault.report.bars import CopyBar
    from polarvault.report.units import format_bytes

    bar = CopyBar(plan.inventory.total_bytes)
    if _shows_bars():
        with bar:
            yield bar
        return
    bar.stop()
    what = begins.format(format_bytes(plan.inventory.total_bytes), plan.layout.local)
    click.echo(f"polarvault: {what}", err=True)
    yield bar
    # After a start other lines have come since, and the server's own say as much.
    if ends and not plan.request.start:
        click.echo(f"polarvault: {ends}", err=True)


def _directory(option: str, path: str) -> str:
    if not path or "\n" in path:
        raise UsageError(f"{option}: {path!r} is not a directory name")
    return os.path.abspath(path)
