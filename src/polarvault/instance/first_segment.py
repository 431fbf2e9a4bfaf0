"""The first WAL segment of a new timeline on PFS, which the server makes before it opens for writing.

It writes zeros in steps of 8 kB, each through pfsd: a segment of 1 GB takes 131 072 of them, two minutes and more
(measured). Nothing in the log says so, and a server that is waited for looks as if it hung.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from polarvault.errors import StorageFailed
from polarvault.instance.data_files import opened_data
from polarvault.instance.model import Instance
from polarvault.storage.trees.model import Tree

Say = Callable[[int, int], None]
# A segment of the usual 16 MB is there before anybody wonders.
_LEAST_BYTES = 128 << 20
_LOOK_S = 2.0
_MAKING = "xlogtemp."


@contextmanager
def watching_first_segment(instance: Instance, say: Say) -> Iterator[None]:
    """Call say(done, whole) with bytes while the server makes its segment; from a thread, and only on PFS."""
    size = instance.segment_size_bytes or 0
    if instance.pfs is None or size < _LEAST_BYTES:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(instance, size, say, stop), name="first-segment", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_LOOK_S * 2)


def _watch(instance: Instance, size: int, say: Say, stop: threading.Event) -> None:
    try:
        with opened_data(instance) as tree:
            shown = 0
            while not stop.wait(_LOOK_S):
                done = segment_in_the_making(tree)
                if done is not None and done > shown:
                    say(done, size)
                    shown = done
    except (OSError, StorageFailed):
        pass  # Only a look; the start itself says what is wrong.


def segment_in_the_making(tree: Tree) -> int | None:
    """Return how long the file is that is being made; None if there is none."""
    found = [entry.size_bytes for entry in tree.list("pg_wal") if entry.name.startswith(_MAKING)]
    return max(found, default=None)
