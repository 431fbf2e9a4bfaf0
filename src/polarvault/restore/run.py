"""The use case: recognise, plan, write, start. This file reads as the table of contents of a restore."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from polarvault.errors import BackupUnusable, Interrupted
from polarvault.pgconf.configuration import Configuration, MemoryReader
from polarvault.restore.binaries import find_binaries, missing_binaries
from polarvault.restore.finish import finish
from polarvault.restore.host import Account, Host
from polarvault.restore.inventory import take_inventory
from polarvault.restore.lay_out import LayOut, Progress
from polarvault.restore.model import CONTROL_NAME, CONTROL_WAITING_NAME, Area, RestorePlan, RestoreRequest, Role
from polarvault.restore.places import check_space
from polarvault.restore.plan import missing_wal, plan_restore, settle_plan
from polarvault.restore.routing import Router
from polarvault.restore.source import find_backup
from polarvault.restore.start import StartedServer, start_server
from polarvault.restore.targets import Targets


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore did; server is None when none was started."""

    plan: RestorePlan
    warnings: tuple[str, ...]
    server: StartedServer | None


def prepare(request: RestoreRequest, host: Host) -> tuple[RestorePlan, Account]:
    """Look at everything and plan; nothing is written. Raises for whatever would not work, except missing space."""
    source = find_backup(request.backup, shared_from=request.shared_from, force=request.force)
    inventory = take_inventory(source)
    account = host.account(request.owner, source.path)
    plan = plan_restore(request, source, inventory, host, account)
    found, rejected = find_binaries(
        plan.major_version, account, polardb=plan.is_polardb, bindir=request.bindir, environment=os.environ
    )
    if found is None and (request.start or request.bindir):
        raise missing_binaries(plan.major_version, rejected, polardb=plan.is_polardb)
    if request.start:
        _check_startable(plan)
    return replace(plan, binaries=found), account


def restore_backup(plan: RestorePlan, host: Host, account: Account, progress: Progress) -> RestoreResult:
    """Carry a plan out; on failure or interruption before the start everything made is removed again."""
    check_space(plan)
    directory_mode = 0o750 if plan.inventory.group_readable else 0o700
    targets = Targets(account, directory_mode=directory_mode)
    try:
        targets.claim(plan.layout.roots)
        laying = LayOut(plan, _router(plan), account, progress)
        laying.run()
        if plan.inventory.control is None:
            plan = settle_plan(plan, _unpacked(plan), host, account)
        warnings = finish(plan, account, file_mode=laying.file_mode, directory_mode=laying.directory_mode)
    except KeyboardInterrupt:
        targets.undo()
        raise Interrupted("interrupted; what was restored so far has been removed") from None
    except BaseException:
        # A half restore must not look like a whole one.
        targets.undo()
        raise
    server = None
    if plan.request.start and plan.binaries is not None:
        try:
            server = start_server(plan, plan.binaries, account)
        except KeyboardInterrupt:
            raise Interrupted(
                f'interrupted while the restored server in "{plan.layout.local}" was starting; it is left as it is',
                hint=f"{plan.binaries.program('pg_ctl')} -D {plan.layout.local} status",
            ) from None
    return RestoreResult(plan, (*plan.warnings, *warnings), server)


def _check_startable(plan: RestorePlan) -> None:
    missing = missing_wal(plan.inventory, plan.label) if plan.label else None
    supplied = any(name == "restore_command" for name, _ in plan.request.settings)
    streamed = plan.request.role is Role.STANDBY and plan.request.primary_conninfo
    if missing is not None and not supplied and not streamed:
        raise BackupUnusable(
            f"the backup does not hold WAL segment {missing}, without which it cannot be started; nothing was written",
            hint="add --set restore_command='cp ARCHIVE/%f \"%p\"', or leave --start out and put the WAL into pg_wal",
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
    two_halves = plan.inventory.has_shared_half
    log_directory = None
    if two_halves:
        files = {"/" + name: body for (area, name), body in plan.inventory.files.items() if area is Area.LOCAL}
        value = Configuration("/", MemoryReader(files)).value("log_directory") or "log"
        log_directory = None if value.startswith("/") else value.strip("/")
    return Router(plan.layout, two_halves, log_directory)
