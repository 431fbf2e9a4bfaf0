"""From what a clone is asked to what a restore is asked: a private place, private settings, an end to recover to."""

from __future__ import annotations

from dataclasses import replace

from polarvault.clones.area import Place
from polarvault.clones.model import CloneRequest
from polarvault.drill.place.isolation import choose_port, private_settings
from polarvault.recovery.target import RecoveryRequest, RecoveryTarget, TargetAction, TargetKind
from polarvault.restore.model import RestoreRequest


def restore_request(request: CloneRequest, place: Place, draw: int) -> RestoreRequest:
    """Return the request for the restore; draw is a random number, for the name of the socket."""
    recovery = recovery_of(request)
    return RestoreRequest(
        backup=request.source,
        target=place.data,
        shared_from=request.shared_from,
        port=request.port or choose_port(draw),
        settings=private_settings(
            socket_directory=place.socket_directory,
            hba_file=place.hba_file,
            ident_file=place.ident_file,
            wanted=request.settings,
            purpose="clone",
            listen_addresses="" if request.port is None else "127.0.0.1",
        ),
        shelf=request.shelf,
        # Behind its walls the clone's server reaches no object store, and it is given no key.
        brings_wal=recovery.uses_archive,
        merge=request.merge,
        start=True,
        timeout_s=request.timeout_s,
        bindir=request.bindir,
        owner=request.owner,
        force=request.force,
        recovery=recovery,
        superuser=request.superuser,
        confined_to=place.run,
    )


def recovery_of(request: CloneRequest) -> RecoveryRequest:
    """Return where recovery goes: to the end of the WAL, and promoted, unless something else was asked for."""
    asked = request.recovery
    target = asked.target or RecoveryTarget(TargetKind.LATEST)
    action = None
    if target.kind is not TargetKind.LATEST:
        action = TargetAction.PAUSE if request.read_only else TargetAction.PROMOTE
    return replace(asked, target=target, action=action)
