"""The use case: plan, lay out by reflink, cut off, start behind walls, recover, write down.

A clone that could not be made leaves nothing behind, its server is stopped; what it comes from is only read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg

from polarvault.clones.area import Area, Place
from polarvault.clones.base import OneBackup, Origin, Say, origin_of
from polarvault.clones.control import remove_place, sweep
from polarvault.clones.errors import CloneRefused
from polarvault.clones.model import CloneRecord, CloneRequest
from polarvault.clones.room import least_free_of
from polarvault.clones.settings import restore_request
from polarvault.clones.standby import lay_out_confined, standby_signal, start_as_standby
from polarvault.drill.place.isolation import check_settings
from polarvault.drill.place.network import build_walls, judge_walls
from polarvault.drill.place.server import DrillServer, reach
from polarvault.drill.planning import with_settings_of_version
from polarvault.errors import BackupUnusable, Interrupted, StartFailed, UsageError
from polarvault.instance.account import working_as_account
from polarvault.instance.host import Host
from polarvault.instance.model import Instance
from polarvault.instance.start import StartedServer
from polarvault.instance.subscriptions import disable_subscriptions
from polarvault.model import versions
from polarvault.model.finding import Severity
from polarvault.recovery.target import format_time
from polarvault.recovery.watch import RecoveryOutcome, Watch, start_and_recover
from polarvault.restore.facts import RestoreFacts
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.restore.plan.places import check_space
from polarvault.restore.run import prepare
from polarvault.snapshots.marks import read_mark
from polarvault.snapshots.model import Kind
from polarvault.snapshots.names import is_good_name
from polarvault.storage.files import write_durably
from polarvault.storage.processes import present_moment

_HBA_OF_SOURCE = (
    b"# Written by polarvault clone: the socket is in a directory that only its user can enter.\nlocal all all trust\n"
)


@dataclass(frozen=True, slots=True)
class Created:
    """A clone that runs, and what there is to say about it."""

    record: CloneRecord
    place: Place
    warnings: tuple[str, ...]


def create_clone(
    request: CloneRequest,
    host: Host,
    say: Say,
    *,
    clock: Callable[[], datetime],
    draw: int,
    options: Mapping[str, Any],
    replaces: Place | None = None,
    progress: Callable[[int], None] = lambda size: None,
    watch: Watch = lambda state: None,
) -> Created:
    """Make a clone and start it. draw: a random number, for the socket; options: what to write down for a reset.

    replaces: the clone whose name and port it takes. On a failure and on an interruption nothing is left.
    """
    check_settings(request.settings, "a clone")
    area = Area(request.area)
    _refuse_clone(request.source)
    area.make()
    for swept in sweep(area, clock()):
        say(swept)
    _check_name(request, area, replaces)
    least_free = least_free_of(request.area, host, request.least_free_bytes, way="; or accept less: --min-free SIZE")
    place = area.place(Kind.CLONE, area.new_id())
    warnings: list[str] = []
    settle = _behind_walls(place, request, warnings)
    plan = prepare(restore_request(request, place, draw), host, settle=settle)
    chosen = plan.source.path
    if plan.inventory.is_newer:
        known = versions.is_not_known(f"the backup's server, PostgreSQL {plan.major_version},")
        raise BackupUnusable(f"{known}, and a clone of it could not be kept apart", hint="use a newer polarvault")
    place.make(plan.account, chosen)
    with place.locked():
        try:
            origin = origin_of(plan, area, host, say, progress)
            if origin.backup is not None:
                shelf = OneBackup(origin.backup)
                # It was compared with its manifest when the base was made.
                from_base = replace(plan.request, backup=origin.backup.path, shelf=shelf, shared_from=None, older=())
                plan = prepare(from_base, host, settle=lambda asked, facts: asked)
            plan = _without_reading_twice(plan, origin)
            check_space(plan)
            plan, more = _lay_out(plan, place, request, host, progress)
            warnings += [*plan.warnings, *more]
            instance, server, outcome = _start(plan, request, watch)
            assert plan.binaries is not None
            inside = reach(plan, plan.binaries, plan.account, server)
            warnings += _look(inside, instance, plan, request)
            record = _record(
                request, place, plan, instance, inside, outcome, origin, chosen, clock(), least_free, options
            )
            place.write_record(record)
            place.finish(chosen)
        except (KeyboardInterrupt, Interrupted):
            remove_place(place)
            raise Interrupted("interrupted; the clone is removed, and its server is stopped") from None
        except BaseException:
            remove_place(place)
            raise
    return Created(record, place, tuple(dict.fromkeys(warnings)))


def _refuse_clone(source: str) -> None:
    path = os.path.realpath(source) if "/" in source else source
    while len(path) > 1 and "/" in path:
        mark = read_mark(path)
        # What a snapshot consists of may be a clone of the file system's; a clone of ours has a server's place in it.
        if mark is not None and mark.kind is Kind.CLONE and os.path.isdir(os.path.join(path, "run")):
            raise CloneRefused(
                f'"{source}" belongs to the clone {mark.id}: a clone of a clone is not made',
                hint="clone what it came from, to the same moment; see: polarvault clone list",
            )
        path = os.path.dirname(path)


def _check_name(request: CloneRequest, area: Area, replaces: Place | None) -> None:
    for place in area.places(Kind.CLONE):
        record = place.record()
        if record is None or place == replaces:
            continue
        if request.name is not None and record.name == request.name:
            raise CloneRefused(
                f'there is a clone "{request.name}" already', hint="choose another name, or: polarvault clone remove "
                f"{request.name}",
            )  # fmt: skip
        if request.port is not None and record.port == request.port and record.listens:
            raise CloneRefused(
                f'the clone "{record.name}" has port {request.port}', hint="choose another one: --port N"
            )


def _behind_walls(
    place: Place, request: CloneRequest, warnings: list[str]
) -> Callable[[RestoreRequest, RestoreFacts], RestoreRequest]:
    def settle(asked: RestoreRequest, facts: RestoreFacts) -> RestoreRequest:
        walls = build_walls(facts.host.account, listens=request.port is not None)
        finding = judge_walls(walls, place.data)
        if finding.severity is not Severity.OK and (request.port is None or not walls.refuses_connect):
            warnings.append(f"{finding.message}: {finding.meaning}")
        return with_settings_of_version(asked, facts, walls)

    return settle


def _without_reading_twice(plan: RestorePlan, origin: Origin) -> RestorePlan:
    """Compare no contents where files are shared: reading all of them is what a clone saves; drill and verify do it."""
    return replace(plan, request=replace(plan.request, verify_checksums=not origin.shares))


def _lay_out(
    plan: RestorePlan, place: Place, request: CloneRequest, host: Host, progress: Callable[[int], None]
) -> tuple[RestorePlan, list[str]]:
    plan, warnings = lay_out_confined(plan, place, host, progress)
    with working_as_account(plan.account):
        if request.port is not None:
            _admit_as_the_source(plan, place)
        if request.read_only:
            os.rename(plan.signal_path, standby_signal(plan))
    return plan, warnings


def _admit_as_the_source(plan: RestorePlan, place: Place) -> None:
    """Put the source's rules behind a line for the socket; files that they name are looked for beside them."""
    for name, target, first in (
        ("pg_hba.conf", place.hba_file, _HBA_OF_SOURCE),
        ("pg_ident.conf", place.ident_file, b""),
    ):
        try:
            with open(os.path.join(plan.layout.local, name), "rb") as stream:
                content = stream.read()
        except FileNotFoundError:
            content = b""
        write_durably(target, first + content, sync=False)


def _start(
    plan: RestorePlan, request: CloneRequest, watch: Watch
) -> tuple[Instance, StartedServer, RecoveryOutcome | None]:
    """Start it and wait until it is where it is to be."""
    assert plan.binaries is not None
    assert plan.recovery is not None
    if request.read_only:
        return start_as_standby(plan, watch)
    instance = plan.instance
    started, outcome = start_and_recover(instance, plan.recovery, plan.binaries, plan.account, watch)
    if started is None:
        raise StartFailed("the clone's server shut down at its target")
    return instance, started, outcome


def _look(server: DrillServer, instance: Instance, plan: RestorePlan, request: CloneRequest) -> list[str]:
    """Say what of the source's could still act in the clone, and switch off what can be; nothing there ends a clone."""
    found = []
    if not request.read_only:
        for one in disable_subscriptions(instance, plan.account, server.host, server.port):
            found.append(f"the subscription {one.name} of database {one.database} is disabled in the clone")
    with suppress(psycopg.Error):
        with server.connect("template1") as connection:
            (libraries,) = connection.execute("SELECT current_setting('shared_preload_libraries')").fetchone() or ("",)
            prepared = connection.execute("SELECT count(*) FROM pg_prepared_xacts").fetchone()
        if libraries:
            found.append(f"it preloads {libraries}: workers of such libraries run in the clone, and cannot connect")
        if prepared and prepared[0]:
            found.append(
                f"{prepared[0]} prepared transactions of the source hold their locks in the clone: ROLLBACK PREPARED"
            )
        for name, problem in server.databases():
            if problem is not None:
                continue
            with suppress(psycopg.Error), server.connect(name) as connection:
                rows = connection.execute("SELECT srvname FROM pg_foreign_server ORDER BY 1").fetchall()
                if rows:
                    names = ", ".join(row[0] for row in rows)
                    found.append(f"database {name} has foreign servers ({names}): the clone is not to reach them")
    return found


def _record(
    request: CloneRequest, place: Place, plan: RestorePlan, instance: Instance, server: DrillServer,
    outcome: RecoveryOutcome | None, origin: Origin, chosen: str, now: datetime, least_free: int,
    options: Mapping[str, Any],
) -> CloneRecord:  # fmt: skip
    lsn, when = _where(server, outcome)
    words = f"LSN {lsn}" if lsn else "the end of the WAL"
    if when is not None:
        words += f", {format_time(when)}"
    assert plan.binaries is not None
    return CloneRecord(
        id=place.id,
        name=request.name or place.id,
        source=chosen,
        made=now,
        origin=origin.directories,
        shares=origin.shares,
        moment=words,
        lsn=lsn,
        timeline_id=outcome.timeline_id if outcome else None,
        major=plan.major_version,
        is_polardb=plan.is_polardb,
        read_only=request.read_only,
        port=plan.request.port or 0,
        listens=request.port is not None,
        superuser=server.user,
        socket_directory=place.socket_directory,
        data=plan.layout.local,
        control_path=instance.control_path,
        wal_directory=instance.wal_directory,
        signal_path=instance.signal_path,
        source_timeline_id=instance.source_timeline_id,
        segment_size_bytes=instance.segment_size_bytes,
        binaries=plan.binaries.directory,
        version=plan.binaries.version,
        account=plan.account.name,
        uid=plan.account.uid,
        gid=plan.account.gid,
        timeout_s=request.timeout_s,
        ttl_s=request.ttl_s,
        max_bytes=request.max_bytes,
        least_free_bytes=least_free,
        boot_id=present_moment().boot_id,
        request=dict(options),
    )


def _where(server: DrillServer, outcome: RecoveryOutcome | None) -> tuple[str | None, datetime | None]:
    """Return where recovery stopped; of one that goes on waiting, where it is."""
    if outcome is not None:
        return None if outcome.lsn is None else str(outcome.lsn), outcome.time
    with suppress(psycopg.Error), server.connect("template1") as connection:
        row = connection.execute("SELECT pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp()").fetchone()
        if row is not None:
            return row[0], row[1]
    return None, None


def check_request(request: CloneRequest) -> None:
    """Raise UsageError for what cannot be meant."""
    if request.port is not None and not 1024 <= request.port <= 65535:
        raise UsageError(f"--port {request.port}: a port of a clone is a number from 1024 to 65535")
    if request.name is not None and not is_good_name(request.name):
        raise UsageError(
            f"--name {request.name!r}: a name has letters, digits, dots, _ and -, at most 63, and begins with a letter"
        )
