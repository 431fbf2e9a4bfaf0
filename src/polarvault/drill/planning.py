"""From what a use case that starts a confined copy was asked to what a restore is asked: private, with an end."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from polarvault.backupset.backup import Shelf
from polarvault.drill.model import DrillRequest
from polarvault.drill.place.isolation import choose_port, private_settings, settings_of_version
from polarvault.drill.place.network import Walls
from polarvault.drill.place.scratch import Scratch
from polarvault.model import versions
from polarvault.recovery.target import RecoveryRequest, RecoveryTarget, TargetAction, TargetKind
from polarvault.restore.facts import RestoreFacts
from polarvault.restore.model import RestoreRequest


class Asked(Protocol):
    """What a use case that starts a confined copy was asked."""

    @property
    def shared_from(self) -> str | None:
        """Where the backup's shared half is, if it cannot be found."""

    @property
    def shelf(self) -> Shelf:
        """Where the backup is found."""

    @property
    def merge(self) -> bool:
        """PolarDB: both halves into one."""

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """The user's own."""

    @property
    def timeout_s(self) -> float:
        """How long recovery may take."""

    @property
    def bindir(self) -> str | None:
        """Where the programs are."""

    @property
    def owner(self) -> str | None:
        """The account, when root."""

    @property
    def superuser(self) -> str | None:
        """Who logs in."""

    @property
    def force(self) -> bool:
        """Take a backup that was never completed."""


class Private(Protocol):
    """The place of a confined copy."""

    @property
    def data(self) -> str:
        """The data directory."""

    @property
    def socket_directory(self) -> str:
        """Where its socket is."""

    @property
    def hba_file(self) -> str:
        """Its own pg_hba.conf."""

    @property
    def ident_file(self) -> str:
        """Its own pg_ident.conf."""


def confined_request(
    asked: Asked, backup: str, place: Private, recovery: RecoveryRequest, *, draw: int, confined_to: str,
    purpose: str = "drill", port: int | None = None,
) -> RestoreRequest:  # fmt: skip
    """Return the request for a restore that is started where nobody reaches it and it reaches nobody.

    draw: a random number, for the name of the socket. port: TCP port on 127.0.0.1, None for a socket alone.
    """
    return RestoreRequest(
        backup=backup,
        target=place.data,
        shared_from=asked.shared_from,
        port=port or choose_port(draw),
        settings=private_settings(
            socket_directory=place.socket_directory,
            hba_file=place.hba_file,
            ident_file=place.ident_file,
            wanted=asked.settings,
            purpose=purpose,
            listen_addresses="" if port is None else "127.0.0.1",
        ),
        shelf=asked.shelf,
        # Behind its walls the copy's server reaches no object store, and it is given no key.
        brings_wal=recovery.uses_archive,
        merge=asked.merge,
        start=True,
        timeout_s=asked.timeout_s,
        bindir=asked.bindir,
        owner=asked.owner,
        force=asked.force,
        recovery=recovery,
        superuser=asked.superuser,
        confined_to=confined_to,
    )


def restore_request(request: DrillRequest, scratch: Scratch, draw: int) -> RestoreRequest:
    """Return the request for the restore; draw is a random number, for the port."""
    recovery = request.recovery
    # A named end makes the plan read the backup's own WAL as well: what is missing there is found before the copy.
    recovery = replace(
        recovery,
        target=recovery.target or RecoveryTarget(TargetKind.LATEST),
        action=_action(recovery),
    )
    confined = confined_request(request, request.backup, scratch, recovery, draw=draw, confined_to=scratch.directory)
    return replace(confined, older=request.older, sync=request.sync, reports_damage=True, jobs=request.copy_jobs)


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
