"""The use case: recognise, plan, write, start. This file reads as the table of contents of a restore."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from polarvault.backupset.inventory import take_inventory
from polarvault.backupset.listing import Disagreement
from polarvault.backupset.model import CONTROL_NAME, Area
from polarvault.backupset.source import find_backup
from polarvault.errors import BackupUnusable, IntegrityError, Interrupted, StartFailed, UsageError
from polarvault.instance.account import working_as_account
from polarvault.instance.host import Host
from polarvault.instance.model import Account, Binaries, Role
from polarvault.instance.programs import find_binaries, find_program, missing_binaries
from polarvault.instance.start import StartedServer, start_server
from polarvault.pgconf.configuration import Configuration, MemoryReader
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.restore.plan.candidates import candidates_in, choose_backup, name_older_backup, refuse_several
from polarvault.restore.plan.incremental import combined, order_backups, plan_chain
from polarvault.restore.plan.integrity import check_integrity, judge
from polarvault.restore.plan.places import check_space
from polarvault.restore.plan.plan import missing_wal, plan_restore, settle_plan, with_settings
from polarvault.restore.plan.recovery import check_recovery_request, plan_recovery
from polarvault.restore.plan.routing import Router
from polarvault.restore.standby.held_slot import held_slot
from polarvault.restore.standby.replica import (
    LocalHalfRouter,
    begin_replica,
    disarm,
    finish_replica,
    plan_replica,
    prove_storage,
)
from polarvault.restore.write.configuration import PutConfiguration
from polarvault.restore.write.finish import finish
from polarvault.restore.write.lay_out import LayOut, Progress
from polarvault.restore.write.staging import combine, remove_staging
from polarvault.restore.write.targets import Targets
from polarvault.storage.occupants import CONTROL_WAITING_NAME

if TYPE_CHECKING:
    from polarvault.instance.subscriptions import Subscription
    from polarvault.recovery.survey import ScanProgress
    from polarvault.recovery.watch import RecoveryOutcome, Watch
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
    """Those of the source that are disabled in the copy, because it was started as a primary."""


def prepare(
    request: RestoreRequest, host: Host, scan_progress: ScanProgress = lambda done, total: None
) -> tuple[RestorePlan, Account]:
    """Look at everything and plan; nothing is written. Raises for whatever would not work, except missing space.

    With a recovery target request.backup can also be a directory of backups; scan_progress is called while WAL is read.
    """
    check_recovery_request(request)
    if request.older:
        newest, older = order_backups([request.backup, *request.older], force=request.force)
        request = replace(request, backup=newest, older=older)
    candidates = candidates_in(request.backup, force=request.force)
    if candidates and not request.recovery.is_wanted:
        raise refuse_several(request.backup, candidates)
    if candidates:
        plan = choose_backup(request, candidates, lambda one: _plan_one(one, host, scan_progress))
    else:
        try:
            plan = _plan_one(request, host, scan_progress)
        except IntegrityError as problem:
            raise name_older_backup(problem, request.backup) from problem
    account = host.account(request.owner, plan.source.path)
    found, rejected = find_binaries(
        plan.major_version, account, polardb=plan.is_polardb, bindir=request.bindir, environment=os.environ
    )
    if found is None and (request.start or request.bindir):
        raise missing_binaries(plan.major_version, rejected, polardb=plan.is_polardb)
    if request.start:
        _check_startable(plan)
    plan = replace(plan, binaries=found)
    if plan.chain:
        plan = replace(plan, combine_program=_combine_program(plan, account))
    if request.primary_conninfo is None:
        return plan, account
    # Here and below: what speaks to a primary loads libpq, which a plain restore can do without.
    from polarvault.restore.standby.following import settle_with_primary

    return settle_with_primary(plan, host, account), account


def _plan_one(request: RestoreRequest, host: Host, scan_progress: ScanProgress) -> RestorePlan:
    """Plan the restore of one backup, and its recovery beyond its end if that is wanted."""
    is_replica = request.role is Role.REPLICA
    source = find_backup(request.backup, shared_from=request.shared_from, force=request.force, local_only=is_replica)
    account = host.account(request.owner, source.path)
    # What root may read and the account may not is read only where no link has led: see PlainTree.
    with working_as_account(account):
        inventory = take_inventory(source)
    chain = () if is_replica else plan_chain(request, source, inventory)
    listed = inventory
    if chain:
        request, inventory = replace(request, combines=True), combined(chain)
    plan_role = plan_replica if is_replica else plan_restore
    plan = plan_role(request, source, inventory, host, account)
    # After all that says more exactly what is wrong: a half that is not here, halves that do not belong together.
    found, warnings = check_integrity(request, source, listed, local_only=is_replica)
    warnings += [warning for link in chain for warning in link.warnings]
    plan = replace(
        plan, chain=chain, disagreements=found, lasting_warnings=tuple(warnings), warnings=(*warnings, *plan.warnings)
    )
    if request.role is not Role.PRIMARY or not request.recovery.is_wanted:
        return plan
    return with_settings(replace(plan, recovery=plan_recovery(plan, account, scan_progress)), host, account)


def _combine_program(plan: RestorePlan, account: Account) -> str:
    found = find_program(
        "pg_combinebackup", plan.major_version, account, bindir=plan.request.bindir, environment=os.environ
    )
    if found is None:
        raise StartFailed(
            f"no pg_combinebackup of PostgreSQL {plan.major_version} was found, and the incremental backup needs "
            "exactly this one; nothing was written",
            hint="name the directory that holds it: --bindir DIRECTORY",
        )
    return found


def restore_backup(
    plan: RestorePlan,
    host: Host,
    account: Account,
    progress: Progress,
    show: Show = lambda state: None,
    watch: Watch = lambda state: None,
    *,
    targets: Targets | None = None,
) -> RestoreResult:
    """Carry a plan out; on failure or interruption before the start everything made is removed again.

    show: called while a started standby catches up, watch: while a started server recovers; both with where it is.
    targets: claimed already, and the backup was put together in it (`stream.receive`).
    """
    check_space(plan)
    # The slot first: from then on the primary keeps the WAL that it writes while files are copied.
    with held_slot(plan):
        try:
            plan, warnings = write_files(plan, host, account, progress, targets=targets)
        except IntegrityError as problem:
            # Of a chain every link was needed: older means before the first.
            first = plan.chain[0].path if plan.chain else plan.source.path
            raise name_older_backup(problem, first) from problem
    result = RestoreResult(plan, (*plan.warnings, *warnings), None)
    if not plan.request.start or plan.binaries is None:
        return result
    from polarvault.instance.start import naming_the_server

    try:
        with naming_the_server(plan.instance):
            result = start_restored(result, plan.binaries, account, show, watch)
            return _without_subscriptions(result, account)
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


def _without_subscriptions(result: RestoreResult, account: Account) -> RestoreResult:
    """Disable the source's subscriptions in a copy that can be written; --keep-archiving: it replaces its source."""
    request, server = result.plan.request, result.server
    if server is None or server.in_recovery is not False or request.role is not Role.PRIMARY:
        return result
    if request.recovery.keep_archiving:
        return result
    from polarvault.instance.subscriptions import disable_subscriptions

    found = disable_subscriptions(result.plan.instance, account, server.host, server.port)
    return replace(result, subscriptions=tuple(found))


def start_restored(
    result: RestoreResult,
    binaries: Binaries,
    account: Account,
    show: Show = lambda state: None,
    watch: Watch = lambda state: None,
) -> RestoreResult:
    """Start what was laid out and wait until it has become what the plan says; show and watch as in restore_backup.

    Raises StartFailed with the end of the log, the files left in place.
    """
    plan = result.plan
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
    plan: RestorePlan, host: Host, account: Account, progress: Progress, *, targets: Targets | None = None
) -> tuple[RestorePlan, list[str]]:
    """Lay the files out and complete them; return the plan, settled by what was unpacked, and warnings.

    On failure and on KeyboardInterrupt, which becomes Interrupted, everything made is removed again. targets: as for
    restore_backup.
    """
    directory_mode = 0o750 if plan.inventory.group_readable else 0o700
    is_staged = targets is not None
    targets = targets or Targets(account, directory_mode=directory_mode, sync=plan.request.sync)
    is_replica = plan.request.role is Role.REPLICA
    put = PutConfiguration(plan.put_back, account, sync=plan.request.sync) if plan.put_back is not None else None
    try:
        targets.claim([root for root in plan.layout.roots if not (is_staged and root == plan.layout.local)])
        laid_out = combine(plan, account) if plan.chain else plan
        laying = LayOut(laid_out, _router(plan), progress, move=is_staged or bool(plan.chain))
        modes = {"file_mode": laying.file_mode, "directory_mode": laying.directory_mode}
        if is_replica:
            prove_storage(plan)
        with working_as_account(account):
            if is_replica:
                begin_replica(plan, file_mode=laying.file_mode)
            laying.run()
            if is_staged or plan.chain:
                remove_staging(plan)
        plan, warnings = _with_disagreements(plan, laying.checks.disagreements)
        if is_replica:
            return plan, warnings + finish_replica(plan, account, file_mode=laying.file_mode)
        if plan.inventory.control is None:
            with working_as_account(account):
                unpacked = _unpacked(plan)
            plan = settle_plan(plan, unpacked, host, account)
        if put is not None and plan.debian is not None:
            put.write()
        return plan, warnings + finish(plan, account, **modes)
    except KeyboardInterrupt:
        _undo(plan, targets, put)
        raise Interrupted("interrupted; what was restored so far has been removed") from None
    except BaseException:
        # A half restore must not look like a whole one.
        _undo(plan, targets, put)
        raise


def _with_disagreements(plan: RestorePlan, found: list[Disagreement]) -> tuple[RestorePlan, list[str]]:
    """Return the plan with what was found to be wrong while it was copied, and warnings for it."""
    new = found[len(plan.disagreements) :]
    return replace(plan, disagreements=tuple(found)), judge(plan.request, plan.source, new)


def _undo(plan: RestorePlan, targets: Targets, put: PutConfiguration | None) -> None:
    if put is not None:
        put.undo()
    if plan.request.role is Role.REPLICA:
        disarm(plan)
    targets.undo()


def _check_startable(plan: RestorePlan) -> None:
    # pg_ctl starts the server through a shell and puts the path between double quotes (bin/pg_ctl/pg_ctl.c).
    odd = next((character for character in plan.layout.local if character in '$`"\\'), None)
    if odd is not None:
        raise UsageError(
            f"pg_ctl cannot start a server in a directory with {odd} in its path: {plan.layout.local}",
            hint="choose a directory without it, or leave --start out",
        )
    missing = missing_wal(plan.inventory, plan.label) if plan.label else None
    supplied = any(name == "restore_command" for name, _ in plan.request.settings)
    streamed = plan.request.role is Role.STANDBY and plan.request.primary_conninfo
    supplied = supplied or bool(plan.request.recovery.wal_directories)
    if missing is not None and not supplied and not streamed:
        raise BackupUnusable(
            f"the backup does not hold WAL segment {missing}, without which it cannot be started; nothing was written",
            hint="name the directory that holds it: --wal DIR; or leave --start out and put the WAL into pg_wal",
        )


def _unpacked(plan: RestorePlan) -> dict[tuple[Area, str], bytes]:
    """Read back the files that decide about settings and lay too deep in a compressed tar to be seen before."""
    found = {}
    for name, place in ((CONTROL_NAME, CONTROL_WAITING_NAME), ("global/polar_settings.conf",) * 2):
        try:
            with open(os.path.join(plan.layout.data, place), "rb") as stream:
                found[Area.SHARED, name] = stream.read()
        except FileNotFoundError:
            continue
    if (Area.SHARED, CONTROL_NAME) not in found:
        raise BackupUnusable(
            f'"{plan.source.path}" holds no global/pg_control', hint="the backup is incomplete; restore another one"
        )
    return found


def _router(plan: RestorePlan) -> Router:
    is_replica = plan.request.role is Role.REPLICA
    two_halves = plan.inventory.has_shared_half or is_replica
    log_directory = None
    if two_halves:
        files = {"/" + name: body for (area, name), body in plan.inventory.files.items() if area is Area.LOCAL}
        value = Configuration("/", MemoryReader(files)).value("log_directory") or "log"
        log_directory = None if value.startswith("/") else value.strip("/")
    kind = LocalHalfRouter if is_replica else Router
    return kind(plan.layout, two_halves, log_directory)
