"""A clone for as long as something is taken from it: made, kept alive, and removed whatever happens.

Whoever is killed cannot remove it. So it has a time limit, which is put off as long as we live: then the process that
watches every clone, or the next `clone list`, takes it away.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

from polarvault.clones.area import Area, Place
from polarvault.clones.control import remove
from polarvault.clones.create import Created, create_clone
from polarvault.clones.model import CloneRecord, CloneRequest
from polarvault.clones.watching import watch_beside
from polarvault.drill.place.processes import postmaster_of
from polarvault.errors import PolarvaultError, StartFailed, TargetUnreachable
from polarvault.flashback.stages import Stages
from polarvault.instance.host import Host
from polarvault.recovery.watch import ReplayState, Watch

LEASE_S = 1800
_RENEW_EVERY_S = 120.0
# It lives for one dump, and nothing in it is ever started again: what makes a server survive a crash is time lost.
_THROW_AWAY = (("fsync", "off"), ("full_page_writes", "off"), ("synchronous_commit", "off"))
Watching = Callable[[], AbstractContextManager[Watch]]


@contextmanager
def clone_for(
    request: CloneRequest, host: Host, stages: Stages, *, draw: int, watching: Watching, words: str
) -> Iterator[Created]:
    """Make a clone; when the block is left, in whatever way, it is removed. words: which moment it goes to.

    watching: shows how replay goes on, for as long as it does.
    """
    stages.say(f"making a clone of {request.source}, {words}")
    with watching() as watch:
        clock = _Clock(watch)
        try:
            created = create_clone(
                replace(request, ttl_s=LEASE_S, settings=(*_THROW_AWAY, *request.settings)), host, stages.say,
                clock=lambda: datetime.now(UTC), draw=draw, options={}, watch=clock.replayed,
            )  # fmt: skip
        except TargetUnreachable as problem:
            # What a restore would be told to do are no options here.
            raise TargetUnreachable(
                problem.message,
                hint="name a moment that can be reached; for an earlier one an older backup is needed, for a later one "
                "more WAL: --wal DIR (SELECT pg_switch_wal() sends the newest to the archive)",
                detail=problem.detail,
            ) from problem
    try:
        clock.tell(stages)
        watch_beside(created.place)
        with _renewed(created.place):
            yield created
    finally:
        with stages.of("remove", "removing the clone"):
            # One that is gone was taken away by what watches it.
            if created.place.mark is not None:
                _end(created.record)
                remove(Area(request.area), created.place)


def why_it_stopped(place: Place) -> StartFailed | None:
    """Return the error for a clone that was stopped under our hands, as for want of room; None if it was not."""
    record = place.record()
    if record is None:
        return StartFailed("the clone was removed by somebody else meanwhile", hint="run the command again")
    if record.stopped is not None:
        return StartFailed(
            f"the clone was stopped: {record.stopped}", hint="free space, or name another place: --at DIR"
        )
    return None


def _end(record: CloneRecord) -> None:
    """Have its server end at once, without the checkpoint that nobody needs."""
    with suppress(ProcessLookupError):
        if (pid := postmaster_of(record.data)) is not None:
            os.kill(pid, signal.SIGQUIT)


class _Clock:
    """Tells laying out from replay: when the server is looked at for the first time, its files are there."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._began = time.monotonic()
        self._replay_began: float | None = None

    def replayed(self, state: ReplayState) -> None:
        self._replay_began = self._replay_began or time.monotonic()
        self._watch(state)

    def tell(self, stages: Stages) -> None:
        now = time.monotonic()
        began = self._replay_began or now
        stages.add("clone", began - self._began)
        stages.add("replay", now - began)


@contextmanager
def _renewed(place: Place) -> Iterator[None]:
    """Put the end of a clone off, again and again, in a thread that goes with this process."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(_RENEW_EVERY_S):
            _renew(place, datetime.now(UTC))

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _renew(place: Place, now: datetime) -> None:
    try:
        with place.locked(wait=False):
            record = place.record()
            if record is not None:
                place.write_record(_prolonged(record, now))
    except PolarvaultError:
        return  # Somebody works on it, or the disk is full: there is time for many more attempts.


def _prolonged(record: CloneRecord, now: datetime) -> CloneRecord:
    return replace(record, ttl_s=int((now - record.made).total_seconds()) + LEASE_S)
