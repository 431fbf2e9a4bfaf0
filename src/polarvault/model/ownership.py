"""Who may change a file or directory, by what stat(2) says of it. No I/O."""

from __future__ import annotations

import os
import stat

_ROOT = 0
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def others_may_change(found: os.stat_result) -> bool:
    """Tell whether another account owns a file or directory, or may write to it.

    A POSIX ACL that lets others write shows in the group's bits (acl(5): they are its mask).
    """
    return found.st_uid != os.geteuid() or bool(found.st_mode & _OTHERS_WRITE)


def others_may_replace_within(directory: os.stat_result) -> bool:
    """Tell whether another account but root may put something else in the place of what we own in a directory.

    In a sticky directory, such as /tmp, everybody may make new entries but nobody may move those of others.
    """
    if directory.st_uid not in (_ROOT, os.geteuid()):
        return True
    return bool(directory.st_mode & _OTHERS_WRITE) and not directory.st_mode & stat.S_ISVTX
