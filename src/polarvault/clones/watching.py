"""The small process beside a clone: it ends it when its time is over, when it is too large, when room runs out.

usage: python -m polarvault.clones.watching AREA ID

Started by `clone create` and `clone start` with a session of its own, so that it outlives the shell; it ends with the
clone's directory, and when the clone is stopped. It holds no lock but while it acts. After a start of the machine
nobody watches; `clone list` and `clone create` then remove what is over, and `clone start` begins to watch again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

from polarvault.clones.area import Area, Place
from polarvault.clones.control import own_bytes, remove_place
from polarvault.clones.errors import CloneRefused
from polarvault.clones.model import CloneRecord
from polarvault.drill.place.processes import postmaster_of, stop_whatever_runs
from polarvault.errors import PolarvaultError
from polarvault.model.units import format_bytes
from polarvault.snapshots.model import Kind

_LOOK_S = 5.0
# Looking at sizes reads the map of every file: no more than a twentieth of the time goes into it.
_SHARE_OF_LOOKING = 20


def watch_beside(place: Place) -> None:
    """Start the process for a clone; it lives on when this one ends."""
    subprocess.Popen(
        [sys.executable, "-m", "polarvault.clones.watching", os.path.dirname(place.directory), place.id],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
    )  # fmt: skip


def needs_watching(record: CloneRecord) -> bool:
    """Tell whether there is a limit; there always is one of free space."""
    return record.ttl_s is not None or record.max_bytes is not None or record.least_free_bytes > 0


def watch(place: Place) -> None:
    """Look again and again, until the clone is gone or stopped."""
    pause_s = _LOOK_S
    while True:
        record = place.record()
        if record is None or place.mark is None or record.stopped is not None:
            return
        began = time.monotonic()
        why = look(place, record, datetime.now(UTC))
        if why is not None and act(place, record, why):
            return
        spent_s = time.monotonic() - began
        pause_s = max(_LOOK_S, spent_s * _SHARE_OF_LOOKING)
        if record.expires is not None:
            left_s = (record.expires - datetime.now(UTC)).total_seconds()
            pause_s = min(pause_s, max(0.1, left_s))
        # Nothing tells when a file grows; there is nothing to wait on but the next look.
        time.sleep(pause_s)


def look(place: Place, record: CloneRecord, now: datetime) -> str | None:
    """Return why a clone has to end now, in words; None for one that may go on. "" stands for its time."""
    if record.expires is not None and record.expires <= now:
        return ""
    status = os.statvfs(place.directory)
    free = status.f_bavail * status.f_frsize
    if free < record.least_free_bytes:
        return (
            f"only {format_bytes(free)} were free on its file system, and {format_bytes(record.least_free_bytes)} have "
            "to stay free (--min-free)"
        )
    if record.max_bytes is not None and (own := own_bytes(place, record)) is not None and own > record.max_bytes:
        return f"it took {format_bytes(own)} of its own, and {format_bytes(record.max_bytes)} is its limit (--max-size)"
    return None


def act(place: Place, record: CloneRecord, why: str) -> bool:
    """Stop a clone, or remove it when its time is over; return whether that is done."""
    try:
        with place.locked(wait=False):
            if not why:
                remove_place(place)
                return True
            if postmaster_of(record.data) is not None:
                stop_whatever_runs(record.data)
            place.write_record(replace(record, stopped=why))
            return True
    except CloneRefused:
        return False  # Somebody works on it: the next look tells.


def main(arguments: list[str]) -> int:
    """Watch one clone; nobody reads what this prints."""
    try:
        watch(Area(arguments[0]).place(Kind.CLONE, arguments[1]))
    except (PolarvaultError, OSError):
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
