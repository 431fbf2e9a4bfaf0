"""The use case: restore into a scratch place, start, look at everything, stop, clean up. Reads as a table of contents.

A drill never raises for what is wrong with a backup: that is what it was asked to find out, and a report without an
end would be of no use. Only an interruption is raised, once the server is stopped and the scratch place is gone.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator

from polarvault.backupset.listing import Fault
from polarvault.drill.look.completeness import compare_with_manifest
from polarvault.drill.look.inside import look_inside
from polarvault.drill.model import DrillReport, DrillRequest, KeptCopy, Part
from polarvault.drill.notes import Clock, Notes
from polarvault.drill.place.isolation import check_settings
from polarvault.drill.place.network import build_walls, judge_walls
from polarvault.drill.place.processes import stop_whatever_runs
from polarvault.drill.place.scratch import Scratch, check_parent, leftovers, removal
from polarvault.drill.place.server import DrillServer, command_line, copy_log, last_lines, reach
from polarvault.drill.planning import restore_request, with_settings_of_version
from polarvault.drill.reporter import DrillReporter
from polarvault.errors import BackupUnusable, Interrupted, PolarvaultError, StartFailed, UsageError
from polarvault.instance.host import Host
from polarvault.instance.model import Account, Binaries
from polarvault.model import versions
from polarvault.model.finding import Finding, Severity
from polarvault.recovery.target import TargetAction
from polarvault.restore.facts import RestoreFacts
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.restore.plan.places import check_space
from polarvault.restore.plan.windows import cut_off_warnings
from polarvault.restore.run import RestoreResult, prepare, start_restored, write_files


def check_request(request: DrillRequest) -> None:
    """Raise UsageError for what a drill cannot do, before anything is looked at."""
    check_parent(request.scratch)
    check_settings(request.settings)
    if request.recovery.action is TargetAction.SHUTDOWN:
        raise UsageError(
            "--target-action shutdown: nobody can look into a server that is shut down",
            hint="leave it out: the drill promotes its copy; or stay in recovery with --target-action pause",
        )


def run_drill(request: DrillRequest, host: Host, reporter: DrillReporter, *, clock: Clock, draw: int) -> DrillReport:
    """Do the whole drill and return its report; raise Interrupted, and UsageError for what check_request refuses.

    clock: the present time, aware. draw: a random number, for the port. On return no process of the drill is left, and
    of its scratch place only what --keep asked for.
    """
    check_request(request)
    scratch = Scratch(request.scratch)
    notes = Notes(request, reporter, clock)
    try:
        for leftover in leftovers(request.scratch):
            notes.findings.append(leftover)
            reporter.warn(f"{leftover.subject}: {leftover.message}; {leftover.advice}")
        _drill_noting_errors(request, scratch, host, notes, reporter, draw)
        stop_whatever_runs(scratch.data)
        _save_log(request, scratch, notes)
        if notes.kept is None:
            _remove(scratch, notes)
        return notes.report()
    except (KeyboardInterrupt, Interrupted):
        stop_whatever_runs(scratch.data)
        left = scratch.remove()
        words = f"; could not be removed: {', '.join(left)}" if left else ", its scratch directory is removed"
        raise Interrupted(f"interrupted; the drill's server is stopped{words}") from None
    except BaseException:
        # Whatever it is: no server may go on running, and no copy of somebody's data may lie about.
        stop_whatever_runs(scratch.data)
        scratch.remove()
        raise


def _drill_noting_errors(
    request: DrillRequest, scratch: Scratch, host: Host, notes: Notes, reporter: DrillReporter, draw: int
) -> None:
    try:
        _drill(request, scratch, host, notes, reporter, draw)
    except Interrupted:
        raise
    except PolarvaultError as problem:
        notes.fail(problem)


def _drill(
    request: DrillRequest, scratch: Scratch, host: Host, notes: Notes, reporter: DrillReporter, draw: int
) -> None:
    with notes.part(Part.PLAN, f'looking at "{request.backup}"'):
        plan = prepare(
            restore_request(request, scratch, draw), host, reporter.scanned, settle=_behind_walls(scratch, notes)
        )
        account = plan.account
        notes.know_plan(plan)
        if plan.inventory.is_newer:
            known = versions.is_not_known(f"the backup's server, PostgreSQL {plan.major_version},")
            raise BackupUnusable(
                f"{known}, and a drill would not know what it proves",
                hint="use a newer polarvault; or restore it to a directory of its own and look: polarvault restore "
                f"{shlex.quote(plan.source.path)} -D DIRECTORY --port N --start",
            )
        notes.findings += _newer_backups(plan)
        notes.findings += _cut_off_backups(plan)
        for warning in plan.warnings:
            reporter.warn(warning)
        check_space(plan)
        compared = compare_with_manifest(plan, jobs=request.jobs)
        notes.findings += compared.findings
        notes.not_proved += [compared.not_proved] if compared.not_proved else []
        if (saved := plan.facts.host.saved_configuration) is not None:
            notes.not_proved.append(
                f'that a server starts with the configuration kept in "{saved}": the drill does without it, only '
                "`restore --configuration` puts it back"
            )
        scratch.make(account, plan.source.path, _stop_line(plan, account))
    result = _copy(plan, host, notes, reporter)
    assert result.plan.binaries is not None
    try:
        server = _start(result, result.plan.binaries, account, notes, reporter)
        look_inside(server, request, notes)
        _stop(server, notes)
    finally:
        if request.keep:
            _keep(result.plan, account, scratch, notes, server_user=request.superuser)


def _behind_walls(scratch: Scratch, notes: Notes) -> Callable[[RestoreRequest, RestoreFacts], RestoreRequest]:
    def settle(asked: RestoreRequest, facts: RestoreFacts) -> RestoreRequest:
        walls = build_walls(facts.host.account)
        notes.findings.append(judge_walls(walls, scratch.data))
        return with_settings_of_version(asked, facts, walls)

    return settle


def _newer_backups(plan: RestorePlan) -> Iterator[Finding]:
    """Yield a finding for each backup of a directory that was passed over: it may be useless for good."""
    for path, why in plan.recovery.rejected if plan.recovery else ():
        yield Finding(
            # One that does not reach the target is no worse for it; one that is broken is no backup.
            severity=Severity.PROBLEM if path in plan.broken else Severity.WARNING,
            check="newer-backup",
            subject=path,
            message=f"it was passed over: {why}",
            meaning="it cannot be restored: whoever relies on it has no backup of that time"
            if path in plan.broken
            else "the drill says nothing about this backup but that it does not reach the target",
            advice=f"drill it alone: polarvault drill {shlex.quote(path)}",
        )


def _cut_off_backups(plan: RestorePlan) -> Iterator[Finding]:
    """Yield a finding for each older backup that a hole in the WAL keeps from what came later."""
    for path, why in cut_off_warnings(plan.recovery.windows) if plan.recovery else ():
        yield Finding(
            severity=Severity.WARNING,
            check="older-backup",
            subject=path,
            message=why,
            meaning="should the newer backups be lost, it does not lead to the present",
            advice="look for another copy of that segment and put it into the WAL directory",
        )


class _Copied:
    """Adds up the steps of a copy for the reporter; several threads call it, a step lost there is no harm."""

    def __init__(self, total: int, reporter: DrillReporter) -> None:
        self._done = 0
        self._total = total
        self._reporter = reporter

    def __call__(self, size: int) -> None:
        self._done += size
        self._reporter.copied(self._done, self._total)


def _copy(plan: RestorePlan, host: Host, notes: Notes, reporter: DrillReporter) -> RestoreResult:
    size = plan.inventory.total_bytes
    with notes.part(Part.COPY, f"restoring to {plan.layout.local}", lambda: size):
        plan, warnings = write_files(plan, host, _Copied(size, reporter))
    notes.know_plan(plan)
    for warning in warnings:
        notes.add(Severity.WARNING, "copy", plan.source.path, warning)
    for wrong in [one for one in plan.disagreements if one.fault is Fault.CHECKSUM and not one.is_setting]:
        notes.add(
            Severity.PROBLEM, "checksum-mismatch", wrong.path, f"not as the manifest says: {wrong}",
            meaning="the file is not the one that the server sent", advice="restore another backup",
        )  # fmt: skip
    return RestoreResult(plan, tuple(warnings), None)


def _start(
    result: RestoreResult, binaries: Binaries, account: Account, notes: Notes, reporter: DrillReporter
) -> DrillServer:
    plan = result.plan
    product = "PolarDB" if binaries.is_polardb else "PostgreSQL"
    with notes.part(Part.RECOVERY, f"starting {product} {binaries.version}, recovery to {_target(plan)}"):
        result = start_restored(result, watch=reporter.replayed)
        if result.server is None or result.recovery is None:
            raise StartFailed("the restored server shut down at its target, so that nobody can look into it")
        server = reach(plan, binaries, account, result.server)
    notes.know_server(server)
    notes.recovery = result.recovery
    ended = result.recovery
    reason = f", {ended.reason}" if ended.reason else ""
    state = f"the server is {'paused' if server.in_recovery else 'writable'} on timeline {ended.timeline_id}"
    where = f"recovery stopped at LSN {ended.lsn or 'unknown'}{reason}"
    notes.add(Severity.OK, "recovery", plan.source.path, f"{where}; {state}")
    return server


def _target(plan: RestorePlan) -> str:
    return str(plan.recovery.target) if plan.recovery else "the end of the WAL"


def _stop(server: DrillServer, notes: Notes) -> None:
    with notes.part(Part.STOP, "stopping the server"):
        state = server.stop()
    notes.add(Severity.OK, "stop", server.plan.layout.local, f"the server stopped in an orderly way: {state}")


def _keep(plan: RestorePlan, account: Account, scratch: Scratch, notes: Notes, *, server_user: str | None) -> None:
    assert plan.binaries is not None
    pg_ctl, local = plan.binaries.program("pg_ctl"), plan.layout.local
    scratch.keep()
    user = server_user or "postgres"
    connect = ["psql", "-h", scratch.socket_directory, "-p", str(plan.request.port), "-U", user, "-d", "postgres"]
    notes.kept = KeptCopy(
        directory=scratch.directory,
        start=command_line([pg_ctl, "-D", local, "-l", f"{local}/polarvault-start.log", "-w", "start"], account),
        connect=shlex.join(connect),
        stop=_stop_line(plan, account),
        remove=f"rm -rf {removal(scratch.directory, scratch.socket_directory)}",
    )


def _stop_line(plan: RestorePlan, account: Account) -> str:
    assert plan.binaries is not None
    return command_line([plan.binaries.program("pg_ctl"), "-D", plan.layout.local, "-m", "fast", "-w", "stop"], account)


def _remove(scratch: Scratch, notes: Notes) -> None:
    for path in scratch.remove():
        message, remove = "the scratch directory could not be removed", f"rm -rf {shlex.quote(path)}"
        notes.add(Severity.WARNING, "scratch-left", path, message, meaning="it takes up space", advice=remove)


def _save_log(request: DrillRequest, scratch: Scratch, notes: Notes) -> None:
    """Copy the log of a drill that failed to where it survives the scratch place."""
    if not notes.has_problem:
        return
    notes.log_end = last_lines(scratch.data)
    notes.log_copy = copy_log(scratch.data, request.log_copy)
