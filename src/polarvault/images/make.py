"""The use case: lay out, start as a standby that follows nobody, replay, stop in recovery, keep.

The first image is made of a backup, every next one of the image before it, which is only read. Nothing of the new one
counts before its mark says that it is whole, so that whatever happens the last image stays good.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import psycopg

from polarvault.backupset.backup import Shelf
from polarvault.backupset.source import OnDisk, find_backup
from polarvault.clones.base import BackupInBase, OneBackup, shares_with
from polarvault.clones.control import remove_place
from polarvault.clones.room import least_free_of
from polarvault.clones.standby import lay_out_confined, standby_signal, start_as_standby
from polarvault.drill.place.network import build_walls, judge_walls
from polarvault.drill.place.server import reach
from polarvault.drill.planning import confined_request, with_settings_of_version
from polarvault.errors import BackupUnusable, Interrupted, StartFailed
from polarvault.images.area import ImageArea, ImagePlace
from polarvault.images.errors import ImageRefused
from polarvault.images.finish import finish_image
from polarvault.images.model import ImageRecord, ImageRequest
from polarvault.instance.account import working_as_account
from polarvault.instance.host import Host
from polarvault.model import versions
from polarvault.model.finding import Severity
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.control import ControlFile
from polarvault.recovery.target import CURRENT_TIMELINE, RecoveryRequest, RecoveryTarget, TargetAction, TargetKind
from polarvault.recovery.watch import Watch
from polarvault.restore.facts import RestoreFacts
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.restore.plan.places import check_space
from polarvault.restore.run import prepare

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Making:
    """Who makes an image: this machine, and how it is told what happens. draw: a random number, for the socket."""

    host: Host
    say: Say
    clock: Callable[[], datetime]
    draw: int
    progress: Callable[[int], None] = lambda size: None
    watch: Watch = lambda state: None


@dataclass(frozen=True, slots=True)
class _Origin:
    """What an image is made of."""

    word: str
    shelf: Shelf
    number: int


@dataclass(frozen=True, slots=True)
class MadeImage:
    """An image that is whole, and what there is to say about it."""

    place: ImagePlace
    record: ImageRecord
    warnings: tuple[str, ...]


def create_image(request: ImageRequest, making: Making, *, options: Mapping[str, Any]) -> MadeImage:
    """Make the first image of a series, of a backup; on a failure and on an interruption nothing is left."""
    area = _prepared(request, making)
    if area.series(request.series):
        raise ImageRefused(
            f'there is an image "{request.series}" already',
            hint=f"replay more WAL: polarvault image advance {request.series}; or choose another name: --name NAME",
        )
    return _make(request, making, area, _Origin(request.source, request.shelf, 1), options)


def advance_image(request: ImageRequest, making: Making) -> MadeImage:
    """Make the next image of a series, of the newest one; then remove what is not kept.

    Raises ImageRefused while somebody else does the same. On a failure the newest image is as it was.
    """
    area = _prepared(request, making)
    place, newest = area.newest(request.series)
    with place.locked(wait=False):
        shelf: Shelf = OnDisk()
        if request.recovery.uses_archive:
            original = request.shelf.find(request.source)
            shelf = OneBackup(BackupInBase(newest.backup, original, find_backup(newest.backup).look_through()))
        made = _make(
            _on_its_timeline(request, newest),
            making,
            area,
            _Origin(newest.backup, shelf, newest.number + 1),
            newest.request,
        )
    for done in area.prune(request.series, request.keep):
        making.say(done)
    return made


def _prepared(request: ImageRequest, making: Making) -> ImageArea:
    area = ImageArea(request.area)
    area.make()
    for done in area.sweep():
        making.say(done)
    least_free_of(area.path, making.host)
    return area


def _make(
    request: ImageRequest, making: Making, area: ImageArea, origin: _Origin, options: Mapping[str, Any]
) -> MadeImage:
    place = area.new()
    warnings: list[str] = []
    asked = confined_request(
        replace(request, shelf=origin.shelf), origin.word, place, _recovery_of(request.recovery), draw=making.draw,
        confined_to=place.run, purpose="image",
    )  # fmt: skip
    plan = prepare(asked, making.host, settle=_behind_walls(place, warnings))
    if plan.inventory.is_newer:
        known = versions.is_not_known(f"the backup's server, PostgreSQL {plan.major_version},")
        raise BackupUnusable(f"{known}, and an image of it could not be kept apart", hint="use a newer polarvault")
    shares = shares_with(plan, area.path)
    if not shares:
        making.say(
            f'files of "{plan.source.path}" and of "{area.path}" share no blocks: this image is a whole copy'
            + ("; on XFS and btrfs the next one is not" if origin.number == 1 else "; XFS and btrfs can share them")
        )
    place.make(plan.account, plan.source.path)
    with place.locked():
        try:
            record, more = _replayed(request, making, plan, place, origin, options, shares=shares)
            place.write_record(record)
            place.complete((plan.source.path,))
        except (KeyboardInterrupt, Interrupted):
            remove_place(place)
            raise Interrupted("interrupted; what was made is removed, and its server is stopped") from None
        except StartFailed as problem:
            remove_place(place)
            # Its log has gone with it, but for the end.
            problem.hint = "what was made is removed, and the image before it, if there is one, is as it was; try again"
            raise
        except BaseException:
            remove_place(place)
            raise
    return MadeImage(place, record, tuple(dict.fromkeys([*warnings, *more])))


def _replayed(
    request: ImageRequest, making: Making, plan: RestorePlan, place: ImagePlace, origin: _Origin,
    options: Mapping[str, Any], *, shares: bool,
) -> tuple[ImageRecord, list[str]]:  # fmt: skip
    check_space(plan)
    # Reading all of an image again is what reflinks save; that its files are right is what its replay shows.
    is_image = origin.number > 1
    plan = replace(plan, request=replace(plan.request, verify_checksums=not (shares and is_image)))
    plan, warnings = lay_out_confined(plan, place, making.host, making.progress)
    with working_as_account(plan.account):
        os.rename(plan.signal_path, standby_signal(plan))
    _, started, outcome = start_as_standby(plan, making.watch)
    assert plan.binaries is not None
    assert plan.recovery is not None
    server = reach(plan, plan.binaries, plan.account, started)
    time = outcome.time if outcome is not None else None
    if outcome is None:
        with suppress(psycopg.Error), server.connect("template1") as connection:
            row = connection.execute("SELECT pg_last_xact_replay_timestamp()").fetchone()
            time = row[0] if row is not None else None
    server.stop()
    control = finish_image(plan, place, f"polarvault image {request.series}", making.clock())
    # An image has no manifest, as everybody knows who has one.
    known = [one for one in plan.warnings if not (is_image and "no backup_manifest" in one)]
    warnings = [*known, *warnings, *_left_behind(plan, request)]
    record = _record(request, plan, place, origin, options, control, time, making.clock())
    return replace(record, shares=shares), warnings


def _record(
    request: ImageRequest, plan: RestorePlan, place: ImagePlace, origin: _Origin, options: Mapping[str, Any],
    control: ControlFile, time: datetime | None, now: datetime,
) -> ImageRecord:  # fmt: skip
    assert plan.binaries is not None
    return ImageRecord(
        id=place.id,
        name=f"{request.series}.{origin.number}",
        series=request.series,
        number=origin.number,
        made=now,
        source=plan.source.path,
        start_lsn=str(control.redo_lsn),
        lsn=str(Lsn(max(control.minimum_recovery_lsn, control.checkpoint_lsn))),
        time=None if time is None else time.astimezone(UTC).isoformat(),
        start_timeline_id=control.timeline_id,
        timeline_id=max(control.timeline_id, control.minimum_recovery_timeline_id),
        shares=False,
        system_identifier=str(control.system_identifier),
        version=plan.binaries.version,
        major=plan.major_version,
        is_polardb=plan.is_polardb,
        backup=plan.layout.local,
        shared=plan.layout.shared,
        keep=request.keep,
        request=dict(options),
    )


def _on_its_timeline(request: ImageRequest, newest: ImageRecord) -> ImageRequest:
    """Return the request for what the image is now, with its own timeline unless another one is asked for.

    A server that was promoted may be one that is given up again.
    """
    request = replace(request, shared_from=None, merge=False)
    if request.recovery.timeline != CURRENT_TIMELINE or newest.timeline_id == newest.start_timeline_id:
        return request
    # Its checkpoint is still on the timeline before.
    return replace(request, recovery=replace(request.recovery, timeline=newest.timeline_id))


def _recovery_of(asked: RecoveryRequest) -> RecoveryRequest:
    """Return where recovery goes: to the end of the WAL unless something else was asked for; it never promotes."""
    target = asked.target or RecoveryTarget(TargetKind.LATEST)
    return replace(
        asked, target=target, action=None if target.kind is TargetKind.LATEST else TargetAction.PAUSE
    )  # fmt: skip


def _behind_walls(place: ImagePlace, warnings: list[str]) -> Callable[[RestoreRequest, RestoreFacts], RestoreRequest]:
    def settle(asked: RestoreRequest, facts: RestoreFacts) -> RestoreRequest:
        walls = build_walls(facts.host.account)
        finding = judge_walls(walls, place.data)
        if finding.severity is not Severity.OK:
            warnings.append(f"{finding.message}: {finding.meaning}")
        return with_settings_of_version(asked, facts, walls)

    return settle


def _left_behind(plan: RestorePlan, request: ImageRequest) -> list[str]:
    """Say which timelines go on that were not asked for."""
    seen = plan.recovery.reachable if plan.recovery is not None else None
    if seen is None or not seen.other_timelines:
        return []
    numbers = ", ".join(map(str, seen.other_timelines))
    return [
        f"the image is on timeline {seen.timeline_id}; the WAL has timelines that begin on it: {numbers}; to follow "
        f"one: polarvault image advance {request.series} --target-timeline {seen.other_timelines[-1]}"
    ]
