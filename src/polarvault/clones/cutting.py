"""Before a clone starts: every way from it to its source, or to anything outside, is gone. What is found is refused.

Restore lays files out anew, so that links in pg_tblspc and pg_wal, tablespace_map, polar_datadir, postmaster.pid and
signal files are the copy's own or not there. Here that is looked at once more, in what will really be started, and what
only a running server would need, its replication slots, is taken away.
"""

from __future__ import annotations

import os
import shutil

from polarvault.clones.errors import CloneRefused
from polarvault.instance.lock_file import LOCK_FILE_NAME
from polarvault.storage.files import storage_failed

_OF_A_RUNNING_SERVER = (LOCK_FILE_NAME, "postmaster.opts", "tablespace_map", "polar_replica_booted", "replica.signal")


def cut_off(run: str, data: str, shared: str | None) -> None:
    """Empty pg_replslot, and refuse a copy in which any link leads outside of `run` or of which a server runs.

    Raises CloneRefused, StorageFailed.
    """
    for root in (data, *((shared,) if shared else ())):
        _empty(os.path.join(root, "pg_replslot"))
        for name in _OF_A_RUNNING_SERVER:
            if os.path.lexists(os.path.join(root, name)):
                raise CloneRefused(
                    f"the copy holds {name}: it is of a server that runs, and would be taken for it",
                    hint="nothing was started; make the backup with polarvault basebackup or pg_basebackup",
                )
    inside = os.path.realpath(run) + os.sep
    for directory, names, files in os.walk(run):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            if os.path.islink(path) and not os.path.realpath(path).startswith(inside):
                raise CloneRefused(
                    f'"{os.path.relpath(path, run)}" of the copy is a link to "{os.readlink(path)}", outside of it: '
                    "its server would write there",
                    hint="nothing was started and the copy is removed; restore it where that place is free: "
                    "polarvault restore",
                )


def _empty(directory: str) -> None:
    """Remove replication slots: nobody will ever take what they keep, and WAL would pile up."""
    try:
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as problem:
        raise storage_failed(problem, "empty", directory) from problem
