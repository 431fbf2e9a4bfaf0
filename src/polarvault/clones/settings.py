"""From what a clone is asked to what a restore is asked: a private place, private settings, an end to recover to."""

from __future__ import annotations

from dataclasses import replace

from polarvault.clones.area import Place
from polarvault.clones.model import CloneRequest
from polarvault.drill.planning import confined_request
from polarvault.recovery.target import RecoveryRequest, RecoveryTarget, TargetAction, TargetKind
from polarvault.restore.model import RestoreRequest


def restore_request(request: CloneRequest, place: Place, draw: int) -> RestoreRequest:
    """Return the request for the restore; draw is a random number, for the name of the socket."""
    return confined_request(
        request, request.source, place, recovery_of(request), draw=draw, confined_to=place.run, purpose="clone",
        port=request.port,
    )  # fmt: skip


def recovery_of(request: CloneRequest) -> RecoveryRequest:
    """Return where recovery goes: to the end of the WAL, and promoted, unless something else was asked for."""
    asked = request.recovery
    target = asked.target or RecoveryTarget(TargetKind.LATEST)
    action = None
    if target.kind is not TargetKind.LATEST:
        action = TargetAction.PAUSE if request.read_only else TargetAction.PROMOTE
    return replace(asked, target=target, action=action)
