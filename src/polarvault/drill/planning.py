"""From what a drill was asked to what a restore is asked: a private place, private settings, an end to recover to."""

from __future__ import annotations

from dataclasses import replace

from polarvault.drill.model import DrillRequest
from polarvault.drill.place.isolation import choose_port, private_settings, settings_of_version
from polarvault.drill.place.network import Walls
from polarvault.drill.place.scratch import Scratch
from polarvault.model import versions
from polarvault.recovery.target import RecoveryRequest, RecoveryTarget, TargetAction, TargetKind
from polarvault.restore.facts import RestoreFacts
from polarvault.restore.model import RestoreRequest


def restore_request(request: DrillRequest, scratch: Scratch, draw: int) -> RestoreRequest:
    """Return the request for the restore; draw is a random number, for the port."""
    recovery = request.recovery
    # A named end makes the plan read the backup's own WAL as well: what is missing there is found before the copy.
    recovery = replace(
        recovery,
        target=recovery.target or RecoveryTarget(TargetKind.LATEST),
        action=_action(recovery),
    )
    return RestoreRequest(
        backup=request.backup,
        older=request.older,
        target=scratch.data,
        shared_from=request.shared_from,
        port=choose_port(draw),
        settings=private_settings(
            socket_directory=scratch.socket_directory,
            hba_file=scratch.hba_file,
            ident_file=scratch.ident_file,
            wanted=request.settings,
        ),
        shelf=request.shelf,
        # Behind its walls the copy's server reaches no object store, and it is given no key.
        brings_wal=recovery.uses_archive,
        merge=request.merge,
        start=True,
        timeout_s=request.timeout_s,
        bindir=request.bindir,
        owner=request.owner,
        sync=request.sync,
        force=request.force,
        reports_damage=True,
        jobs=request.copy_jobs,
        recovery=recovery,
        superuser=request.superuser,
        confined_to=scratch.directory,
    )


def _action(recovery: RecoveryRequest) -> TargetAction | None:
    """Return the action: a drill promotes unless told otherwise; at the end of the WAL there is no choice."""
    if recovery.target is None or recovery.target.kind is TargetKind.LATEST:
        return None
    return recovery.action or TargetAction.PROMOTE


def with_settings_of_version(request: RestoreRequest, facts: RestoreFacts, walls: Walls) -> RestoreRequest:
    """Return the request with the settings that only the backup's version knows, and with a start behind the walls."""
    major = facts.backup.major_version
    more = settings_of_version(major)
    if walls.refuses_connect and versions.of_server(major * 10000).has_io_method:
        # io_uring is refused with what connects.
        more = (*more, ("io_method", "worker"))
    return replace(request, settings=(*request.settings, *more), start_through=walls.prefix)
