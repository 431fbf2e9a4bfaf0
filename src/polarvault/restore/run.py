"""The use case: ask, plan, write, start. This file reads as the table of contents of a restore."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from polarvault.backupset.listing import Disagreement
from polarvault.backupset.model import CONTROL_NAME, Area
from polarvault.errors import BackupUnusable, IntegrityError, Interrupted, StartFailed, UsageError
from polarvault.instance.account import working_as_account
from polarvault.instance.first_segment import Say, watching_first_segment
from polarvault.instance.host import Host
from polarvault.instance.start import StartedServer, start_server
from polarvault.pgfiles.control import system_identifier_of
from polarvault.restore.facts import RestoreFacts
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.restore.only.leaving_out import check_only, leave_out
from polarvault.restore.plan.candidates import candidates_in, choose_backup, name_older_backup, refuse_several
from polarvault.restore.plan.gather import complete, gather
from polarvault.restore.plan.incremental import order_backups
from polarvault.restore.plan.integrity import judge
from polarvault.restore.plan.places import check_space
from polarvault.restore.plan.plan import check_startable, plan_restore
from polarvault.restore.plan.recovery import check_wal_directories
from polarvault.restore.plan.roles import rules_of
from polarvault.restore.plan.routing import router_of
from polarvault.restore.standby.follow_checks import check_system_identifier
from polarvault.restore.standby.held_slot import held_slot
from polarvault.restore.write.bring_wal import bring_wal
from polarvault.restore.write.configuration import PutConfiguration
from polarvault.restore.write.finish import Completion
from polarvault.restore.write.lay_out import LayOut, Progress
from polarvault.restore.write.mark import mark_targets
from polarvault.restore.write.pfs_target import PfsTarget, opened_pfs, say_left
from polarvault.restore.write.replica import ReplicaCompletion
from polarvault.restore.write.staging import combine, remove_staging
from polarvault.restore.write.targets import Targets
from polarvault.storage.files import storage_failed
from polarvault.storage.occupants import CONTROL_WAITING_NAME
from polarvault.storage.trees.local import LocalTree
from polarvault.storage.trees.model import Tree
from polarvault.storage.trees.small_files import read_file

if TYPE_CHECKING:
    from polarvault.instance.subscriptions import Subscription
    from polarvault.recovery.survey import ScanProgress
    from polarvault.recovery.watch import RecoveryOutcome, Watch
    from polarvault.restore.only.closing import Closed
    from polarvault.restore.standby.follow import FollowReport, Show


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore did; server is None when none was started."""

    plan: RestorePlan
    warnings: tuple[str, ...]
    server: StartedServer | None
    follow: FollowReport | None = None
    recovery: RecoveryOutcome | None = None
    subscriptions: tuple[Subscription, ...] = ()
    closed: tuple[Closed, ...] = ()
    """Those of the source that are disabled in the copy, because it was started as a primary."""


def prepare(
    request: RestoreRequest,
    host: Host,
    scan_progress: ScanProgress = lambda done, total: None,
    *,
    settle: Callable[[RestoreRequest, RestoreFacts], RestoreRequest] = lambda request, facts: request,
) -> RestorePlan:
    """Look at everything and plan; nothing is written. Raises for whatever would not work, except missing space.

    With a recovery target request.backup can also be a directory of backups; scan_progress is called while WAL is read.
    settle: what the caller adds to the request once the facts are known.
    """
    check_request(request)
    check_only(request)
    if request.older:
        newest, older = order_backups([request.backup, *request.older], force=request.force)
        request = replace(request, backup=newest, older=older)
    candidates = candidates_in(request.shelf, request.backup, force=request.force)
    if candidates and not request.recovery.is_wanted:
        raise refuse_several(request.backup, candidates)
    if candidates:
        request, facts = choose_backup(request, candidates, lambda one: gather(one, host, scan_progress))
    else:
        try:
            facts = gather(request, host, scan_progress)
        except IntegrityError as problem:
            raise name_older_backup(problem, request.backup, request.shelf) from problem
    plan = plan_restore(settle(request, facts), facts)
    if request.start:
        check_startable(plan)
    return leave_out(plan) if request.only else plan


def check_request(request: RestoreRequest) -> None:
    """Raise UsageError for what cannot be meant, before the backup is looked at."""
    rules = rules_of(request.role)
    rules.check_request(request)
    if request.delta and rules.takes_local_half_only:
        raise UsageError("--delta: a replica has no data of its own to compare", hint="leave --delta out")
    if request.yes_shared and not request.delta:
        raise UsageError("--yes-shared is for --delta", hint="leave it out, or add --delta")
    if rules.surveys_wal(request):
        check_wal_directories(request)
    # pg_ctl starts the server through a shell and puts the path between double quotes (bin/pg_ctl/pg_ctl.c).
    odd = next((character for character in request.target if character in '$`"\\'), None)
    if request.start and odd is not None:
        raise UsageError(
            f"pg_ctl cannot start a server in a directory with {odd} in its path: {request.target}",
            hint="choose a directory without it, or leave --start out",
        )


def restore_backup(
    plan: RestorePlan,
    host: Host,
    progress: Progress,
    show: Show = lambda state: None,
    watch: Watch = lambda state: None,
    *,
    targets: Targets | None = None,
    first_segment: Say = lambda done, whole: None,
) -> RestoreResult:
    """Carry a plan out; on failure or interruption before the start everything made is removed again.

    show: called while a started standby catches up, watch: while a started server recovers; both with where it is.
    targets: claimed already, and the backup was put together in it (`stream.receive`). first_segment: called with bytes
    done and in all while a server on PFS makes the WAL segment that it opens with.
    """
    check_space(plan)
    # The slot first: from then on the primary keeps the WAL that it writes while files are copied.
    with held_slot(plan):
        began = time.monotonic()
        try:
            plan, warnings = write_files(plan, host, progress, targets=targets)
        except IntegrityError as problem:
            # Of a chain every link was needed: older means before the first.
            first = plan.chain[0].path if plan.chain else plan.source.path
            raise name_older_backup(problem, first, plan.request.shelf) from problem
    if plan.delta is None:
        plan.source.note_speed(plan.laid_out_bytes, time.monotonic() - began)
    result = RestoreResult(plan, (*plan.warnings, *warnings, *plan.source.remarks()), None)
    if not plan.request.start or plan.binaries is None:
        return result
    from polarvault.instance.start import naming_the_server

    try:
        with naming_the_server(plan.instance), watching_first_segment(plan.instance, first_segment):
            return _with_closed_databases(_without_subscriptions(start_restored(result, show, watch)))
    except StartFailed as problem:
        if plan.request.create_slot:
            kept = f'slot "{plan.request.slot}" is kept on the primary for it'
            problem.hint = f"{problem.hint}; {kept}" if problem.hint else kept
        raise
    except KeyboardInterrupt:
        raise Interrupted(
            f'interrupted while the restored server in "{plan.layout.local}" was starting; it is left as it is',
            hint=f"{plan.binaries.program('pg_ctl')} -D {shlex.quote(plan.layout.local)} status",
        ) from None


def _with_closed_databases(result: RestoreResult) -> RestoreResult:
    """Forbid connections to what was left out, in a copy that can be written."""
    plan, server = result.plan, result.server
    if plan.left_out is None or server is None or server.in_recovery is not False:
        return result
    from polarvault.restore.only.closing import close_databases

    names = plan.left_out.databases.values()
    return replace(result, closed=tuple(close_databases(plan.instance, plan.account, server.host, server.port, names)))


def _without_subscriptions(result: RestoreResult) -> RestoreResult:
    """Disable the source's subscriptions in a copy that can be written."""
    plan, server = result.plan, result.server
    if server is None or server.in_recovery is not False or not plan.rules.disables_subscriptions(plan.request):
        return result
    from polarvault.instance.subscriptions import disable_subscriptions

    found = disable_subscriptions(plan.instance, plan.account, server.host, server.port)
    return replace(result, subscriptions=tuple(found))


def start_restored(
    result: RestoreResult, show: Show = lambda state: None, watch: Watch = lambda state: None
) -> RestoreResult:
    """Start what was laid out and wait until it has become what the plan says; show and watch as in restore_backup.

    Raises StartFailed with the end of the log, the files left in place.
    """
    plan = result.plan
    account, binaries = plan.account, plan.binaries
    assert binaries is not None
    if plan.recovery is not None:
        from polarvault.recovery.watch import start_and_recover

        server, recovered = start_and_recover(plan.instance, plan.recovery, binaries, account, watch)
        return replace(result, server=server, recovery=recovered)
    if plan.primary is not None:
        from polarvault.restore.standby.follow import start_following

        following, follow = start_following(plan, binaries, account, show)
        return replace(result, server=following, follow=follow)
    return replace(result, server=start_server(plan.instance, binaries, account))


def write_files(
    plan: RestorePlan,
    host: Host,
    progress: Progress,
    *,
    targets: Targets | None = None,
    completion: Completion | None = None,
) -> tuple[RestorePlan, list[str]]:
    """Lay the files out and complete them; return the plan, settled by what was unpacked, and warnings.

    On failure and on KeyboardInterrupt, which becomes Interrupted, everything made is removed again. targets: as for
    restore_backup. completion: what is to be made of the files, None for a cluster that starts.
    """
    if plan.facts.host.existing is not None:
        from polarvault.restore.delta.run import bring_up

        return bring_up(plan, progress)
    with opened_pfs(plan, host) as in_pfs:
        return _write_files(plan, host, progress, targets, in_pfs, completion)


def _write_files(
    plan: RestorePlan,
    host: Host,
    progress: Progress,
    targets: Targets | None,
    in_pfs: PfsTarget | None,
    completion: Completion | None,
) -> tuple[RestorePlan, list[str]]:
    account, data = plan.account, None if in_pfs is None else in_pfs.tree
    is_staged = targets is not None
    targets = targets or Targets(
        account, directory_mode=0o750 if plan.inventory.group_readable else 0o700, sync=plan.request.sync
    )
    if completion is None:
        completion = ReplicaCompletion(host) if plan.rules.is_armed_by_main_file else Completion(data)
    put = PutConfiguration(plan.put_back, account, sync=plan.request.sync) if plan.put_back is not None else None
    try:
        targets.claim([root for root in plan.layout.roots if not (is_staged and root == plan.layout.local)])
        if in_pfs is not None:
            in_pfs.claim()
        with working_as_account(account):
            mark_targets(plan, data)
        laid_out = combine(plan, account) if plan.chain else plan
        router, moves = router_of(plan.layout, plan.inventory), is_staged or bool(plan.chain)
        laying = LayOut(laid_out, router, progress, move=moves, data=data)
        completion.begin(plan, account, file_mode=laying.file_mode)
        with working_as_account(account):
            laying.run()
            if plan.request.brings_wal:
                bring_wal(plan, file_mode=laying.file_mode)
            if is_staged or plan.chain:
                remove_staging(plan)
        plan, warnings = _with_disagreements(plan, laying.checks.disagreements)
        plan = _settled(plan, host, data)
        if put is not None and plan.debian is not None:
            put.write()
        warnings += completion.finish(plan, account, file_mode=laying.file_mode, directory_mode=laying.directory_mode)
        return plan, warnings
    except KeyboardInterrupt:
        interrupted = Interrupted("interrupted; what was restored so far has been removed")
        _undo(plan, targets, put, completion, in_pfs, interrupted)
        raise interrupted from None
    except BaseException as problem:
        # A half restore must not look like a whole one.
        _undo(plan, targets, put, completion, in_pfs, problem)
        raise


def _with_disagreements(plan: RestorePlan, found: list[Disagreement]) -> tuple[RestorePlan, list[str]]:
    """Return the plan with what was found to be wrong while it was copied, and warnings for it."""
    new = found[len(plan.disagreements) :]
    return replace(plan, disagreements=tuple(found)), judge(plan.request, plan.source, new)


def _undo(
    plan: RestorePlan,
    targets: Targets,
    put: PutConfiguration | None,
    completion: Completion,
    in_pfs: PfsTarget | None,
    problem: BaseException,
) -> None:
    if put is not None:
        put.undo()
    completion.undo(plan)
    if in_pfs is not None and (why := in_pfs.undo()) is not None:
        say_left(problem, in_pfs, why)
    targets.undo()


def _settled(plan: RestorePlan, host: Host, data: Tree | None) -> RestorePlan:
    """Return the plan as it is with what lay too deep in a compressed tar to be known before it was unpacked."""
    if plan.inventory.control is not None or plan.rules.takes_local_half_only:
        return plan
    with working_as_account(plan.account):
        found = _unpacked(plan, data)
    if plan.primary is not None:
        identifier = str(system_identifier_of(found[Area.SHARED, CONTROL_NAME]))
        check_system_identifier(plan.primary, identifier, outcome="what was restored so far has been removed")
    settled = plan_restore(plan.request, complete(plan.request, plan.facts, found, host))
    return replace(settled, disagreements=plan.disagreements)


def _unpacked(plan: RestorePlan, data: Tree | None) -> dict[tuple[Area, str], bytes]:
    """Read back the files that decide about settings and lay too deep in a compressed tar to be seen before."""
    found = {}
    for name, place in ((CONTROL_NAME, CONTROL_WAITING_NAME), ("global/polar_settings.conf",) * 2):
        try:
            with nullcontext(data) if data is not None else closing(LocalTree(plan.layout.data)) as tree:
                found[Area.SHARED, name] = read_file(tree, place)
        except FileNotFoundError:
            continue
        except OSError as problem:
            raise storage_failed(problem, "read", os.path.join(plan.layout.data, place)) from problem
    if (Area.SHARED, CONTROL_NAME) not in found:
        raise BackupUnusable(
            f'"{plan.source.path}" holds no global/pg_control', hint="the backup is incomplete; restore another one"
        )
    return found
