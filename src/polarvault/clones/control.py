"""What is done with clones that are there: look, start, stop, remove; and what is over is taken away."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from psycopg.conninfo import make_conninfo

from polarvault.clones.area import Area, Place
from polarvault.clones.errors import CloneRefused
from polarvault.clones.model import CloneRecord, CloneState, CloneStatus
from polarvault.drill.place.confined import ConfinedThing
from polarvault.drill.place.network import build_walls
from polarvault.drill.place.processes import postmaster_of, stop_whatever_runs
from polarvault.errors import StartFailed
from polarvault.instance.lock_file import LOCK_FILE_NAME
from polarvault.instance.model import Account, Binaries, Instance, Role
from polarvault.instance.programs import examine
from polarvault.instance.start import start_server
from polarvault.snapshots.marks import remove_marked
from polarvault.snapshots.model import Kind
from polarvault.storage.extents import allocated_bytes_below, own_bytes_below
from polarvault.storage.processes import present_moment

_TIME_TO_LOCK_S = 10.0


def connection_of(record: CloneRecord) -> str:
    """Return the connection string for people: over the private socket, or 127.0.0.1 where a port was asked for."""
    host = "127.0.0.1" if record.listens else record.socket_directory
    return make_conninfo("", host=host, port=str(record.port), user=record.superuser, dbname="postgres")


def look_at(place: Place, *, sizes: bool = True) -> CloneStatus:
    """Return what is seen of a clone. sizes: look how much room it takes, which reads the map of every file."""
    record = place.record()
    mark = place.mark
    if record is None or mark is None or not mark.is_whole:
        return CloneStatus(place.id, place.directory, CloneState.UNFINISHED, None, None)
    own = own_bytes(place, record) if sizes else None
    if postmaster_of(record.data) is not None:
        return CloneStatus(place.id, place.directory, CloneState.RUNNING, record, own, connection_of(record))
    state = CloneState.DIED
    if record.stopped is not None:
        state = CloneState.STOPPED
    elif record.boot_id != present_moment().boot_id:
        state = CloneState.HOST_RESTARTED
    return CloneStatus(place.id, place.directory, state, record, own)


def own_bytes(place: Place, record: CloneRecord) -> int | None:
    """Return what a clone takes that it shares with nobody; None where the file system does not tell."""
    return own_bytes_below(place.run) if record.shares else allocated_bytes_below(place.run)


def start(place: Place) -> CloneStatus:
    """Start a clone's server behind its walls, as it was started first; raise CloneRefused, StartFailed."""
    with place.locked():
        record = _known(place)
        if postmaster_of(record.data) is not None:
            raise CloneRefused(f'the clone "{record.name}" runs already', hint=f"psql '{connection_of(record)}'")
        account = Account(record.account, record.uid, record.gid)
        found = examine(record.binaries, account)
        if not isinstance(found, Binaries) or found.major != record.major or found.is_polardb != record.is_polardb:
            raise StartFailed(
                f'the programs in "{record.binaries}" are not those of {record.version} any more',
                hint="install them there again, or make the clone anew: polarvault clone reset " + record.name,
            )
        walls = build_walls(account, listens=record.listens)
        instance = _instance(record, walls.prefix)
        _remove_stale_locks(record)
        start_server(instance, found, account)
        place.write_record(replace(record, stopped=None, boot_id=present_moment().boot_id))
    return look_at(place)


def stop(place: Place, *, why: str = "it was stopped") -> CloneStatus:
    """Stop a clone's server; one that does not run stays as it is."""
    with place.locked():
        record = _known(place)
        stop_whatever_runs(record.data)
        place.write_record(replace(record, stopped=record.stopped or why))
    return look_at(place)


def remove(area: Area, place: Place) -> None:
    """Stop a clone and remove it with everything in it; raise CloneRefused for a base copy that clones come from."""
    with place.locked():
        if place.kind is Kind.BASE and (users := list(users_of(area, place))):
            raise CloneRefused(
                f"the base copy {place.id} is what clones are made of: {', '.join(users)}",
                hint="they go first, if they are not needed any more: polarvault clone remove NAME",
            )
        remove_place(place)


def users_of(area: Area, base: Place) -> Iterator[str]:
    """Yield the names of the clones that came from a base copy: a reset needs it."""
    for place in area.places(Kind.CLONE):
        record = place.record()
        if record is not None and base.data in record.origin:
            yield record.name


def remove_place(place: ConfinedThing[Any]) -> None:
    """Stop whatever runs in a directory of ours, and remove it; the caller has its lock."""
    stop_whatever_runs(place.data)
    outside = place.socket_directory
    if not outside.startswith(place.directory + os.sep):
        shutil.rmtree(outside, ignore_errors=True)
    remove_marked(place.directory, place.kind, place.id)


def sweep(area: Area, now: datetime) -> list[str]:
    """Remove clones whose time is over, and what a killed command has left; return what was done, in words.

    What somebody works on is left to them.
    """
    done = []
    for place in (*area.places(Kind.CLONE), *area.places(Kind.BASE)):
        record, mark = place.record(), place.mark
        is_over = record is not None and record.expires is not None and record.expires <= now
        is_left = mark is not None and not mark.is_whole and is_old(place)
        if not is_over and not is_left:
            continue
        try:
            with place.locked(wait=False):
                # It may have become whole since.
                mark = place.mark
                if is_over or (mark is not None and not mark.is_whole and place.kind is Kind.CLONE):
                    remove_place(place)
                    why = "its time is over" if is_over else "what made it was killed"
                    done.append(f'removed the clone "{record.name if record else place.id}": {why}')
        except CloneRefused:
            continue
    return done


def is_old(place: ConfinedThing[Any]) -> bool:
    """Tell whether what makes a directory had the time to lock it."""
    try:
        return time.time() - os.stat(place.directory).st_mtime > _TIME_TO_LOCK_S
    except OSError:
        return False


def _remove_stale_locks(record: CloneRecord) -> None:
    """Remove what a killed server has left; the caller knows from the process table that none runs there.

    The next one looks whether a process of that number is there, and takes one for it that nobody has reaped yet, or,
    after a start of the machine, that is another account's program (server: CreateLockFile).
    """
    socket = os.path.join(record.socket_directory, f".s.PGSQL.{record.port}")
    for path in (os.path.join(record.data, LOCK_FILE_NAME), socket, f"{socket}.lock"):
        with suppress(FileNotFoundError):
            os.unlink(path)


def _known(place: Place) -> CloneRecord:
    record, mark = place.record(), place.mark
    if record is None or mark is None or not mark.is_whole:
        raise CloneRefused(
            f'"{place.directory}" is what a killed command has left of a clone',
            hint=f"it is not usable; take it away: polarvault clone remove {place.id}",
        )
    return record


def _instance(record: CloneRecord, start_through: tuple[str, ...]) -> Instance:
    return Instance(
        data_directory=record.data,
        control_path=record.control_path,
        wal_directory=record.wal_directory,
        role=Role.STANDBY if record.read_only else Role.PRIMARY,
        signal_path=record.signal_path,
        is_polardb=record.is_polardb,
        source_timeline_id=record.source_timeline_id,
        segment_size_bytes=record.segment_size_bytes,
        superuser=record.superuser,
        timeout_s=record.timeout_s,
        start_through=start_through,
    )
