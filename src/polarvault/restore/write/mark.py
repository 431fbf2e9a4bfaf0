"""The mark of a restore that is being made, or was cut off: a small file in each of its directories.

It is there before the first file of the backup and goes right before the one that makes the restore valid. So whoever
finds what SIGKILL or a lost machine has cut off is told what it is (`storage.occupants`), however little is there.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from polarvault import __version__
from polarvault.restore.model import RestorePlan
from polarvault.storage.below import Below
from polarvault.storage.files import storage_failed
from polarvault.storage.occupants import RESTORE_MARK_NAME
from polarvault.storage.trees.model import WritableTree
from polarvault.storage.trees.small_files import write_file

_MODE = 0o600


def mark_targets(plan: RestorePlan, data: WritableTree | None = None) -> None:
    """Have every target say that it is unfinished; raise StorageFailed. The caller works as the account.

    data: the shared half, where that is no directory of this machine.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    content = (
        f"This directory is not a server's (yet): polarvault {__version__} restore, process {os.getpid()}, began to "
        f"fill it at {since}.\nWhen that process has ended and this file is still here, the restore was cut off: "
        "restore again, into another directory or in the place of this one.\n"
    ).encode()
    if data is not None:
        try:
            write_file(data, RESTORE_MARK_NAME, content, _MODE)
        except OSError as problem:
            raise storage_failed(problem, "write", data.path(RESTORE_MARK_NAME)) from problem
    for root in plan.layout.roots:
        try:
            with Below(root) as below:
                # Its name counts; what it says is for people. One that was cut off, and is repeated, has it already.
                if not below.exists(RESTORE_MARK_NAME):
                    below.write(RESTORE_MARK_NAME, content, _MODE, sync=False)
                # Before anything that it marks: a power cut may leave what was written later and not this name.
                if plan.request.sync:
                    below.sync_directory()
        except OSError as problem:
            raise storage_failed(problem, "write", os.path.join(root, RESTORE_MARK_NAME)) from problem


def unmark_targets(plan: RestorePlan, data: WritableTree | None = None) -> None:
    """Take the marks away: all that is left to do is the last step. The caller works as the account."""
    if data is not None:
        try:
            data.remove(RESTORE_MARK_NAME)
        except OSError as problem:
            raise storage_failed(problem, "remove", data.path(RESTORE_MARK_NAME)) from problem
    for root in plan.layout.roots:
        try:
            with Below(root) as below:
                below.unlink(RESTORE_MARK_NAME, missing_ok=True)
                if plan.request.sync:
                    below.sync_directory()
        except OSError as problem:
            raise storage_failed(problem, "remove", os.path.join(root, RESTORE_MARK_NAME)) from problem
