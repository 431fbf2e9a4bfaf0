"""--at: the directory in which clones, snapshots or images are kept, and its default in the directory for state."""

from __future__ import annotations

import os

from polarvault.errors import UsageError


def directory_of(at: str | None, several: str) -> str:
    """Return the directory that --at names, or the default for `several`; raise UsageError where there is none."""
    from polarvault.storage.state_directory import state_directory

    if at is not None:
        return os.path.abspath(at)
    state = state_directory(os.environ, outside=())
    if state is None:
        raise UsageError("there is no directory for state that can be used", hint="name a directory: --at DIR")
    return os.path.join(state, several)
