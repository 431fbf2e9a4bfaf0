"""Lay the WAL that recovery needs into pg_wal, where the server finds it without a restore_command."""

from __future__ import annotations

import os

from polarvault.errors import WalGap
from polarvault.recovery.wal.places import places_of
from polarvault.restore.model import RestorePlan
from polarvault.storage.below import Below
from polarvault.storage.files import storage_failed, write_all
from polarvault.wal.history import history_file_name
from polarvault.walfiles.choice import find, history_of

_ZEROS = bytes(1 << 20)


def bring_wal(plan: RestorePlan, *, file_mode: int) -> None:
    """Copy segments and histories from where the plan has found them; a segment that is there is replaced.

    The caller works as the account. Raises WalGap for one that has gone since.
    """
    recovery = plan.recovery
    if recovery is None:
        return
    places = places_of(plan.request.recovery, plan.source)
    directory = os.path.join(plan.layout.data, "pg_wal")
    timelines = dict.fromkeys([*(segment.timeline_id for segment in recovery.needed), recovery.timeline_id])
    try:
        with Below(directory) as below:
            for timeline_id in timelines:
                if timeline_id > 1 and (history := history_of(places, timeline_id)) is not None:
                    below.write(history_file_name(timeline_id), history, file_mode, sync=False, replace=True)
            for segment in recovery.needed:
                copy = find(places, segment)
                if copy is None:
                    raise WalGap(
                        f"WAL segment {segment.file_name} was in {places.place} a moment ago and is not there any more",
                        hint="run the command again",
                    )
                descriptor = below.create(segment.file_name, file_mode, replace=True)
                try:
                    length = 0
                    for view in copy.views():
                        length += len(view)
                        # The rest of a segment that was not filled is a hole.
                        if len(view) <= len(_ZEROS) and _ZEROS.startswith(view):
                            os.lseek(descriptor, len(view), os.SEEK_CUR)
                        else:
                            write_all(descriptor, [view])
                    os.ftruncate(descriptor, max(length, segment.size_bytes))
                finally:
                    os.close(descriptor)
    except OSError as problem:
        raise storage_failed(problem, "lay WAL into", directory) from problem
